package config

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestSize(t *testing.T) {
	f := func(text string, want Size, back string) {
		t.Helper()
		got, err := ParseSize(text)
		if err != nil || got != want || got.String() != back {
			t.Errorf("ParseSize(%q) = %d, %v, written %q; want %d, %q", text, got, err, got.String(), want, back)
		}
	}
	f("0B", 0, "0B")
	f("512B", 512, "512B")
	f("1048576", 1<<20, "1MiB")
	f("1K", 1<<10, "1KiB")
	f("64KiB", 64<<10, "64KiB")
	f("3M", 3<<20, "3MiB")
	f("1536MiB", 1536<<20, "1536MiB")
	f("1024MiB", 1<<30, "1GiB")
	f("2G", 2<<30, "2GiB")
	f("1T", 1<<40, "1TiB")
	f("8388607TiB", 8388607<<40, "8388607TiB")
	for _, bad := range []string{"", "B", "1.5G", "-1G", "+1G", "1g", "1GB", "1 G", " 1G", "1G ", "0x1G", "8388608TiB", "99999999999999999999B", "1e3B", "1_000B"} {
		if got, err := ParseSize(bad); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", bad, got)
		}
	}
}

func TestText(t *testing.T) {
	for n, want := range map[Size]string{0: "0 B", 511: "511 B", 1 << 10: "1 KiB", 1536: "1.5 KiB", 256 << 20: "256 MiB", 5 << 30: "5 GiB", 1<<40 + 1: "1.0 TiB"} {
		if got := n.Text(); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	for d, want := range map[Duration]string{0: "0s", 5e9: "5s", 60e9: "1m", 3600e9: "1h", 3660e9: "1h1m", 90e9: "1m30s", 1e6: "1ms"} {
		if got := d.String(); got != want {
			t.Errorf("%d is %q, want %q", d, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	f := func(a, b string, want int) {
		t.Helper()
		if got := distance(a, b); got != want || distance(b, a) != want {
			t.Errorf("%q and %q: %d, want %d", a, b, got, want)
		}
	}
	f("socket", "socket", 0)
	f("socket", "sockte", 2)
	f("socket", "sockets", 1)
	f("socket", "locket", 1)
	f("", "ab", 2)
	f("", "abc", 3)
	f("socket", "store", 3)
	f("a", "run_dir", 3)
}

func TestRate(t *testing.T) {
	f := func(text string, want Rate, back string) {
		t.Helper()
		got, err := ParseRate(text)
		if err != nil || got != want || got.String() != back {
			t.Errorf("ParseRate(%q) = %d, %v, written %q; want %d, %q", text, got, err, got.String(), want, back)
		}
	}
	f("none", 0, "none")
	f("1kbit", 1000, "1kbit")
	f("50Mbit", 50e6, "50Mbit")
	f("2.5Mbit", 25e5, "2.5Mbit")
	f("0.5Mbit", 5e5, "500kbit")
	f("1000Mbit", 1e9, "1Gbit")
	f("10Gbit", 1e10, "10Gbit")
	for _, bad := range []string{"", "0Mbit", "50", "50mbit", "50Mb", "-1Mbit", "+1Mbit", "NaNMbit", "InfGbit", "1e3kbit", "0x10kbit", "1 Mbit", "None", "9999999Gbit", ".5Mbit", "1.Mbit"} {
		if got, err := ParseRate(bad); err == nil {
			t.Errorf("ParseRate(%q) = %d, want an error", bad, got)
		}
	}
	if got := Rate(50e6).BytesPerSecond(); got != 6250000 {
		t.Errorf("50Mbit = %d bytes a second", got)
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "vol1", "0", "a.b_c-d", strings.Repeat("x", 63)} {
		if err := CheckName(good); err != nil {
			t.Errorf("CheckName(%q): %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "-a", "_a", "A", "a/b", "a b", "ä", "a\n", strings.Repeat("x", 64)} {
		if CheckName(bad) == nil {
			t.Errorf("CheckName(%q) is fine, want an error", bad)
		}
	}
}

func TestID(t *testing.T) {
	if id, err := ParseID("00000000000000ff"); err != nil || id != 255 || id.String() != "00000000000000ff" {
		t.Errorf("ParseID: %v, %v", id, err)
	}
	for _, bad := range []string{"", "0000000000000000", "ff", "00000000000000fg", "+0000000000000ff", "0x000000000000ff"} {
		if id, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) = %v, want an error", bad, id)
		}
	}
}

// sample is a VRA with every field set: it must come back from its own text.
func sample() *VRA {
	return &VRA{
		Site: "west", ID: "vra-west-1", DataDir: "/var/lib/holdfast", RunDir: "/run/holdfast", Socket: "/run/holdfast/vra.sock",
		TLS:           TLS{CA: "/etc/hf/ca.pem", Cert: "/etc/hf/cert.pem", Key: "/etc/hf/key.pem", PeerCA: "/etc/hf/east.pem", PeerSite: "east"},
		Target:        &Target{ListenControl: "127.0.0.1:4007", ListenData: "127.0.0.1:4008", Store: "/var/lib/holdfast/store", Cache: 128 << 20, IndexMemory: 32 << 20, Retention: Retention{History: Span(7 * 24 * time.Hour), Limit: 200 << 30, WarnPercent: 80, Minimum: Span(36 * time.Hour), Thin: "all for 1h, minute for 24h"}},
		MetricsListen: "127.0.0.1:9100",
		Source: &Source{Compression: "lz4", Connections: "4", WindowBudget: 512 << 20, SpillBudget: 20 << 30, SpillDir: "/spill/holdfast", Groups: []SourceGroup{{
			Name: "shop", ID: 0x1122334455667788, Stream: 7, Lineage: 0x0000000000000123, Interval: Duration(5e9), Window: 64 << 20,
			Target:  Endpoint{Control: "10.0.0.1:4007", Data: "10.0.0.1:4008"},
			Filters: []string{"/run/holdfast/pool.sock"},
			Volumes: []SourceVolume{{"vol1", 1}, {"vol2", 2}},
		}}},
	}
}

func TestMarshalReadsBack(t *testing.T) {
	text, err := Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseVRA(text)
	if err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("read back as %+v, %v\n%s", got, err, text)
	}
	filter := &Filter{
		RunDir: "/run/hf", Group: FilterGroup{"shop", 9}, Pool: 64 << 20, PoolSocket: "/run/hf/pool.sock",
		Volumes: []FilterVolume{
			{Name: "vol1", ID: 1, Path: "/disks/1", NBD: "/run/hf/vol1.sock"},
			{Name: "vol2", ID: 2, Path: "/disks/2", NBD: "/run/hf/vol2.sock", VhostUser: "/run/hf/vhost2.sock"},
			{Name: "vol3", ID: 3, Path: "/disks/3", VhostUser: "/run/hf/vhost3.sock", Cache: CacheWriteback},
		},
	}
	if text, err = Marshal(filter); err != nil {
		t.Fatal(err)
	}
	if got, err := ParseFilter(text); err != nil || !reflect.DeepEqual(got, filter) {
		t.Errorf("read back as %+v, %v\n%s", got, err, text)
	}
	context := &Context{Group: "lab", Lab: "/lab", VRAs: []ContextVRA{{Site: "west", Role: "source", Socket: "/run/a"}, {Site: "east", Role: "target", Sidecar: &ContextSidecar{
		Commands: "east:4006", Checkpoints: "east:4009", Logs: "192.0.2.1:4005", TLS: SidecarTLS{"/ca", "/cert", "/key"},
	}}}}
	if text, err = Marshal(context); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "context.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadContext(path); err != nil || !reflect.DeepEqual(got, context) {
		t.Errorf("read back as %+v, %v\n%s", got, err, text)
	}
}

func TestConnections(t *testing.T) {
	f := func(word string, want int, ok bool) {
		t.Helper()
		c := sample()
		c.Source.Connections = word
		if err := c.Validate(); (err == nil) != ok || c.Source.DataConnections() != want {
			t.Errorf("connections: %s: %d, %v", word, c.Source.DataConnections(), err)
		}
	}
	f("auto", 0, true)
	f("", 0, true)
	f("1", 1, true)
	f("8", 8, true)
	f("9", 0, false)
	f("0", 0, false)
	f("-1", 0, false)
	f("many", 0, false)
}

func TestDefaults(t *testing.T) {
	c := sample()
	c.Target.ListenControl, c.Target.ListenData, c.Target.Cache, c.Target.IndexMemory = "", "", 0, 0
	c.Source.Compression, c.Source.Connections, c.Source.WindowBudget = "", "", 0
	c.Source.Groups[0].Interval, c.Source.Groups[0].Window = 0, 0
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	g := c.Source.Groups[0]
	if c.Target.ListenControl != ":4007" || c.Target.ListenData != ":4008" || g.Interval != DefaultInterval || g.Window != DefaultWindow ||
		c.Source.Compression != "auto" || c.Source.Connections != "auto" || c.Source.DataConnections() != 0 || c.Target.Cache != DefaultCache || c.Target.IndexMemory != DefaultIndex ||
		c.Source.WindowBudget != DefaultWindowBudget {
		t.Errorf("defaults: %+v, %+v", c.Target, g)
	}
}

// What waits goes to no disk unless somebody says so, and to each group some of it.
func TestSpillBudget(t *testing.T) {
	c := sample()
	two := c.Source.Groups[0]
	two.Name, two.ID, two.Stream = "till", 1000, 1001
	c.Source.Groups = append(c.Source.Groups, two)
	for size, want := range map[Size]string{0: "", 128 << 20: "", 127 << 20: "source.spill_budget: 127MiB is not between 128MiB, which is 64MiB a group", 2 << 40: "and 1TiB"} {
		c.Source.SpillBudget = size
		if err := c.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", size, err, want)
		}
	}
	c.Source.SpillDir = "spill"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "source.spill_dir") {
		t.Errorf("a relative folder: %v", err)
	}
	c.Source.SpillBudget, c.Source.SpillDir = 0, ""
	if text, err := Marshal(c); err != nil || strings.Contains(string(text), "spill") {
		t.Errorf("%s: %v", text, err)
	}
}

// Many groups have enough by default, and too little is told with what would be enough.
func TestWindowBudget(t *testing.T) {
	c := sample()
	one := c.Source.Groups[0]
	for i := range 299 {
		g := one
		g.Name, g.ID, g.Stream = fmt.Sprint("g", i), ID(i+1000), ID(i+1000)
		c.Source.Groups = append(c.Source.Groups, g)
	}
	c.Source.WindowBudget = 0
	if err := c.Validate(); err != nil || c.Source.WindowBudget != 300*MinWindowShare {
		t.Errorf("%v: %v", c.Source.WindowBudget, err)
	}
	for size, want := range map[Size]string{1 << 30: "at least 1200MiB, 4MiB each", 1 << 20: "source.window_budget", 2000 << 20: ""} {
		c.Source.WindowBudget = size
		if err := c.Validate(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", size, err, want)
		}
	}
}

// TestMistakes reads each testdata/*.yaml and compares all that is said about it with
// the .txt beside it.
func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		var err error
		switch kind, _, _ := strings.Cut(filepath.Base(file), "-"); kind {
		case "vra":
			_, err = LoadVRA(file)
		case "filter":
			_, err = LoadFilter(file)
		case "machines":
			_, err = LoadMachines(file)
		case "context":
			_, err = LoadContext(file)
		case "sidecar":
			_, err = LoadSidecar(file)
		default:
			t.Errorf("%s: of no known kind", file)
		}
		got := ""
		if err != nil {
			got = err.Error() + "\n"
		}
		golden := strings.TrimSuffix(file, ".yaml") + ".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%swant\n%s", file, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseVRA(text)
		if err != nil {
			return
		}
		again, err := Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseVRA(again); err != nil || !reflect.DeepEqual(c, back) {
			t.Fatalf("%+v is read back as %+v, %v\n%s", c, back, err, again)
		}
	})
}

func FuzzParseSidecar(f *testing.F) {
	files, _ := filepath.Glob("testdata/sidecar-*.yaml")
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			f.Add(text)
		}
	}
	f.Add([]byte("id: a\nvra_socket: /v\nsocket: /s\ndata_dir: /d\ntls: {ca: /ca, cert: /c, key: /k}\nlogs: []\nconfigs: []\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseSidecar(text)
		if err != nil {
			return
		}
		again, err := Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseSidecar(again); err != nil || !reflect.DeepEqual(c, back) {
			t.Fatalf("%+v is read back as %+v, %v\n%s", c, back, err, again)
		}
	})
}

func TestSpan(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		s, err := ParseSpan(text)
		got := s.String()
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q reads as %s, want %s (%v)", text, got, want, err)
		}
	}
	f("30d", "30d")
	f("24h", "24h")
	f("1d", "24h")
	f("1d12h", "36h")
	f("90m", "1h30m")
	f("0s", "0s")
	for _, bad := range []string{"", "d", "1", "-1d", "+1d", "1.5d", "1d1d", "1h1d", "1ms", "1.5h", "99999999d", "1d-1h"} {
		f(bad, "error")
	}
}

func TestWait(t *testing.T) {
	for _, good := range []string{"", "serial:login:", "serial: ", "tcp:127.0.0.1:80", "tcp:[::1]:80", "script:/bin/true"} {
		w, err := ParseWait(good)
		if err != nil || w.String() != good {
			t.Errorf("%q is %+v, %v", good, w, err)
		}
		text, err := w.MarshalText()
		var back Wait
		if err := errors.Join(err, back.UnmarshalText(text)); err != nil || back != w {
			t.Errorf("%q is read back as %+v, %v", good, back, err)
		}
	}
	for _, bad := range []string{"login", "serial:", "tcp:", "tcp:80", "tcp:host:", "script:", "script:bin/true", "nothing:x", ":x"} {
		if w, err := ParseWait(bad); err == nil {
			t.Errorf("%q is %+v", bad, w)
		}
	}
}

func TestMachinesDefaults(t *testing.T) {
	c, err := LoadMachines("testdata/machines-good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	web := c.Machines[1]
	want := Machine{Name: "web1", Memory: 512 << 20, CPUs: 1, Firmware: "bios", Disks: []string{"web1"}, Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd",
		Cmdline: "console=ttyS0", Boot: 2, Delay: Duration(10 * time.Second), Before: Script{Time: Duration(time.Minute)}, After: Script{Time: Duration(time.Minute)},
		Wait: Wait{WaitTCP, "127.0.0.1:5432"}, WaitTime: Duration(5 * time.Minute), Source: MachineSource{Time: Duration(2 * time.Minute)}}
	if !reflect.DeepEqual(web, want) {
		t.Errorf("%+v\nwant %+v", web, want)
	}
	if db := c.Machines[0]; db.Before.Time.D() != 10*time.Second || db.Source.Time.D() != 30*time.Second || db.CPUs != 2 {
		t.Errorf("%+v", db)
	}
}

func TestRecoveryFolder(t *testing.T) {
	f := func(c Context, want string) {
		t.Helper()
		if got, err := c.RecoveryFolder("/lab/context.yaml"); err != nil || got != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	f(Context{}, "/lab/recovery")
	f(Context{Recovery: "/var/lib/holdfast/recovery"}, "/var/lib/holdfast/recovery")
}

package kvm

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
)

// TestPlanOnto: what is done with a disk, from where it stands and what an earlier try left.
func TestPlanOnto(t *testing.T) {
	from := hypervisor.Disk{Volume: "v1", NBD: onFilter}
	node := map[string]any{"driver": "raw", "node-name": "disk0-file", "file": "/v1.raw"}
	onto := func(bytes int64) *Volume {
		return &Volume{Name: "v1", Path: "/v1.raw", Bytes: bytes, Same: func(file string) bool { return file == "/v1.raw" }}
	}
	f := func(g Guest, bytes int64, want string) {
		t.Helper()
		p, err := PlanOnto(g, "vd0", from, node, onto(bytes))
		holdPlan(t, p, err, want)
	}
	served := testGuest("vd0 nbd " + onFilter)
	f(served, 1<<20, "add disk0-file, see, qom-set disk0-file, see, del #block0")
	f(served, 2<<20, "has 1048576 bytes for the guest")
	f(testGuest("vd0 nbd nbd+unix:///v1?socket=/run/another"), 1<<20, "neither on the view nor on a file")
	f(testGuest("vd0 qcow2 /x"), 1<<20, "neither on the view nor on a file")
	f(testGuest("vd1 raw /x"), 1<<20, `no disk "vd0"`)
	moved := testGuest("vd0 raw /v1.raw")
	f(moved, 1<<20, "")
	f(testGuest(`vd0 raw json:{"driver":"raw","size":1048576,"file":{"driver":"file","filename":"/v1.raw"}}`), 1<<20, "")
	for _, other := range []string{"/v1.raw.old", "json:", `json:{"driver":"raw","file":{"driver":"file","filename":"/v2.raw"}}`} {
		f(testGuest("vd0 raw "+other), 1<<20, "on another file than that of volume v1: it is "+other+", and not /v1.raw")
	}
	half := testGuest("vd0 nbd " + onFilter) // killed after the file was opened
	half.Nodes = append(half.Nodes, Node{Name: "disk0-file", Driver: "raw", File: "/v1.raw", Bytes: 1 << 20})
	f(half, 1<<20, "del disk0-file, add disk0-file, see, qom-set disk0-file, see, del #block0")
	most := testGuest("vd0 raw /v1.raw") // and before the view was let go of
	most.Nodes = append(most.Nodes, Node{Name: "disk0", Driver: "nbd", File: onFilter, Bytes: 1 << 20})
	f(most, 1<<20, "del disk0")
	busy := testGuest("vd0 nbd " + onFilter)
	busy.Jobs = []string{"backup b"}
	f(busy, 1<<20, "block jobs run")
	threads := testGuest("vd0 nbd " + onFilter)
	threads.Threads = true
	f(threads, 1<<20, "add disk0-file, see, stop, qom-set disk0-file, see, del #block0, cont")
	if _, err := PlanOnto(served, "vd0", hypervisor.Disk{NBD: "/x"}, node, onto(1)); err == nil {
		t.Error("a disk that was not served is planned")
	}
}

// TestPlanServed: the way back.
func TestPlanServed(t *testing.T) {
	to := hypervisor.Disk{Volume: "v1", NBD: onFilter}
	from := func(bytes int64) *Volume {
		return &Volume{Name: "v1", Path: "/v1.raw", Bytes: bytes, Same: func(file string) bool { return file == "/v1.raw" }}
	}
	f := func(g Guest, bytes int64, want string) {
		t.Helper()
		p, err := PlanServed(g, "vd0", from(bytes), map[string]any{"node-name": "disk0-served"}, to)
		holdPlan(t, p, err, want)
	}
	f(testGuest("vd0 raw /v1.raw"), 1<<20, "add disk0-served, see, qom-set disk0-served, see, del #block0")
	f(testGuest("vd0 raw /v1.raw"), 2<<20, "has 1048576 bytes for the guest")
	f(testGuest("vd0 raw /v1.raw.old"), 1<<20, "not on the file of volume v1, /v1.raw: it is raw /v1.raw.old")
	f(testGuest("vd0 nbd nbd+unix:///v1?socket=/run/another"), 1<<20, "not on the file of volume v1")
	f(testGuest("vd1 raw /v1.raw"), 1<<20, `no disk "vd0"`)
	f(testGuest("vd0 nbd "+onFilter), 1<<20, "")
	half := testGuest("vd0 raw /v1.raw") // killed after QEMU was connected
	half.Nodes = append(half.Nodes, Node{Name: "disk0-served", Driver: "nbd", File: onFilter, Bytes: 1 << 20})
	f(half, 1<<20, "del disk0-served, add disk0-served, see, qom-set disk0-served, see, del #block0")
	for _, name := range []string{"disk0", "disk0-file"} { // and before the file was let go of; another's node stays
		most := testGuest("vd0 nbd " + onFilter)
		most.Nodes = append(most.Nodes, Node{Name: name, Driver: "raw", File: "/v1.raw", Bytes: 1 << 20}, Node{Name: "backup", Driver: "raw", File: "/v1.raw", Bytes: 1 << 20})
		f(most, 1<<20, "del "+name)
	}
	busy := testGuest("vd0 raw /v1.raw")
	busy.Jobs = []string{"backup b"}
	f(busy, 1<<20, "block jobs run")
	if _, err := PlanServed(busy, "vd0", from(1), map[string]any{}, hypervisor.Disk{NBD: "/x"}); err == nil {
		t.Error("a disk that is not served is planned")
	}
}

// holdPlan holds a plan, or its error, to its steps in short.
func holdPlan(t *testing.T, p Plan, err error, want string) {
	t.Helper()
	var got []string
	for _, s := range p.Steps {
		what := "see"
		if s.QMP != nil {
			what = strings.TrimPrefix(s.QMP.Execute, "blockdev-")
			if name, ok := s.QMP.Arguments["node-name"]; ok {
				what += " " + name.(string)
			}
			if name, ok := s.QMP.Arguments["value"]; ok {
				what += " " + name.(string)
			}
		}
		got = append(got, what)
	}
	text := strings.Join(got, ", ")
	if err != nil {
		text = err.Error()
	}
	if text != want && (err == nil || !strings.Contains(text, want)) {
		t.Errorf("planned: %q, want %q", text, want)
	}
}

// TestSetDisk moves the disk of a machine that runs from where it is served onto the file, twice, and without a stop; what
// is started again finds it there, with nobody serving. A file of another size, or none, leaves it where it is. So it comes back, and
// does not while nobody serves.
func TestSetDisk(t *testing.T) {
	disk := served(t)
	socket, _, err := exportOf(disk)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(socket), "disk")
	l, err := NewLocal(t.TempDir(), DefaultQEMU)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := hypervisor.Machine{Name: "web1", MemoryBytes: 32 << 20, CPUs: 1, Firmware: hypervisor.BIOS, Disks: []hypervisor.Disk{disk}, Networks: []hypervisor.Network{}}
	must(l.Define(ctx, m))
	t.Cleanup(func() { l.Stop(context.Background(), "web1", hypervisor.ByForce) })
	must(l.Start(ctx, "web1"))
	until(t, "the guest says HELLO", func() bool { p, _ := l.Serial(ctx, "web1", 0); return string(p) == "HELLO\n" }) // or it is stopped before it could
	dir := filepath.Join(l.dir, "web1")
	pid, err := holder(dir)
	must(err)
	root := func() Disk {
		t.Helper()
		mon, err := monitor(ctx, dir)
		must(err)
		defer mon.Close()
		g, err := Look(ctx, mon)
		must(err)
		for _, n := range g.Nodes {
			if n.Name != g.Disks[0].Root.Name && (n.Driver == "nbd" || n.Driver == "raw") {
				t.Errorf("node %+v is left", n)
			}
		}
		return g.Disks[0]
	}
	to := hypervisor.Disk{Volume: "data", File: file, Bytes: 1 << 20}
	other := to
	other.File = file + ".other"
	must(os.WriteFile(other.File, make([]byte, 1<<19), 0o600))
	for _, bad := range []hypervisor.Disk{{Volume: "data", File: file + ".none", Bytes: 1 << 20}, {Volume: "log", File: file, Bytes: 1 << 20}, other} {
		if err := l.SetDisk(ctx, "web1", bad); err == nil || root().Root.Driver != "nbd" {
			t.Errorf("onto %+v: %v", bad, err)
		}
	}
	if err := l.SetDisk(ctx, "web2", to); err == nil {
		t.Error("a machine that is none has moved")
	}
	for range 2 {
		must(l.SetDisk(ctx, "web1", to))
		if d := root(); d.Root.Driver != "raw" || d.Root.File != file || d.Root.Bytes != 1<<20 {
			t.Errorf("it is on %+v", d.Root)
		}
	}
	// Whoever did it was killed before it was written down.
	text, err := json.Marshal(m)
	must(err)
	must(WriteFile(filepath.Join(dir, definitionName), text))
	must(l.SetDisk(ctx, "web1", to))
	if now, err := holder(dir); err != nil || now != pid {
		t.Errorf("process %d, was %d: %v", now, pid, err)
	}
	must(os.Link(file, file+".link")) // another name of the same
	linked := to
	linked.File = file + ".link"
	must(WriteFile(filepath.Join(dir, definitionName), text))
	must(l.SetDisk(ctx, "web1", linked))
	must(os.WriteFile(other.File, make([]byte, 1<<20), 0o600)) // and another file
	must(WriteFile(filepath.Join(dir, definitionName), text))
	if err := l.SetDisk(ctx, "web1", other); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("on %s, asked to be on %s: %v", file, other.File, err)
	}
	must(l.SetDisk(ctx, "web1", to))
	back := hypervisor.Disk{Volume: "data", NBD: disk.NBD, Bytes: 1 << 20}
	onFile, err := os.ReadFile(filepath.Join(dir, definitionName))
	must(err)
	for range 2 {
		must(l.SetDisk(ctx, "web1", back))
		must(WriteFile(filepath.Join(dir, definitionName), onFile)) // whoever did it was killed before it was written down
		must(l.SetDisk(ctx, "web1", back))
		if d := root(); d.Root.Driver != "nbd" || d.Root.Bytes != 1<<20 {
			t.Errorf("back it is on %+v", d.Root)
		}
		must(l.SetDisk(ctx, "web1", to))
		if d := root(); d.Root.Driver != "raw" {
			t.Errorf("there again it is on %+v", d.Root)
		}
	}
	// It was started from a definition that has changed since.
	onNBD, err := json.Marshal(m)
	must(err)
	must(WriteFile(filepath.Join(dir, definitionName), onNBD))
	if err := l.SetDisk(ctx, "web1", back); err == nil || !strings.Contains(err.Error(), "it runs on raw "+file) {
		t.Errorf("on the file, though its definition says otherwise: %v", err)
	}
	must(WriteFile(filepath.Join(dir, definitionName), onFile))
	nobody := back
	nobody.NBD += ".none"
	if err := l.SetDisk(ctx, "web1", nobody); err == nil || root().Root.Driver != "raw" {
		t.Errorf("where nobody serves: %v", err)
	}
	if now, err := holder(dir); err != nil || now != pid {
		t.Errorf("process %d, was %d: %v", now, pid, err)
	}
	must(os.Truncate(file, 1<<20+4096)) // in whole blocks
	must(os.Remove(socket))
	must(l.Stop(ctx, "web1", hypervisor.ByForce))
	must(l.Start(ctx, "web1"))
	until(t, "the guest says HELLO again", func() bool { p, _ := l.Serial(ctx, "web1", 0); return string(p) == "HELLO\nHELLO\n" })
	must(WriteFile(filepath.Join(dir, definitionName), text))
	must(l.SetDisk(ctx, "web1", to))
	if d := root(); d.Root.Driver != "raw" || d.Root.Bytes != 1<<20 {
		t.Errorf("started again it is on %+v", d.Root)
	}
}

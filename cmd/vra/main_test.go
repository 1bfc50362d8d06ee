package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/datapath"
	"github.com/holdfast-dr/holdfast/wire"
)

func TestArguments(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("site: west\ncolour: red\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(want string, usage bool, args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		err := run(context.Background(), args, &stdout, &stderr)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, daemon.ErrUsage) != usage || stdout.Len() > 0 {
			t.Errorf("%q: %v (stdout %q), want %q", args, err, stdout.String(), want)
		}
	}
	f("--config is needed", true)
	f("--config is needed", true, "--config", bad, "more")
	f("not defined", true, "--colour")
	f("needs an argument: -config", true, "--config")
	f("no such file", false, "--config", filepath.Join(dir, "none.yaml"))
	f("colour", false, "--config", bad, "--check-config")
	var stdout bytes.Buffer
	if err := run(context.Background(), []string{"--version"}, &stdout, &stdout); err != nil || !strings.HasPrefix(stdout.String(), "vra devel (commit ") {
		t.Errorf("--version: %q, %v", stdout.String(), err)
	}
	if err := run(context.Background(), []string{"--help"}, &stdout, &stdout); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

// TestConfigIsCheckedToTheFiles: what cannot run is refused before anything is made.
func TestConfigIsCheckedToTheFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	issue := func(site, cert, key, ca string) {
		t.Helper()
		authority, err := pairing.NewCA(site, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := authority.Issue(pairing.Identity{Role: "vra", ID: "vra-1"}, time.Now(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(authority.Save(at(ca), at(ca+"-key")), leaf.Save(at(cert), at(key))); err != nil {
			t.Fatal(err)
		}
	}
	issue("west", "cert", "key", "ca")
	issue("east", "east-cert", "east-key", "east-ca")
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := func(want string, change func(*config.VRA)) {
		t.Helper()
		c := &config.VRA{
			Site: "west", ID: "vra-1", DataDir: at("data"), RunDir: at("run"), Socket: at("run/s"),
			TLS:    config.TLS{CA: at("ca"), Cert: at("cert"), Key: at("key"), PeerCA: at("east-ca"), PeerSite: "east"},
			Target: &config.Target{ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0", Store: at("store")},
		}
		change(c)
		text, err := config.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "vra.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		modes := [][]string{{"--check-config"}, {}}
		if want == "" {
			modes = modes[:1] // without it, it would run
		}
		for _, mode := range modes {
			err := run(t.Context(), append(mode, "--config", file), &stdout, &stderr)
			if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), file)) {
				t.Errorf("%q: %v, want %q", mode, err, want)
			}
		}
		if said := stdout.String(); (said == "config ok\n") != (want == "") {
			t.Errorf("stdout %q", said)
		}
		if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
			t.Errorf("left %v, %v", after, err)
		}
	}
	f("", func(*config.VRA) {})
	f("tls.key: "+at("none")+": no such file", func(c *config.VRA) { c.TLS.Key = at("none") })
	f("are no pair", func(c *config.VRA) { c.TLS.Key = at("east-key") })
	f("a certificate of the site east, and this is west", func(c *config.VRA) { c.TLS.Cert, c.TLS.Key = at("east-cert"), at("east-key") })
	f("the authority of the site west, and tls.peer_site is east", func(c *config.VRA) { c.TLS.PeerCA = at("ca") })
	f("tls: CA of a peer site", func(c *config.VRA) { c.TLS.PeerCA = at("cert") })
	source := func(change func(*config.Source)) func(*config.VRA) {
		return func(c *config.VRA) {
			c.Source = &config.Source{Groups: []config.SourceGroup{{
				Name: "shop", ID: 1, Stream: 2, Lineage: 3, Target: config.Endpoint{Control: "192.0.2.1:4007", Data: "192.0.2.1:4008"},
				Filters: []string{at("pool")}, Volumes: []config.SourceVolume{{Name: "vol1", ID: 1}},
			}}}
			change(c.Source)
		}
	}
	f("", source(func(s *config.Source) {
		s.Groups[0].Priority = "high"
		s.Shaping = config.Shaping{Cap: "20Mbps", Windows: []string{"mon-fri 08:00-18:00 5Mbps"}}
	}))
	f("source.shaping.cap: cap \"20\"", source(func(s *config.Source) { s.Shaping.Cap = "20" }))
	f("source.shaping.windows[1]: window \"always\"", source(func(s *config.Source) { s.Shaping.Windows = []string{"daily none", "always"} }))
	f("source.shaping.zone: time zone \"No/Where\"", source(func(s *config.Source) { s.Shaping.Zone = "No/Where" }))
	f("source.groups[0].priority: priority \"urgent\"", source(func(s *config.Source) { s.Groups[0].Priority = "urgent" }))
	f("target.stores[1]: "+at("b")+" is no folder", func(c *config.VRA) {
		c.Target.Store, c.Target.Stores, c.Target.Parity = "", []string{dir, at("b"), at("c")}, config.Parity{K: 2, M: 1}
	})
	f("target.store: "+at("ca")+" is no folder", func(c *config.VRA) { c.Target.Store = at("ca/store") })
}

// TestTargetIsAsConfigured: nothing of the configuration stays behind.
func TestTargetIsAsConfigured(t *testing.T) {
	cfg := &config.VRA{RunDir: "/run/x", DataDir: "/data", Target: &config.Target{ListenControl: "a:1", ListenData: "a:2", Store: "/store",
		Stores: []string{"/a", "/b", "/c"}, Parity: config.Parity{Local: true, K: 2, M: 1}, Cache: 1, IndexMemory: 2,
		Retention: config.Retention{History: config.DefaultHistory, WarnPercent: config.DefaultWarnPercent}}}
	got, err := targetConfig(cfg, wire.Credentials{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	want := datapath.Parity{Local: true, K: 2, M: 1, Stores: []string{"/a", "/b", "/c"}, DataDir: "/data"}
	if !reflect.DeepEqual(got.Parity, want) {
		t.Errorf("parity %+v, want %+v", got.Parity, want)
	}
	notConfigured := []string{"Credentials", "SegmentBytes", "OpenCatalogue", "ObserveSync", "Tape"}
	v := reflect.ValueOf(got)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && !slices.Contains(notConfigured, name) {
			t.Errorf("%s is not set", name)
		}
	}
}

func TestPartsEndTogether(t *testing.T) {
	var p parts
	broken := errors.New("broken")
	p.add("waits", func(ctx context.Context) error { <-ctx.Done(); return nil })
	p.add("breaks", func(context.Context) error { return broken })
	if err := p.run(t.Context()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "breaks") {
		t.Errorf("%v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := p[:1].run(ctx); err != nil {
		t.Errorf("asked to stop: %v", err)
	}
	// What was begun by those that end first may need the others.
	ctx, stop = context.WithCancel(t.Context())
	var first parts
	last := make(chan struct{})
	first.add("last", func(ctx context.Context) error { <-ctx.Done(); close(last); return nil })
	first.addFirst("first", func(ctx context.Context) error {
		stop()
		<-ctx.Done()
		select {
		case <-last:
			t.Error("the others ended before")
		case <-time.After(10 * time.Millisecond):
		}
		return nil
	})
	if err := first.run(ctx); err != nil {
		t.Errorf("asked to stop: %v", err)
	}
	first[1].run = func(context.Context) error { return broken }
	last = make(chan struct{})
	if err := first.run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestMetricsAreServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serveMetrics(ctx, l, nothing{}) }()
	res, err := get("http://" + l.Addr().String() + "/metrics")
	if err != nil || res != 200 {
		t.Errorf("%d, %v", res, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// nothing is a collector of nothing.
type nothing struct{}

func (nothing) Describe(chan<- *prometheus.Desc) {}
func (nothing) Collect(chan<- prometheus.Metric) {}

func get(url string) (status int, err error) {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(url)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

// TestUnitsNeverGiveUp: systemd starts both daemons again and again, after their files were checked.
func TestUnitsNeverGiveUp(t *testing.T) {
	for _, path := range []string{"vra.service", "../vra-filter/vra-filter.service"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		unit, _, _ := strings.Cut(string(text), "[Service]")
		if !strings.Contains(unit, "\nStartLimitIntervalSec=0\n") {
			t.Errorf("%s: after a few deaths it would stay down", path)
		}
		for _, want := range []string{"\nRestart=always\n", "--check-config\n", "\nRuntimeDirectoryPreserve=yes\n"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %q", path, want)
			}
		}
	}
}

// TestOnePort: one port for both is what both ends get.
func TestOnePort(t *testing.T) {
	c := &config.VRA{Target: &config.Target{Listen: ":4008"}}
	if err := c.Validate(); err == nil { // which fills the defaults
		t.Error("a VRA without a name")
	}
	target, err := targetConfig(c, wire.Credentials{}, slog.New(slog.DiscardHandler))
	if err != nil || target.ListenControl != ":4008" || target.ListenData != "" {
		t.Errorf("the target listens on %q and %q: %v", target.ListenControl, target.ListenData, err)
	}
	g := groups(&config.Source{Groups: []config.SourceGroup{{Target: config.Endpoint{Address: "t:4008"}}, {Target: config.Endpoint{Control: "t:1", Data: "t:2"}}}})
	if g[0].Control != "t:4008" || g[0].Data != "t:4008" || g[1].Control != "t:1" || g[1].Data != "t:2" {
		t.Errorf("the source dials %+v", g)
	}
}

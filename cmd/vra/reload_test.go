package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/control/systemd/manager"
)

// TestUnderSystemd runs a VRA that is source and target as the service manager does: it tells when it is ready and that it is well, takes in
// what may change when it is asked to read its file again, refuses the rest by name, and tells that it ends.
func TestUnderSystemd(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, site := range []string{"west", "east"} {
		authority, err := pairing.NewCA(site, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := authority.Issue(pairing.Identity{Role: "vra", ID: "vra-1"}, time.Now(), time.Hour)
		if err == nil {
			err = errors.Join(authority.Save(at(site+"-ca"), at(site+"-ca-key")), leaf.Save(at(site), at(site+"-key")))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at("store"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(change func(*config.VRA)) {
		t.Helper()
		c := &config.VRA{
			Site: "west", ID: "vra-1", DataDir: at("data"), RunDir: at("run"), Socket: at("s"),
			TLS:    config.TLS{CA: at("west-ca"), Cert: at("west"), Key: at("west-key"), PeerCA: at("east-ca"), PeerSite: "east"},
			Target: &config.Target{ListenControl: "127.0.0.1:0", ListenData: "127.0.0.1:0", Store: at("store")},
			Source: &config.Source{Groups: []config.SourceGroup{{
				Name: "shop", ID: 1, Stream: 2, Lineage: 3, Target: config.Endpoint{Control: "127.0.0.1:1", Data: "127.0.0.1:2"},
				Filters: []string{at("pool")}, Volumes: []config.SourceVolume{{Name: "vol1", ID: 1}},
			}}},
		}
		change(c)
		text, err := config.Marshal(c)
		if err == nil {
			err = os.WriteFile(at("vra.yaml"), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write(func(*config.VRA) {})
	m := manager.Listen(t)
	t.Setenv("NOTIFY_SOCKET", m.Socket)
	t.Setenv("WATCHDOG_USEC", "400000")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var said bytes.Buffer
	go func() { ended <- run(ctx, []string{"--config", at("vra.yaml"), "--nice", "0"}, &said, &said) }()
	m.Await("READY=1\nSTATUS=replicates")
	for said := m.Next(); said != "WATCHDOG=1"; said = m.Next() {
		t.Errorf("heard %q", said)
	}
	reload := func(change func(*config.VRA)) (status string) {
		t.Helper()
		write(change)
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.Await("RELOADING=1\nMONOTONIC_USEC=")
		return m.Await("READY=1\nSTATUS=")
	}
	c := api.DialUnix(at("s"))
	defer c.Close()
	holds := func(cap int64, priority string) {
		t.Helper()
		got, err := c.Shaping.Get(ctx, &holdfastv1.ShapingServiceGetRequest{})
		if err != nil || got.Shaping.CapNow != cap || got.Shaping.Groups[0].Priority != priority {
			t.Errorf("shaping %v, %v", got, err)
		}
	}
	holds(0, "medium")
	const good = "READY=1\nSTATUS=replicates"
	if got := reload(func(c *config.VRA) {
		c.Source.Shaping.Cap, c.Source.Groups[0].Priority, c.LogLevel = "20Mbit", "high", "debug"
	}); got != good {
		t.Errorf("%q", got)
	}
	holds(20e6, "high")
	got := reload(func(c *config.VRA) {
		c.Source.Shaping.Cap, c.RunDir, c.Source.Groups[0].Interval = "30Mbit", at("other"), config.MaxInterval
	})
	if want := "only a restart takes these in: run_dir, source.groups[0].interval"; !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	holds(20e6, "high")
	if got := reload(func(c *config.VRA) { c.Source.Shaping.Zone = "No/Where" }); !strings.Contains(got, "No/Where") {
		t.Errorf("%q", got)
	}
	if got := reload(func(c *config.VRA) { c.TLS.Key = at("none") }); !strings.Contains(got, "refused") || !strings.Contains(got, "tls.key") {
		t.Errorf("%q", got)
	}
	if got := reload(func(*config.VRA) {}); got != good {
		t.Errorf("%q", got)
	}
	holds(0, "medium")
	stop()
	m.Await("STOPPING=1")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, want := range []string{
		`msg="the configuration was read again" site=west vra=vra-1 changed="[source.groups[0].priority source.shaping.cap log_level]"`,
		`level=ERROR msg="the configuration is refused; what was in force stays so"`,
	} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %s in what it logged:\n%s", want, said.String())
		}
	}
}

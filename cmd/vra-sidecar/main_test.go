package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/daemon"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/control/systemd/manager"
)

// folder is a site's CA, a sidecar's certificate and its file.
func folder(t *testing.T) (file string, c *config.Sidecar, renew func(id string)) {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ca, err := pairing.NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(at("ca.pem"), at("ca-key.pem")); err != nil {
		t.Fatal(err)
	}
	renew = func(id string) {
		t.Helper()
		leaf, err := ca.Issue(pairing.Identity{Role: api.RoleSidecar, ID: id}, time.Now(), time.Hour)
		if err == nil {
			err = leaf.Save(at("cert.pem"), at("key.pem"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	renew("vra-1")
	c = &config.Sidecar{
		ID: "vra-1", VRASocket: at("vra.sock"), Socket: at("sidecar.sock"), DataDir: at("data"),
		TLS:    config.SidecarTLS{CA: at("ca.pem"), Cert: at("cert.pem"), Key: at("key.pem")},
		Listen: config.SidecarListen{Logs: "127.0.0.1:0", Commands: "127.0.0.1:0", Checkpoints: "127.0.0.1:0"},
	}
	text, err := config.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("sidecar.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return at("sidecar.yaml"), c, renew
}

func TestArguments(t *testing.T) {
	good, c, renew := folder(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("colour: red\n"), 0o600); err != nil {
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
	f("--config is needed", true, "--config", good, "more")
	f("not defined", true, "--colour")
	f("no such file", false, "--config", bad+"x")
	f("colour: unknown key", false, "--config", bad, "--check-config")
	says := func(want string, args ...string) {
		t.Helper()
		var stdout bytes.Buffer
		if err := run(context.Background(), args, &stdout, &stdout); err != nil || !strings.HasPrefix(stdout.String(), want) {
			t.Errorf("%q: %q, %v, want %q", args, stdout.String(), err, want)
		}
	}
	says("vra-sidecar devel (commit ", "--version")
	says("config ok", "--config", good, "--check-config")
	says("audit ok: 0 records", "--config", good, "--check-audit")
	var stdout bytes.Buffer
	if err := run(context.Background(), []string{"--help"}, &stdout, &stdout); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.DataDir, "audit.jsonl"), []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f("has no number", false, "--config", good, "--check-audit")
	renew("vra-2")
	f("is a certificate of west/sidecar/vra-2, and this is the sidecar vra-1", false, "--config", good, "--check-config")
	if err := os.Chmod(c.TLS.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	f("lets others read the key", false, "--config", good)
	if err := os.Remove(c.TLS.CA); err != nil {
		t.Fatal(err)
	}
	f("tls.ca: ", false, "--config", good)
}

// said is a log that a test reads.
type said struct{ on chan string } // each line

func (s *said) Write(p []byte) (int, error) {
	s.on <- string(p)
	return len(p), nil
}

// TestServe runs until it is told to stop, and reads its certificates again on SIGHUP, unless they are no good.
func TestServe(t *testing.T) {
	file, _, renew := folder(t)
	m := manager.Listen(t)
	t.Setenv("NOTIFY_SOCKET", m.Socket)
	t.Setenv("WATCHDOG_USEC", "400000")
	ctx, stop := context.WithCancel(t.Context())
	log := &said{on: make(chan string, 100)}
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--config", file}, log, log) }()
	next := func(want string) {
		t.Helper()
		select {
		case line := <-log.on:
			if !strings.Contains(line, want) {
				t.Errorf("it says %s, want %s", line, want)
			}
		case err := <-done:
			t.Fatal(err)
		}
	}
	next("vra-sidecar runs")
	m.Await("READY=1\nSTATUS=speaks for its vra")
	for said := m.Next(); said != "WATCHDOG=1"; said = m.Next() {
		t.Errorf("the manager hears %q", said)
	}
	hup := func() (status string) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.Await("RELOADING=1\n")
		return m.Await("READY=1\nSTATUS=")
	}
	renew("vra-1")
	if got := hup(); strings.Contains(got, "refused") {
		t.Error(got)
	}
	next("changed=[certificates]")
	renew("vra-2")
	if got := hup(); !strings.Contains(got, "refused") {
		t.Error(got)
	}
	next("is a certificate of west/sidecar/vra-2")
	renew("vra-1")
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append(text, "limits: {rate: 7}\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	hup()
	next("only a restart takes these in: limits.rate")
	stop()
	m.Await("STOPPING=1")
	if err := <-done; err != nil {
		t.Error(err)
	}
	next("vra-sidecar ends")
}

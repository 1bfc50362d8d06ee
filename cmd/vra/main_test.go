package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
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
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, errUsage) != usage || stdout.Len() > 0 {
			t.Errorf("%q: %v (stdout %q), want %q", args, err, stdout.String(), want)
		}
	}
	f("--config is needed", true)
	f("--config is needed", true, "--config", bad, "more")
	f("not defined", true, "--colour")
	f("no such file", false, "--config", filepath.Join(dir, "none.yaml"))
	f("colour", false, "--config", bad, "--check-config")
	var stdout bytes.Buffer
	if err := run(context.Background(), []string{"--version"}, &stdout, &stdout); err != nil || !strings.HasPrefix(stdout.String(), "vra ") {
		t.Errorf("--version: %q, %v", stdout.String(), err)
	}
	if err := run(context.Background(), []string{"--help"}, &stdout, &stdout); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}

// TestSocket takes over what a dead process left, and nothing else.
func TestSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", fi, err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket in use: %v", err)
	}
	l.SetUnlinkOnClose(false) // as a killed process leaves it
	l.Close()
	if l, err = listen(path); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); err == nil {
		t.Error("a file that is no socket was taken over")
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

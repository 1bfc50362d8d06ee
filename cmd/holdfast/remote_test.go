package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/control/sidecar"
)

// behind stands a sidecar before s until the test ends, and says how somebody of a role reaches it.
func (s *site) behind(t *testing.T, name, role string) *config.ContextSidecar {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ca, err := pairing.NewCA(name, time.Now())
	must(err)
	must(ca.Save(at("ca.pem"), at("ca-key.pem")))
	for _, who := range []pairing.Identity{{Role: api.RoleSidecar, ID: "vra-1"}, {Role: role, ID: "ann"}} {
		leaf, err := ca.Issue(who, time.Now(), time.Hour)
		must(err)
		must(leaf.Save(at(who.Role+".pem"), at(who.Role+"-key.pem")))
	}
	c := &config.Sidecar{
		ID: "vra-1", VRASocket: s.serve(t), Socket: at("s"), DataDir: at("data"), TLS: config.SidecarTLS{CA: at("ca.pem"), Cert: at("sidecar.pem"), Key: at("sidecar-key.pem")},
		Listen: config.SidecarListen{Logs: "127.0.0.1:0", Commands: "127.0.0.1:0", Checkpoints: "127.0.0.1:0"},
	}
	must(os.WriteFile(at("vra.log"), []byte("one\npassword=hunter2\nthree\x1b[2J\n"), 0o600))
	c.Logs = []config.SidecarLog{{Name: "vra", Path: at("vra.log")}, {Name: "none", Path: at("none.log")}}
	must(c.Validate())
	car, err := sidecar.Open(c, slog.New(slog.DiscardHandler))
	must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- car.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	a := car.Addresses()
	return &config.ContextSidecar{Commands: a.Commands, Checkpoints: a.Checkpoints, Logs: a.Logs, TLS: config.SidecarTLS{CA: at("ca.pem"), Cert: at(role + ".pem"), Key: at(role + "-key.pem")}}
}

// TestContextOfSidecars: what is asked through sidecars is what is answered without them.
func TestContextOfSidecars(t *testing.T) {
	source, target := twoSites()
	c := &config.Context{Group: "lab", VRAs: []config.ContextVRA{
		{Site: "production", Role: api.RoleSource, Sidecar: source.behind(t, "production", api.RoleOperator)},
		{Site: "recovery", Role: api.RoleTarget, Sidecar: target.behind(t, "recovery", api.RoleMonitor)},
	}}
	write := func() string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "context.yaml")
		text, err := config.Marshal(c)
		if err = errors.Join(err, os.WriteFile(path, text, 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	over, direct := write(), contextFile(t, source, target)
	for _, args := range [][]string{{"status"}, {"checkpoint", "list"}, {"shaping", "show"}} {
		args = append(args, "-o", "json")
		_, want, _ := holdfast(t, direct, args...)
		code, got, errs := holdfast(t, over, args...)
		if code != 0 || got != want {
			t.Errorf("%q: %d, %s%s, want %s", args, code, got, errs, want)
		}
	}
	if code, _, errs := holdfast(t, over, "checkpoint", "pin", "2"); code != 1 || !strings.Contains(errs, "recovery/monitor/ann may not call CheckpointsService/Pin") {
		t.Errorf("who only looks pins a checkpoint: %d, %s", code, errs)
	}
	c.VRAs[0].Sidecar.ID = "vra-1"
	if code, _, errs := holdfast(t, write(), "shaping", "show"); code != 0 {
		t.Errorf("the sidecar that is named: %d, %s", code, errs)
	}
	c.VRAs[0].Sidecar.ID = "vra-9"
	if code, _, errs := holdfast(t, write(), "shaping", "show"); code != 1 || !strings.Contains(errs, "it is not production/sidecar/vra-9") {
		t.Errorf("another sidecar of the site: %d, %s", code, errs)
	}
	c.VRAs[0].Site = "elsewhere"
	if code, _, errs := holdfast(t, write(), "shaping", "show"); code != 1 || !strings.Contains(errs, "is a certificate of the site production") {
		t.Errorf("another site's certificate: %d, %s", code, errs)
	}
	c.VRAs[0].Sidecar.TLS.Key += "x"
	if code, _, errs := holdfast(t, write(), "shaping", "show"); code != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("without a key: %d, %s", code, errs)
	}
}

// TestLogs shows what is logged, and gathers it, through a sidecar; secrets stay behind.
func TestLogs(t *testing.T) {
	source, target := twoSites()
	c := &config.Context{Group: "lab", VRAs: []config.ContextVRA{
		{Site: "production", Role: api.RoleSource, Sidecar: source.behind(t, "production", api.RoleOperator)},
		{Site: "recovery", Role: api.RoleTarget, Sidecar: target.behind(t, "recovery", api.RoleAdmin)},
	}}
	over, direct := filepath.Join(t.TempDir(), "context.yaml"), contextFile(t, source, target)
	text, err := config.Marshal(c)
	if err = errors.Join(err, os.WriteFile(over, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "b.tar")
	f := func(context string, code int, want, said string, args ...string) {
		t.Helper()
		got, stdout, stderr := holdfast(t, context, args...)
		if got != code || !strings.Contains(stdout, want) || !strings.Contains(stderr, said) || strings.Contains(stdout, "hunter2") {
			t.Errorf("%q: exit %d, %q, %q; want %d, %q, %q", args, got, stdout, stderr, code, want, said)
		}
	}
	f(over, 0, `"name": "none",
    "bytes": 0,
    "files": 0,
    "changed": null,
    "problem": "no such file or directory"`, "", "logs", "-o", "json")
	f(over, 0, "LOG ", "", "logs")
	f(over, 0, "one\npassword=[removed]\nthree\\x1b[2J\n", "", "logs", "vra")
	f(over, 0, "three", "", "logs", "vra", "--last", "1", "--of", "target")
	f(over, 0, "", "", "logs", "vra", "--since", "1h") // no line says when it was
	f(over, exitFailed, "", "no log \"many\" here", "logs", "many")
	f(over, exitUsage, "", "--last goes with the name of a log", "logs", "--last", "1")
	f(over, exitUsage, "", "0 or more", "logs", "vra", "--last", "-1")
	f(over, exitUsage, "", "want source or target", "logs", "--of", "both")
	f(direct, exitFailed, "", "logs are told by a sidecar", "logs")
	f(over, exitUsage, "", "--out is missing", "bundle")
	f(over, exitFailed, "", "may not call", "bundle", "--out", out) // an operator
	if _, err := os.Stat(out); err == nil {
		t.Error("half a bundle is left")
	}
	f(over, 0, out, "", "bundle", "--out", out, "--of", "target", "--since", "1h")
	f(over, exitFailed, "", "file exists", "bundle", "--out", out, "--of", "target")
	bundle, err := os.ReadFile(out)
	if err != nil || !strings.Contains(string(bundle), "manifest.json") || strings.Contains(string(bundle), "hunter2") {
		t.Errorf("%d bytes of a bundle, %v", len(bundle), err)
	}
}

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
	c.VRAs[0].Site = "elsewhere"
	if code, _, errs := holdfast(t, write(), "shaping", "show"); code != 1 || !strings.Contains(errs, "is a certificate of the site production") {
		t.Errorf("another site's certificate: %d, %s", code, errs)
	}
	c.VRAs[0].Sidecar.TLS.Key += "x"
	if code, _, errs := holdfast(t, write(), "shaping", "show"); code != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("without a key: %d, %s", code, errs)
	}
}

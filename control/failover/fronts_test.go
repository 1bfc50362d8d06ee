package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// TestFront: a machine finds its disks over vhost-user. Where its file says otherwise, the target does not serve one there, or the hypervisor refuses it or does not start it so, it
// finds them over NBD, and the job says why. What fails over NBD too fails.
func TestFront(t *testing.T) {
	t.Parallel()
	f := func(front, socket string, fail func(h *host, what string) error, overVhost bool, defined, started string) {
		t.Helper()
		all, err := Machines(&config.Machines{Machines: []config.Machine{{Name: "web", Disks: []string{"data", "log"}, Front: front}}}, nil, recovery.Test)
		if err != nil {
			t.Fatal(err)
		}
		h := newHost(t)
		h.fail = func(what, _ string) error {
			if fail != nil {
				return fail(h, what)
			}
			return nil
		}
		Fronts(t.Context(), h, all)
		s := &site{views: []*holdfastv1.View{{Id: "v1", Name: "r1 k", Volumes: []*holdfastv1.ViewVolume{
			{Name: "data", Nbd: "nbd", VhostUser: "/run/v1-1"}, {Name: "log", Nbd: "nbd2", VhostUser: socket}}}}}
		c := carrier{Runner: newRunner(t, s, h), job: &Job{Plan: &recovery.Plan{ID: "r1", Key: "k", Kind: recovery.Test, Machines: all}}, machines: h}
		does := func(verb recovery.Verb, want string) (ok bool) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := c.do(ctx, recovery.Step{Do: verb, Machine: "web"})
			text := got.text
			if err != nil {
				text = "error: " + err.Error()
			}
			if text != want {
				t.Errorf("%s, %s: it says %q, want %q", front, verb, text, want)
			}
			return err == nil
		}
		if !does(recovery.Define, defined) || !does(recovery.Start, started) {
			return
		}
		want := []hypervisor.Disk{{Volume: "data", NBD: "nbd"}, {Volume: "log", NBD: "nbd2"}}
		if overVhost {
			want = []hypervisor.Disk{{Volume: "data", VhostUser: "/run/v1-1"}, {Volume: "log", VhostUser: socket}}
		}
		if m := h.machines["web"]; !slices.Equal(m.def.Disks, want) || m.def.VhostUser != overVhost || m.state != hypervisor.Running {
			t.Errorf("%s: %+v", front, m)
		}
	}
	const socket = "/run/v1-2"
	shared := func(h *host) bool { m := h.machines["web"]; return m != nil && m.def.VhostUser }
	defining, starting := 0, 0
	f("", socket, nil, true, "disks over vhost-user", "")
	f(config.FrontVhostUser, socket, nil, true, "disks over vhost-user", "")
	f(config.FrontNBD, socket, nil, false, "disks over NBD", "")
	f("", "", nil, false, "disks over NBD: the target serves volume log over NBD alone", "")
	f("", socket, func(h *host, what string) error {
		if what == "shares" {
			return errors.New("libvirt is too old")
		}
		return nil
	}, false, "disks over NBD: libvirt is too old", "")
	f("", socket, func(_ *host, what string) error {
		if defining++; what == "define" && defining <= 4 { // the first question is whether memory is shared, and the third whether anybody answers
			return errors.New("no such device")
		}
		return nil
	}, false, "disks over NBD: no such device", "")
	defining = 0
	f("", socket, func(_ *host, what string) error {
		if defining++; what == "define" && defining == 2 {
			return errors.New("libvirtd is restarting")
		}
		return nil
	}, true, "disks over vhost-user", "")
	f("", socket, func(_ *host, what string) error {
		if what == "define" || what == "state" {
			return errors.New("nobody answers at " + what)
		}
		return nil
	}, true, "error: nobody answers at define", "")
	f("", socket, func(h *host, what string) error {
		switch what {
		case "start": // it was started by a command that was killed then
			h.machines["web"].state = hypervisor.Running
			return errors.New("libvirtd is restarting")
		case "stop":
			t.Error("the power of a machine that runs is cut")
		}
		return nil
	}, true, "disks over vhost-user", "")
	f("", socket, func(h *host, what string) error {
		switch what {
		case "start", "state":
			return errors.New("nobody answers at " + what)
		case "stop":
			t.Error("the power of a machine is cut that may run")
		}
		return nil
	}, true, "disks over vhost-user", "error: nobody answers at start")
	f("", socket, func(h *host, what string) error {
		if what == "start" && shared(h) {
			return errors.New("no memory to share")
		}
		return nil
	}, false, "disks over vhost-user", "disks over NBD: no memory to share")
	f("", socket, func(_ *host, what string) error {
		if what == "start" {
			return errors.New("no kernel")
		}
		return nil
	}, false, "disks over vhost-user", "error: no kernel")
	f("", socket, func(_ *host, what string) error {
		if what == "start" {
			starting++
			return fmt.Errorf("reason %d", starting)
		}
		return nil
	}, false, "disks over vhost-user", "error: over vhost-user: reason 1; and over NBD: reason 2")
}

// hangsShared is a host on which machines hang over vhost-user.
type hangsShared struct {
	*host
	hung int
}

func (h *hangsShared) Start(ctx context.Context, name string) error {
	if h.machines[name].def.VhostUser {
		h.hung++
		<-ctx.Done()
		return ctx.Err()
	}
	return h.host.Start(ctx, name)
}

// TestHangsOnce: after a machine that hung over vhost-user those of the same job do not wait for that again.
func TestHangsOnce(t *testing.T) {
	t.Parallel()
	plan := testPlan(recovery.Test)
	for i := range plan.Machines {
		plan.Machines[i].VhostUser = true
	}
	plan.ID = "r1"
	h := &hangsShared{host: newHost(t)}
	s := &site{views: []*holdfastv1.View{{Id: "v1", Name: "r1 " + plan.Key, Volumes: []*holdfastv1.ViewVolume{{Name: "data", Nbd: "nbd", VhostUser: "/run/v1-1"}}}}}
	c := carrier{Runner: newRunner(t, s, h.host), job: &Job{Plan: plan}, machines: h}
	for _, name := range []string{"db", "web"} {
		if _, err := c.do(t.Context(), recovery.Step{Do: recovery.Define, Machine: name}); err != nil {
			t.Fatal(err)
		}
	}
	f := func(name, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // half of it passes, once
		defer cancel()
		if got, err := c.do(ctx, recovery.Step{Do: recovery.Start, Machine: name}); err != nil || got.text != want {
			t.Errorf("%s: it says %q, want %q: %v", name, got.text, want, err)
		}
		if m := h.machines[name]; m.def.VhostUser || m.state != hypervisor.Running {
			t.Errorf("%s: %+v", name, m)
		}
	}
	f("db", "disks over NBD: context deadline exceeded")
	f("web", "disks over NBD: machine db hung: context deadline exceeded")
	if h.hung != 1 {
		t.Errorf("%d machines hung", h.hung)
	}
}

// TestFrontOfBefore: a job that an older release wrote down reaches its disks as it did, and one whose command has ended begins nothing instead.
func TestFrontOfBefore(t *testing.T) {
	t.Parallel()
	var m recovery.Machine
	if err := json.Unmarshal([]byte(`{"name":"web","disks":[{"volume":"data"}],"networks":null}`), &m); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	s := &site{views: []*holdfastv1.View{{Id: "v1", Name: "r1 k", Volumes: []*holdfastv1.ViewVolume{{Name: "data", Nbd: "nbd", VhostUser: "/run/v1-1"}}}}}
	c := carrier{Runner: newRunner(t, s, h), job: &Job{Plan: &recovery.Plan{ID: "r1", Key: "k", Kind: recovery.Test}}, machines: h}
	if got, err := c.define(t.Context(), &m); err != nil || got.text != "disks over NBD" || h.machines["web"].def.VhostUser || h.machines["web"].def.Disks[0].NBD != "nbd" {
		t.Errorf("%+v, %v: %+v", got, err, h.machines["web"])
	}
	ended, end := context.WithCancel(t.Context())
	end()
	refused := errors.New("it ends")
	if _, err := c.instead(ended, refused, func() error { t.Error("begun"); return nil }); !errors.Is(err, refused) {
		t.Error(err)
	}
}

package failover

import (
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/recovery"
)

// TestGuestsConnected: no second copies are started while a guest uses the disks at the source, whatever was stopped there: its job is taken back, and
// nothing was cut or begun. A connection that is on its way out is waited for, and who says that two may live is believed.
func TestGuestsConnected(t *testing.T) {
	t.Parallel()
	f := func(kind recovery.Kind, override string, phase recovery.Phase, used ...int32) {
		t.Helper()
		s, h := &site{used: used}, newHost(t)
		r := newRunner(t, s, h)
		r.Source = r.Target
		p := testPlan(kind)
		p.Override = override
		j := begin(t, inMemory(t), p)
		defer j.Close()
		if err := r.Run(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		report, err := r.Report(j)
		if err != nil || j.State.Phase != phase || (s.begun > 0) != (phase == recovery.Running) {
			t.Errorf("%v: %+v, begun %d times, %v", used, j.State, s.begun, err)
		}
		if why := deref(report.Reason); phase == recovery.Over && (j.State.Verdict != recovery.Failed || !strings.Contains(why, "volume data at the source") || !strings.Contains(why, "machines write")) {
			t.Errorf("%v: %+v, %s", used, j.State, why)
		}
	}
	f(recovery.Move, "", recovery.Over, 1)
	f(recovery.Live, "", recovery.Over, 2)
	f(recovery.Move, "", recovery.Running, 1, 1, 0)
	f(recovery.Live, "", recovery.Running, 0)
	f(recovery.Live, "the site burnt", recovery.Running, 1)
}

// TestSourceOffAndUsed: a domain that is off while its disks are in use is not the one that has them; that is known before anything is stopped.
func TestSourceOffAndUsed(t *testing.T) {
	t.Parallel()
	s := &site{used: []int32{1}}
	r := newRunner(t, s, newHost(t))
	p := testPlan(recovery.Move)
	m := &p.Machines[1]
	m.Source.Domain = "web1"
	if err := r.checkUsed(t.Context(), p, m); err != nil {
		t.Errorf("nobody to ask: %v", err)
	}
	r.Source = r.Target
	if err := r.checkUsed(t.Context(), p, m); err == nil || !strings.Contains(err.Error(), "machine web: its source, domain web1, is off, and yet a guest is connected to volume data") {
		t.Error(err)
	}
	s.used = []int32{0}
	if err := r.checkUsed(t.Context(), p, m); err != nil {
		t.Errorf("nobody is connected: %v", err)
	}
}

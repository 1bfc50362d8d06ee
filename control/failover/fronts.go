package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// A machine has its disks over vhost-user, which is faster, unless its file says otherwise. What keeps it from that keeps it from nothing else: it has all of
// them over NBD then, and the job says why.

// onView is a machine's definition on the disks that a view serves, over vhost-user or over NBD.
func onView(m *recovery.Machine, v *holdfastv1.View, shared bool) (hypervisor.Machine, error) {
	def := m.Machine
	def.VhostUser, def.Disks = shared, slices.Clone(def.Disks)
	for i := range def.Disks {
		d := &def.Disks[i]
		vol, err := served(v, d.Volume)
		if err != nil {
			return def, err
		}
		if !shared {
			d.NBD = vol.GetNbd()
		} else if d.VhostUser = vol.GetVhostUser(); d.VhostUser == "" {
			return def, fmt.Errorf("the target serves volume %s over NBD alone", d.Volume)
		}
	}
	return def, nil
}

// standing is the view that the job's machines stand on.
func (c *carrier) standing(ctx context.Context) (*holdfastv1.View, error) {
	v, err := c.disks(ctx)
	if err == nil && v == nil {
		err = errors.New("the view is gone: somebody closed it")
	}
	return v, err
}

// define makes a machine known, on the disks that the target serves.
func (c *carrier) define(ctx context.Context, m *recovery.Machine) (found, error) {
	v, err := c.standing(ctx)
	if err != nil {
		return found{}, err
	}
	if !m.VhostUser {
		return overNBD(m.OverNBD), c.defineOverNBD(ctx, m, v)
	}
	def, err := onView(m, v, true)
	if err == nil {
		if err = c.machines.Define(ctx, def); err != nil && !invariant.Planted("failover/defines-unanswered") {
			if _, lost := c.machines.State(ctx, m.Name); lost != nil { // nobody has refused anything
				return found{}, err
			}
			err = c.machines.Define(ctx, def) // as when it was not there for a moment
		}
	}
	if err == nil {
		return found{text: "disks over vhost-user"}, nil
	}
	return c.instead(ctx, err, func() error { return c.defineOverNBD(ctx, m, v) })
}

func (c *carrier) defineOverNBD(ctx context.Context, m *recovery.Machine, v *holdfastv1.View) error {
	def, err := onView(m, v, false)
	if err == nil {
		err = c.machines.Define(ctx, def)
	}
	return err
}

// start starts a machine. One that does not start over vhost-user, in half the time that there is, starts over NBD, and so do those after one whose time ended.
func (c *carrier) start(ctx context.Context, m *recovery.Machine) (found, error) {
	if !m.VhostUser {
		return found{}, c.machines.Start(ctx, m.Name)
	}
	if c.hung != nil {
		return c.startOverNBD(ctx, m, c.hung)
	}
	first, cancel := ctx, func() {}
	if late, ok := ctx.Deadline(); ok {
		first, cancel = context.WithTimeout(ctx, time.Until(late)/2)
	}
	err := c.machines.Start(first, m.Name)
	hung := first.Err() != nil && ctx.Err() == nil
	cancel()
	if err == nil {
		return found{}, nil
	}
	got, ferr := c.startOverNBD(ctx, m, err)
	if hung && ferr == nil && got.text != "" && !invariant.Planted("failover/each-hangs") {
		c.hung = fmt.Errorf("machine %s hung: %w", m.Name, err)
	}
	return got, ferr
}

// startOverNBD starts a machine over NBD that did not start over vhost-user, unless it runs already: a command that was killed may have started it, and its power would take
// what it wrote. One that is not known to stand is left alone.
func (c *carrier) startOverNBD(ctx context.Context, m *recovery.Machine, why error) (found, error) {
	state, err := c.machines.State(ctx, m.Name)
	switch {
	case invariant.Planted("failover/cuts-what-runs"):
	case err != nil:
		return found{}, why
	case state == hypervisor.Running:
		return found{}, nil
	}
	return c.instead(ctx, why, func() error {
		v, err := c.standing(ctx)
		if err == nil {
			err = c.machines.Stop(ctx, m.Name, hypervisor.ByForce)
		}
		if err == nil {
			err = c.defineOverNBD(ctx, m, v)
		}
		if err == nil {
			err = c.machines.Start(ctx, m.Name)
		}
		return err
	})
}

// instead does over NBD what could not be done over vhost-user, unless the job is to end.
func (c *carrier) instead(ctx context.Context, why error, do func() error) (found, error) {
	if ctx.Err() != nil || invariant.Planted("failover/vhost-user-or-nothing") {
		return found{}, why
	}
	err := do()
	switch {
	case err == nil:
		return overNBD(why.Error()), nil
	case err.Error() == why.Error(): // that was not it
		return found{}, err
	}
	return found{}, fmt.Errorf("over vhost-user: %w; and over NBD: %w", why, err)
}

// overNBD says that a machine has its disks over NBD, and why.
func overNBD(why string) found {
	if why == "" {
		return found{text: "disks over NBD"}
	}
	return found{text: "disks over NBD: " + why}
}

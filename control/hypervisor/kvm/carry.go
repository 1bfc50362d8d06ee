package kvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Filter is the filter of a plan's volume.
type Filter interface {
	// Detach says that somebody may write past it from now on.
	Detach(context.Context) error
	// Attach says that nobody does any more.
	Attach(context.Context) error
	// Join says that QEMU mirrors to its volume from now on.
	Join(context.Context, Join) error
	// Serves says whether it takes guests.
	Serves(context.Context) error
}

// How long one step may take: a command of QEMU's waits for what the guest has in flight on its
// disk, and the filter may be starting again.
const (
	stepWait   = 30 * time.Second
	filterWait = 10 * time.Second
	filterLook = 100 * time.Millisecond
	awaitLook  = 10 * time.Millisecond
)

// Carry carries a plan out. When a step fails it undoes those before it, the last first, and
// says how the disk stands. Once it has begun it goes on to one end or the other, though ctx may end.
func Carry(ctx context.Context, m *Monitor, f Filter, p Plan) error {
	return carry(ctx, m, f, p, filterWait)
}

func carry(ctx context.Context, m *Monitor, f Filter, p Plan, wait time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := carrier{ctx: context.WithoutCancel(ctx), m: m, f: f, wait: wait}
	var tidy []error
	for i, s := range p.Steps {
		err := c.do(s)
		switch {
		case err == nil:
		case s.Tidy:
			tidy = append(tidy, fmt.Errorf("%s: %w", s.What, err))
		case s.Wish == Attached && c.f.Serves(c.ctx) != nil:
			// Going back would wait for the filter, and fail what the guest has in flight.
			return fmt.Errorf("the guest is on the filter, which is gone and could not be told (%w): start it, and attach again", err)
		default:
			return errors.Join(fmt.Errorf("%s: %w", s.What, err), c.back(p.Steps[:i]))
		}
	}
	if len(tidy) > 0 {
		return fmt.Errorf("the disk is where it is to be; what could not be cleared away: %w", errors.Join(tidy...))
	}
	return nil
}

type carrier struct {
	ctx context.Context
	m   *Monitor
	f   Filter

	wait time.Duration // for a filter that is gone
}

func (c carrier) do(s Step) error {
	ctx, cancel := context.WithTimeout(c.ctx, stepWait)
	defer cancel()
	switch {
	case s.QMP != nil:
		err := c.m.Do(ctx, *s.QMP, nil)
		if refused, is := errors.AsType[*Refused](err); is && s.Already != "" && strings.Contains(refused.Desc, s.Already) {
			return c.serves(ctx, s.Serves)
		}
		return err
	case s.Make != nil && s.Make.awaited():
		return c.await(ctx, *s.Make)
	case s.Make != nil:
		return c.expect(ctx, *s.Make)
	case s.Join != nil:
		return c.f.Join(c.ctx, *s.Join) // which bounds itself
	}
	return c.tell(s.Wish)
}

// serves makes sure that it is QEMU that serves NBD at the socket; none: there is nothing to be sure of.
func (c carrier) serves(ctx context.Context, socket string) error {
	if socket == "" || invariant.Planted("kvm/any-server") {
		return nil
	}
	pid, err := nbdServer(ctx, socket)
	if err == nil && pid != 0 && c.m.PID != 0 && pid != c.m.PID {
		err = fmt.Errorf("process %d serves there, and QEMU is %d", pid, c.m.PID)
	}
	if err != nil {
		return fmt.Errorf("QEMU has an NBD server already, which is not at %s (%w) and so is somebody else's: end that (nbd-server-stop), or have the disk shown on it, if it is at a unix socket, by --serve", socket, err)
	}
	return nil
}

// nbdServer is the process that serves NBD at the socket, 0 when that is not known.
func nbdServer(ctx context.Context, socket string) (pid int, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var greeting [8]byte
	if _, err := io.ReadFull(c, greeting[:]); err != nil {
		return 0, err
	}
	if string(greeting[:]) != "NBDMAGIC" {
		return 0, errors.New("it speaks no NBD")
	}
	return peer(c.(*net.UnixConn)), nil
}

// tell tells the filter, which may be starting again just now.
func (c carrier) tell(w Wish) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.wait)
	defer cancel()
	look := time.NewTicker(filterLook)
	defer look.Stop()
	for {
		var err error
		switch w {
		case Detached:
			err = c.f.Detach(ctx)
		case Attached:
			err = c.f.Attach(ctx)
		}
		if err == nil || c.f.Serves(ctx) == nil {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return err
		}
	}
}

func (e *Expect) awaited() bool { return e.Ready != "" || e.Ended != "" || e.Withdrawn != "" }

// await looks until it is so. What QEMU is told to end it ends in its own time.
func (c carrier) await(ctx context.Context, e Expect) error {
	look := time.NewTicker(awaitLook)
	defer look.Stop()
	for {
		var jobs []struct {
			Device string
			Ready  bool
		}
		var exports []struct{ ID string }
		err := c.m.Do(ctx, Command{Execute: "query-block-jobs"}, &jobs)
		if err == nil {
			err = c.m.Do(ctx, Command{Execute: "query-block-exports"}, &exports)
		}
		if err != nil {
			return err
		}
		job := func(id string) int {
			for i := range jobs {
				if jobs[i].Device == id {
					return i
				}
			}
			return -1
		}
		shown := slices.ContainsFunc(exports, func(x struct{ ID string }) bool { return x.ID == e.Withdrawn })
		switch {
		case e.Ready != "" && job(e.Ready) < 0:
			return fmt.Errorf("job %s has ended at once: what it was to mirror to does not answer", e.Ready)
		case e.Ready != "" && jobs[job(e.Ready)].Ready, e.Ended != "" && job(e.Ended) < 0, e.Withdrawn != "" && !shown:
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("not in time: %w", ctx.Err())
		}
	}
}

func (c carrier) expect(ctx context.Context, e Expect) error {
	g, err := Look(ctx, c.m)
	if err != nil {
		return err
	}
	if e.Device == "" {
		n := g.node(e.Node)
		if n == nil || n.Bytes != e.Bytes {
			return fmt.Errorf("node %s is %+v, want %d bytes", e.Node, n, e.Bytes)
		}
		return nil
	}
	for _, d := range g.Disks {
		if d.Device == e.Device && d.Root.Name == e.Node {
			return nil
		}
	}
	return fmt.Errorf("%s is not on node %s", e.Device, e.Node)
}

// back undoes the steps, the last first. A monitor that was lost is tried again: the guest may be paused.
func (c carrier) back(steps []Step) error {
	var errs []error
	if c.m.pass != nil {
		c.m.dead = nil
	}
	if c.m.dead != nil {
		m, err := Dial(c.ctx, c.m.socket)
		if err != nil {
			return fmt.Errorf("and how the disk stands is not known: %w", err)
		}
		defer m.Close()
		c.m = m
	}
	for i := len(steps) - 1; i >= 0; i-- {
		s := steps[i]
		if s.Undo != nil && !(invariant.Planted("kvm/half-back") && len(errs) == 0 && i == 0) {
			ctx, cancel := context.WithTimeout(c.ctx, stepWait)
			if err := c.m.Do(ctx, *s.Undo, nil); err != nil {
				errs = append(errs, err)
			}
			cancel()
		}
		if s.Undone != NoWish {
			if err := c.tell(s.Undone); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("and going back did not succeed: %w", errors.Join(errs...))
	}
	return errors.New("the disk is where it was")
}

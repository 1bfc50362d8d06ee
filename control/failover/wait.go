package failover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
)

// How often is looked whether what a machine is waited for has come.
const (
	serialEvery = 20 * time.Millisecond
	stateEvery  = time.Second
	tcpEvery    = 200 * time.Millisecond
	scriptEvery = time.Second
)

// wait waits until what the machine is waited for has come, or the machine is off.
func (c *carrier) wait(ctx context.Context, s recovery.Step, m *recovery.Machine) (found, error) {
	w := m.Wait
	switch w.Kind {
	case config.WaitSerial:
		return c.waitSerial(ctx, m)
	case config.WaitTCP:
		var d net.Dialer
		return c.until(ctx, m.Name, tcpEvery, func() (found, error) {
			conn, err := d.DialContext(ctx, "tcp", w.What)
			if err == nil {
				conn.Close()
			}
			return found{text: w.What + " takes connections"}, err
		})
	case config.WaitScript:
		return c.until(ctx, m.Name, scriptEvery, func() (found, error) { return c.script(ctx, s, []string{w.What}) })
	}
	return found{}, fmt.Errorf("this release does not know how to wait for %q", w)
}

// until tries again until it succeeds.
func (c *carrier) until(ctx context.Context, name string, every time.Duration, try func() (found, error)) (found, error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		got, err := try()
		if err == nil {
			return got, nil
		}
		if serr := c.runs(ctx, name); serr != nil && ctx.Err() == nil {
			return got, serr
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return got, errors.Join(fmt.Errorf("%w: it has not come", ctx.Err()), err)
		}
	}
}

// runs says that a machine does not run any more.
func (c *carrier) runs(ctx context.Context, name string) error {
	state, err := c.machines.State(ctx, name)
	if err == nil && state != hypervisor.Running {
		err = fmt.Errorf("the machine is %s", state)
	}
	return err
}

// waitSerial waits for a text on the serial port, which may come in pieces.
func (c *carrier) waitSerial(ctx context.Context, m *recovery.Machine) (found, error) {
	var said []byte // the end of it: what the text may have begun in
	var off int64
	want := []byte(m.Wait.What)
	looked := c.Now()
	return c.untilSaid(ctx, func() (bool, found, error) {
		p, err := c.machines.Serial(ctx, m.Name, off)
		if err != nil {
			return true, found{}, err
		}
		off += int64(len(p))
		said = append(said, p...)
		if at := bytes.Index(said, want); at >= 0 {
			return true, found{text: line(said, at)}, nil
		}
		said = said[max(0, len(said)-len(want)-maxLine):]
		if len(p) == 0 && c.Now().Sub(looked) >= stateEvery {
			looked = c.Now()
			if err := c.runs(ctx, m.Name); err != nil && ctx.Err() == nil {
				return true, found{text: lastLine(said)}, fmt.Errorf("%w; it did not say %q", err, want)
			}
		}
		return false, found{text: lastLine(said)}, nil
	})
}

// untilSaid looks at what the machine says until it is done.
func (c *carrier) untilSaid(ctx context.Context, look func() (bool, found, error)) (found, error) {
	tick := time.NewTicker(serialEvery)
	defer tick.Stop()
	for {
		done, got, err := look()
		if done {
			return got, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return got, fmt.Errorf("%w: the machine has not said it", ctx.Err())
		}
	}
}

const maxLine = 256

// line is the line around a place.
func line(said []byte, at int) string {
	from := bytes.LastIndexByte(said[:at], '\n') + 1
	rest := said[from:]
	if end := bytes.IndexAny(rest[at-from:], "\r\n"); end >= 0 {
		rest = rest[:at-from+end]
	}
	return string(bytes.ToValidUTF8(rest[:min(len(rest), maxLine)], []byte("?")))
}

// lastLine is the last that it said.
func lastLine(said []byte) string {
	said = bytes.TrimSpace(said)
	if len(said) == 0 {
		return ""
	}
	return "it said last: " + line(said, len(said)-1)
}

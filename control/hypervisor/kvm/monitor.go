package kvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Monitor is a connection to QEMU's monitor. One command runs at a time; events are passed over.
// After an error that is no *Refused the connection is of no more use, and what the command did
// is not known.
type Monitor struct {
	pass    func(ctx context.Context, text string) (string, error) // puts a command to QEMU in place of conn
	socket  string
	conn    *net.UnixConn
	in      *io.LimitedReader
	decoder *json.Decoder
	next    int
	dead    error
	ending  bool // QEMU said that it ends: by the event SHUTDOWN, or as its answer to quit

	// Version is QEMU's: major, minor.
	Version [2]int
	// PID is the process that listens on the socket; 0 when that is not known.
	PID int
}

const (
	// maxAnswer bounds what QEMU may say at once: a node takes some 2 KiB.
	maxAnswer = 32 << 20
	// greetWait is how long QEMU may take to greet: it does so at once, unless somebody else is connected.
	greetWait = 5 * time.Second
)

// Refused is QEMU's answer to a command that it did not carry out.
type Refused struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (r *Refused) Error() string { return fmt.Sprintf("QEMU refuses %s: %s", r.Command, r.Desc) }

// message is a line of the protocol, whatever it is.
type message struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor int }
		}
	}
	Return json.RawMessage
	Error  *Refused
	ID     *int
	Event  string
}

// Dial connects to the monitor and agrees on the protocol.
func Dial(ctx context.Context, socket string) (*Monitor, error) {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(ctx, greetWait)
	defer cancel()
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	m := newMonitor(c.(*net.UnixConn))
	m.socket = socket
	if err := m.greet(ctx); err != nil {
		m.Close()
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: QEMU does not greet: its monitor serves one at a time, or it is no QMP socket (%w)", socket, err)
		}
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return m, nil
}

func newMonitor(c *net.UnixConn) *Monitor {
	m := &Monitor{conn: c, in: &io.LimitedReader{R: c}, PID: peer(c)}
	m.decoder = json.NewDecoder(m.in)
	return m
}

// peer is the process that listens at the other end.
func peer(c *net.UnixConn) (pid int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // without it, names are taken as they are
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

func (m *Monitor) greet(ctx context.Context) error {
	defer m.within(ctx)()
	g, err := m.read()
	if err != nil {
		return m.why(ctx, err)
	}
	if g.QMP == nil {
		return errors.New("no QMP socket: it does not greet as one")
	}
	m.Version = [2]int{g.QMP.Version.QEMU.Major, g.QMP.Version.QEMU.Minor}
	return m.Do(ctx, Command{Execute: "qmp_capabilities"}, nil)
}

// within ends reads and writes when ctx ends, until the returned function is called.
func (m *Monitor) within(ctx context.Context) (done func()) {
	stop := context.AfterFunc(ctx, func() { m.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// why says that it is ctx that ended, if so.
func (m *Monitor) why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (m *Monitor) read() (message, error) {
	var g message
	m.in.N = maxAnswer
	err := m.decoder.Decode(&g)
	if err != nil && m.in.N <= 0 {
		err = fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	if err == nil && g.Event == "SHUTDOWN" {
		m.ending = true
	}
	return g, err
}

// Command is a command of the monitor.
type Command struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments,omitempty"`
}

// Do carries a command out and reads what it returns into result, which may be nil.
func (m *Monitor) Do(ctx context.Context, c Command, result any) error {
	if m.dead != nil {
		return m.dead
	}
	if err := ctx.Err(); err != nil {
		return err // nothing was sent
	}
	ask := m.passed
	if m.pass == nil {
		defer m.within(ctx)()
		ask = m.ask
	}
	answer, err := ask(ctx, c)
	if err != nil {
		m.dead = fmt.Errorf("%s: the monitor does not answer any more: %w", c.Execute, m.why(ctx, err))
		return m.dead
	}
	if answer.Error != nil {
		answer.Error.Command = c.Execute
		return answer.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("%s: what QEMU answers is not understood: %w", c.Execute, err)
	}
	return nil
}

func (m *Monitor) ask(_ context.Context, c Command) (message, error) {
	m.next++
	var line bytes.Buffer
	err := json.NewEncoder(&line).Encode(struct {
		Command
		ID int `json:"id"`
	}{c, m.next})
	if err == nil {
		_, err = m.conn.Write(line.Bytes())
	}
	for werr := err; werr != nil; { // nobody listens any more: what was said before is still there
		if _, err := m.read(); err != nil {
			return message{}, werr
		}
	}
	for err == nil {
		var g message
		if g, err = m.read(); err == nil && g.ID != nil && *g.ID == m.next && g.Event == "" {
			m.ending = m.ending || c.Execute == "quit" && g.Error == nil
			return g, nil
		}
	}
	return message{}, err
}

// Close lets go of the monitor, for the next who wants it.
func (m *Monitor) Close() error { return m.conn.Close() }

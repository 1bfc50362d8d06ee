package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// replyWait bounds what a VRA that does not read its answers costs: its connection.
	replyWait = 5 * time.Second
	// helloWait is how long a connection may take to say hello.
	helloWait = 2 * time.Second
	// syncReads is how many sync reads of one VRA may run: each holds a quarter megabyte at most.
	syncReads = 32
)

// listenPool listens on the socket. The filter's lock is held: a socket that stands
// there is a dead filter's.
func listenPool(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var mode error
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// A socket has the mode in the folder that it had before it came there: it is never open to others.
		return errors.Join(raw.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), 0o600) }), mode)
	}}
	l, err := c.Listen(context.Background(), "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// accept serves connections until ctx ends, and then waits for none: wg has them.
func (f *Filter) accept(ctx context.Context, l *net.UnixListener, wg *sync.WaitGroup) error {
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("pool socket: %w", err)
		}
		wg.Go(func() {
			defer conn.Close()
			if err := f.serve(ctx, conn); err != nil && ctx.Err() == nil {
				f.cfg.Log.Warn("pool connection ended", "err", err)
			}
		})
	}
}

// serve answers one VRA: hello first, then what it asks. Or it answers askPast or askMirror, and that is all.
func (f *Filter) serve(ctx context.Context, conn *net.UnixConn) error {
	run, end := context.WithCancel(ctx)
	defer end()
	stop := context.AfterFunc(run, func() { conn.Close() })
	defer stop()
	if err := conn.SetReadDeadline(time.Now().Add(helloWait)); err != nil {
		return err
	}
	q, wakeFD, err := readHello(conn)
	if err != nil {
		return err
	}
	c := &tapConn{f: f, conn: conn, limit: make(chan struct{}, syncReads)}
	switch q.ask {
	case askPast:
		return c.send(f.answerPast(q), nil)
	case askMirror:
		return c.send(f.answerMirror(ctx, q), nil)
	}
	if q.group != f.cfg.Group || q.page != f.page.id {
		unix.Close(wakeFD)
		return c.send(reply{id: q.id, fail: fmt.Sprintf("this filter is of group %s and page %x", f.cfg.Group, f.page.id)}, nil)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		unix.Close(wakeFD)
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	f.attach(end, ended, wakeFD)
	defer c.running.Wait()
	defer end()
	return c.run(run, q.id)
}

// readHello reads the first message and the eventfd that came with it; none with askPast and askMirror.
func readHello(conn *net.UnixConn) (q request, wakeFD int, err error) {
	p, fds, err := readMessage(conn, make([]byte, maxRequest+1), 1)
	if err != nil {
		return q, -1, err
	}
	defer func() {
		for _, fd := range fds {
			if err != nil || fd != wakeFD {
				unix.Close(fd)
			}
		}
	}()
	if q, err = parseRequest(p); err != nil {
		return q, -1, err
	}
	if (q.ask == askPast || q.ask == askMirror) && len(fds) == 0 {
		return q, -1, nil
	}
	if q.ask != askHello || len(fds) != 1 {
		return q, -1, fmt.Errorf("no hello: %w", ErrCorrupt)
	}
	flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_NONBLOCK == 0 {
		err = fmt.Errorf("an eventfd that could block: %w", ErrCorrupt)
	}
	return q, fds[0], err
}

// attach makes this VRA the one that is woken. One before it is cut off first: only
// then can be told which slots it left behind.
func (f *Filter) attach(end context.CancelFunc, ended chan struct{}, wakeFD int) {
	for {
		f.tap.Lock()
		before := f.tap.ended
		select {
		case <-before:
			before = nil
		default:
		}
		if before == nil {
			break
		}
		f.tap.end()
		f.tap.Unlock()
		<-before
	}
	defer f.tap.Unlock()
	if f.tap.wakeFD >= 0 {
		unix.Close(f.tap.wakeFD)
	}
	f.tap.end, f.tap.ended, f.tap.wakeFD = end, ended, wakeFD
	f.pool.reclaim()
}

// tapConn is one VRA's connection.
type tapConn struct {
	f       *Filter
	conn    *net.UnixConn
	sending sync.Mutex
	running sync.WaitGroup // sync reads
	limit   chan struct{}
}

func (c *tapConn) run(ctx context.Context, hello uint64) error {
	w := welcome{shape: c.f.pool.shape}
	for _, v := range c.f.volumes {
		w.volumes = append(w.volumes, VolumeInfo{ID: v.id, Name: v.name, Bytes: v.disk.size.Load()})
	}
	p := c.f.pool
	if err := c.send(reply{id: hello, body: w.bytes()}, unix.UnixRights(p.payloadFD, p.descFD, p.stateFD)); err != nil {
		return err
	}
	c.f.cfg.Log.Info("VRA attached")
	mem := make([]byte, requestBytes+1)
	for {
		m, fds, err := readMessage(c.conn, mem, 0)
		closeFDs(fds)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, errPeerGone) {
				return nil
			}
			return err
		}
		q, err := parseRequest(m)
		if err != nil {
			return err
		}
		if q.ask != askSyncRead {
			if err := c.send(c.f.answer(q), nil); err != nil {
				return err
			}
			continue
		}
		c.syncRead(ctx, q)
	}
}

// syncRead runs beside the other requests: it waits for slots.
func (c *tapConn) syncRead(ctx context.Context, q request) {
	select {
	case c.limit <- struct{}{}:
	default:
		_ = c.send(reply{id: q.id, fail: "too many sync reads at once"}, nil) // a broken connection ends run
		return
	}
	c.running.Go(func() {
		defer func() { <-c.limit }()
		r := reply{id: q.id}
		if v := c.f.volume(q.volume); v == nil {
			r.fail = noVolume(q.volume)
		} else if err := v.syncRead(ctx, q.off, q.n); err != nil {
			r.fail = short(err.Error())
		}
		if ctx.Err() != nil {
			return // the connection ends: that is the answer
		}
		_ = c.send(r, nil) // as above
	})
}

// answer does what is asked and takes no time.
func (f *Filter) answer(q request) reply {
	r := reply{id: q.id}
	v := f.volume(q.volume)
	if v == nil && (q.ask == askMarkAll || q.ask == askMark || q.ask == askExtents) {
		r.fail = noVolume(q.volume)
		return r
	}
	switch q.ask {
	case askFold:
		for _, v := range f.volumes {
			v.fold()
		}
	case askMarkAll:
		v.mark(0, v.disk.size.Load())
	case askMark:
		v.mark(q.off, q.n)
	case askDirty:
		for _, v := range f.volumes {
			r.body = appendPair(r.body, int64(v.id), v.dirtyBlocks())
		}
	case askExtents:
		for _, e := range v.dirtyExtents(nil, q.off, int(q.max)) {
			r.body = appendPair(r.body, e.Off, e.Len)
		}
	case askLook:
		for _, v := range f.volumes {
			if v.mirror != nil {
				v.mirror.look()
			}
		}
	default:
		r.fail = "hello was said"
	}
	return r
}

func noVolume(id record.VolumeID) string { return fmt.Sprintf("no volume %d here", id) }

func short(s string) string { return s[:min(len(s), 1024)] }

// send sends a reply. A VRA that does not read loses its connection.
func (c *tapConn) send(r reply, rights []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(replyWait)); err != nil {
		return err
	}
	if _, _, err := c.conn.WriteMsgUnix(r.bytes(), rights, nil); err != nil {
		c.conn.Close()
		return err
	}
	return nil
}

var errPeerGone = errors.New("the other side is gone")

// readMessage reads one datagram into mem, which is one byte longer than it may be, and at most fds descriptors,
// which are the caller's. P is a part of mem.
func readMessage(conn *net.UnixConn, mem []byte, fds int) (p []byte, got []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*8))
	n, oobn, flags, _, err := conn.ReadMsgUnix(mem, oob)
	if err != nil {
		return nil, nil, err
	}
	if oobn > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, nil, err
		}
		for _, m := range msgs {
			if list, err := unix.ParseUnixRights(&m); err == nil {
				got = append(got, list...)
			}
		}
	}
	for _, fd := range got {
		unix.CloseOnExec(fd)
	}
	switch {
	case n == 0:
		err = errPeerGone
	case n == len(mem) || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(got) > fds:
		err = fmt.Errorf("message of %d bytes, %d descriptors: %w", n, len(got), ErrCorrupt)
	}
	if err != nil {
		closeFDs(got)
		return nil, nil, err
	}
	return mem[:n], got, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// ErrFilterGone says that the filter went away before it answered.
var ErrFilterGone = errors.New("the filter went away")

// link is the VRA's connection to one filter, made again whenever it breaks.
type link struct {
	tap    *Tap
	socket string
	log    *slog.Logger
	needed atomic.Bool
	end    context.CancelFunc // of follow

	mu struct {
		sync.Mutex
		told    bool // the volumes were told at least once
		volumes []VolumeInfo
		mirrors []VolumeInfo  // those of volumes that are mirror targets: like volumes, known when the filter is gone
		conn    *filterConn   // nil while there is none
		changed chan struct{} // closed, and made anew, when conn changes
	}
}

// filterConn is one connection and the questions open on it.
type filterConn struct {
	conn *net.UnixConn
	pool uint64 // its instance
	mu   struct {
		sync.Mutex
		last uint64
		open map[uint64]chan reply // capacity 1; closed without a reply when the connection ends
		gone bool
	}
	sending sync.Mutex
}

// Waits between tries to connect.
const (
	retryFirst = 10 * time.Millisecond
	retryMost  = 250 * time.Millisecond
)

// follow keeps the connection until ctx ends.
func (l *link) follow(ctx context.Context) {
	wait := retryFirst
	for said := ""; ctx.Err() == nil; {
		told, err := l.connect(ctx)
		if told {
			wait, said = retryFirst, ""
		}
		if err != nil && ctx.Err() == nil && said != err.Error() {
			said = err.Error() // once, not at every try
			l.log.Warn("filter not connected", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMost)
	}
}

// connect says hello, maps the pool, and reads answers until the connection ends; told
// says that the filter welcomed us.
func (l *link) connect(ctx context.Context) (told bool, err error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: l.socket, Net: "unixpacket"})
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetReadDeadline(time.Now().Add(replyWait)); err != nil {
		return false, err
	}
	w, fds, err := l.hello(conn)
	defer closeFDs(fds)
	if err != nil {
		return false, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return false, err
	}
	pool, mirrors, err := l.tap.adopt(filterKey(l.socket), w, fds)
	if err != nil {
		return false, err
	}
	c := &filterConn{conn: conn, pool: w.shape.instance}
	c.mu.open = map[uint64]chan reply{}
	l.set(c, w.volumes, mirrors)
	l.log.Info("filter connected", "volumes", len(w.volumes))
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		l.tap.foldLate(ctx, pool, func(q request) error { _, err := c.ask(ctx, q); return err })
	})
	err = c.read()
	l.set(nil, w.volumes, mirrors)
	c.end()
	return true, err
}

func (l *link) hello(conn *net.UnixConn) (w welcome, fds []int, err error) {
	q := request{ask: askHello, group: l.tap.cfg.Group, page: l.tap.page.id}
	raw, err := l.tap.wake.SyscallConn()
	if err != nil {
		return w, nil, err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = conn.WriteMsgUnix(q.bytes(), unix.UnixRights(int(fd)), nil)
	})
	if err = cmp.Or(err, sent); err != nil {
		return w, nil, err
	}
	p, fds, err := readMessage(conn, make([]byte, maxReply+1), 3)
	if err != nil {
		return w, nil, err
	}
	r, err := parseReply(p)
	if err == nil && r.fail != "" {
		err = errors.New(r.fail)
	}
	if err == nil {
		w, err = parseWelcome(r.body)
	}
	return w, fds, err
}

func (l *link) set(c *filterConn, volumes, mirrors []VolumeInfo) {
	l.mu.Lock()
	l.mu.conn, l.mu.told, l.mu.volumes, l.mu.mirrors = c, true, volumes, mirrors
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
	l.mu.Unlock()
	l.tap.rouse()
}

// adopt maps a filter's pool, and tells which of its volumes are mirror targets.
func (t *Tap) adopt(key uint64, w welcome, fds []int) (p *tapPool, mirrors []VolumeInfo, err error) {
	t.merge.Lock()
	defer t.merge.Unlock()
	if p, err = t.mapLocked(key, w, fds); err != nil {
		return nil, nil, err
	}
	p.shown(descAtLogs, w.volumes, func(v VolumeInfo, w uint64) {
		if w&shownMirror != 0 && !invariant.Planted("capture/mirror-forgotten") {
			mirrors = append(mirrors, v)
		}
	})
	return p, mirrors, nil
}

// mapLocked maps a filter's pool, or finds it mapped: its filter said hello again.
func (t *Tap) mapLocked(key uint64, w welcome, fds []int) (*tapPool, error) {
	p := t.poolLocked(w.shape.instance)
	if p != nil {
		return p, nil
	}
	p, err := mapPool(key, w.shape, fds, w.volumes, t.marked)
	if err != nil {
		return nil, err
	}
	e := pageEntry{key, w.shape.instance}
	if t.merge.missing[e].gone { // we went on without it: what it wrote until now has no place any more
		p.mustFold = true
		t.page.passed.Store(1)
		p.floor = t.page.last() + 1
	}
	delete(t.merge.missing, e)
	t.merge.pools = append(t.merge.pools, p)
	return p, nil
}

// foldLate has a filter fold whose writes were passed over, so that the durable ticket
// may go on.
func (t *Tap) foldLate(ctx context.Context, p *tapPool, ask func(request) error) {
	t.merge.Lock()
	must := p.mustFold
	t.merge.Unlock()
	if !must {
		return
	}
	if ask(request{ask: askFold}) != nil || ctx.Err() != nil {
		return // connected anew, it is asked again
	}
	t.merge.Lock()
	p.mustFold = false
	t.foldedLocked()
	t.merge.Unlock()
	t.PublishDurable(0)
}

// read hands replies to those who asked.
func (c *filterConn) read() error {
	mem := make([]byte, maxReply+1) // once: a resync has tens of thousands of replies a second, of a few bytes each
	for {
		p, fds, err := readMessage(c.conn, mem, 0)
		closeFDs(fds)
		if errors.Is(err, errPeerGone) || errors.Is(err, net.ErrClosed) {
			return ErrFilterGone
		}
		if err != nil {
			return err
		}
		r, err := parseReply(p)
		if err != nil {
			return err
		}
		c.mu.Lock()
		ch := c.mu.open[r.id]
		delete(c.mu.open, r.id)
		c.mu.Unlock()
		if ch != nil { // else nobody waits any more
			if !invariant.Planted("capture/reply-lent") {
				r.body = slices.Clone(r.body)
			}
			ch <- r
		}
	}
}

// end closes all questions without an answer.
func (c *filterConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.gone = true
	for id, ch := range c.mu.open {
		delete(c.mu.open, id)
		close(ch)
	}
}

// ask sends q and waits for its answer.
func (c *filterConn) ask(ctx context.Context, q request) ([]byte, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	if c.mu.gone {
		c.mu.Unlock()
		return nil, ErrFilterGone
	}
	c.mu.last++
	q.id = c.mu.last
	c.mu.open[q.id] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.mu.open, q.id)
		c.mu.Unlock()
	}()
	if err := c.send(q); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFilterGone, err)
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r, ok := <-ch:
		switch {
		case !ok:
			return nil, ErrFilterGone
		case r.fail != "":
			return nil, errors.New(r.fail)
		}
		return r.body, nil
	}
}

func (c *filterConn) send(q request) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(replyWait)); err != nil {
		return err
	}
	_, err := c.conn.Write(q.bytes())
	if err != nil {
		c.conn.Close()
	}
	return err
}

// connected is the connection there is now, if any.
func (l *link) connected() *filterConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.conn
}

type persistence bool

const (
	once  persistence = false // the question is not put twice
	again persistence = true  // it may be put to a restarted filter again
)

// ask waits for a connection and asks the filter there.
func (l *link) ask(ctx context.Context, q request, p persistence) ([]byte, error) {
	for {
		l.mu.Lock()
		c, changed := l.mu.conn, l.mu.changed
		l.mu.Unlock()
		if c != nil {
			body, err := c.ask(ctx, q)
			if !errors.Is(err, ErrFilterGone) || p == once {
				return body, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

// askAll asks every filter that is needed, and those beside them that are there.
func (t *Tap) askAll(ctx context.Context, q request, answer func([]byte) error) error {
	for _, l := range t.links() {
		var body []byte
		var err error
		if c := l.connected(); l.needed.Load() {
			body, err = l.ask(ctx, q, again)
		} else if c == nil {
			continue
		} else if body, err = c.ask(ctx, q); errors.Is(err, ErrFilterGone) {
			continue
		}
		if err == nil {
			err = answer(body)
		}
		if err != nil {
			return fmt.Errorf("at %s: %w", l.socket, err)
		}
	}
	return nil
}

// askVolume asks the filter that has the volume, once it is known who that is.
func (t *Tap) askVolume(ctx context.Context, q request, p persistence) ([]byte, error) {
	for {
		all := true
		var wait <-chan struct{}
		for _, l := range t.links() {
			l.mu.Lock()
			has := slices.ContainsFunc(l.mu.volumes, func(v VolumeInfo) bool { return v.ID == q.volume })
			if !l.mu.told && l.needed.Load() {
				all, wait = false, l.mu.changed
			}
			l.mu.Unlock()
			if has {
				return l.ask(ctx, q, p)
			}
		}
		if all {
			return nil, errors.New(noVolume(q.volume))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wait:
		}
	}
}

func sortVolumes(list []VolumeInfo) {
	slices.SortFunc(list, func(a, b VolumeInfo) int { return cmp.Compare(a.ID, b.ID) })
}

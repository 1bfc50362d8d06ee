package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/ioengine/wait"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// TapConfig says which filters a Tap reads.
type TapConfig struct {
	RunDir  string // as the filters'
	Group   record.GroupID
	Filters []string // pool sockets; there may be none
	Log     *slog.Logger
}

// Tap is the VRA's end of a group's capture. One process at a time has it.
//
// Next is for one goroutine; all else may be called concurrently.
type Tap struct {
	cfg   TapConfig
	lock  *os.File
	page  *orderPage
	clock monoClock
	wake  *os.File        // our eventfd, which the filters have too
	run   context.Context // until Close
	stop  context.CancelFunc
	wg    sync.WaitGroup

	follow struct {
		sync.Mutex
		links []*link
	}

	merge struct {
		sync.Mutex
		pools    []*tapPool
		marks    []record.Ticket // ours, rising
		expected record.Ticket
		floor    record.Ticket // discarded below
		missing  map[pageEntry]missingFilter
		entered  []pageEntry // scratch
		durable  record.Ticket
		past     Stats  // of pools that are gone
		holds    uint64 // number of the last one
	}
}

// OpenTap makes or maps the order page and starts to connect (and reconnect) to the
// filters. It does not wait for them. Its error is ErrInUse when another process has
// the group's tap.
func OpenTap(cfg TapConfig) (*Tap, error) {
	boot, err := thisBoot()
	if err != nil {
		return nil, err
	}
	return openTap(cfg, boot)
}

func openTap(cfg TapConfig, boot bootID) (_ *Tap, err error) {
	if cfg.RunDir == "" || cfg.Group == 0 || cfg.Log == nil {
		return nil, errors.New("run directory, group and logger are needed")
	}
	t := &Tap{cfg: cfg, clock: newMonoClock()}
	t.merge.missing = map[pageEntry]missingFilter{}
	defer func() {
		if err != nil {
			t.letGo()
		}
	}()
	t.lock, err = wait.Lock(tapWait, func() (*os.File, error) { return tryLockFile(tapLockName(cfg.RunDir, cfg.Group)) }, ErrInUse)
	if err != nil {
		return nil, err
	}
	if t.page, err = openPage(cfg.RunDir, cfg.Group, boot); err != nil {
		return nil, err
	}
	t.page.hold.Store(0) // a dead VRA's
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	t.wake = os.NewFile(uintptr(fd), "eventfd")
	t.run, t.stop = context.WithCancel(context.Background())
	for _, socket := range cfg.Filters {
		t.Follow(socket, true)
	}
	return t, nil
}

// Follow connects to one more filter, or says anew whether one is needed. Of filters that are
// not needed nothing is waited for: they may be gone, or yet to come. What they publish is
// given all the same.
func (t *Tap) Follow(socket string, needed bool) {
	t.follow.Lock()
	defer t.follow.Unlock()
	for _, l := range t.follow.links {
		if l.socket == socket {
			l.needed.Store(needed)
			return
		}
	}
	l := &link{tap: t, socket: socket, log: t.cfg.Log.With("filter", socket)}
	l.needed.Store(needed)
	l.mu.changed = make(chan struct{})
	t.follow.links = append(slices.Clip(t.follow.links), l)
	ctx, end := context.WithCancel(t.run)
	l.end = end
	t.wg.Go(func() { l.follow(ctx) })
}

// Leave connects to no filter any more: they go on without a VRA. Next gives what they had published
// before.
func (t *Tap) Leave() {
	t.follow.Lock()
	defer t.follow.Unlock()
	for _, l := range t.follow.links {
		l.end()
	}
	t.follow.links = nil
}

// links are all that there are now. The slice is not changed any more.
func (t *Tap) links() []*link {
	t.follow.Lock()
	defer t.follow.Unlock()
	return t.follow.links
}

// Close unmaps everything and gives the group up. What was not freed stays published
// for the next Tap. Next must have returned, and no Write's Data may be touched afterwards.
func (t *Tap) Close() error {
	t.stop()
	t.wg.Wait()
	t.letGo()
	return nil
}

func (t *Tap) letGo() {
	for _, p := range t.merge.pools {
		p.unmap()
	}
	t.merge.pools = nil
	if t.wake != nil {
		t.wake.Close()
	}
	if t.page != nil {
		t.page.close()
	}
	if t.lock != nil {
		t.lock.Close()
	}
}

// Next returns the next writes in ticket order, at most `most`; when there is none it
// waits for one, at most wait, and then returns none and no error. An error that is
// not ctx's is fatal: shared memory is corrupt.
func (t *Tap) Next(ctx context.Context, most int, wait time.Duration) ([]Write, error) {
	deadline := time.Now().Add(wait)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t.page.sleeping.Store(0)
		ws, _, err := t.collect(most)
		if err != nil || len(ws) > 0 {
			return ws, err
		}
		if wait <= 0 {
			return nil, nil
		}
		// Say that we sleep, then look once more: who publishes later sees it.
		t.page.sleeping.Store(1)
		ws, waits, err := t.collect(most)
		if err != nil || len(ws) > 0 {
			return ws, err
		}
		now := time.Now()
		if !now.Before(deadline) {
			return nil, nil
		}
		until := deadline
		if waits { // for a slot in ticketing, or a filter: nobody tells us
			until = earlier(deadline, now.Add(time.Millisecond))
		}
		if err := t.sleep(ctx, until); err != nil {
			return nil, err
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (t *Tap) collect(most int) ([]Write, bool, error) {
	t.merge.Lock()
	defer t.merge.Unlock()
	t.retireLocked()
	return t.collectLocked(nil, most)
}

// sleep waits until somebody writes the eventfd, the time comes, or ctx ends.
func (t *Tap) sleep(ctx context.Context, until time.Time) error {
	if err := t.wake.SetReadDeadline(until); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = t.wake.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var p [8]byte
	if _, err := t.wake.Read(p[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return ctx.Err()
}

// rouse makes Next look again.
func (t *Tap) rouse() {
	_, _ = t.wake.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) // full is roused, too
}

// Free gives the slots of ws back to their filters. Ticket order is best: a write that is
// kept while thousands after it are freed holds up its volume's ring, and makes its
// filter drop. Marks are ignored.
func (t *Tap) Free(ws []Write) {
	for _, w := range ws {
		if w.ring != nil {
			w.ring.free(w.at, w.slot)
		}
	}
}

// TakeTicket takes a ticket for a cut or a boundary; it comes back from Next as Mark,
// after every write with a lower ticket and before every one with a higher.
func (t *Tap) TakeTicket() record.Ticket {
	t.merge.Lock()
	defer t.merge.Unlock()
	return t.takeLocked()
}

func (t *Tap) takeLocked() record.Ticket {
	ticket := t.page.take()
	t.merge.marks = append(t.merge.marks, ticket)
	t.rouse()
	return ticket
}

// LastTicket is the highest ticket that anyone has taken so far.
func (t *Tap) LastTicket() record.Ticket { return t.page.last() }

// Lost counts the times that writes were dropped. Read it after a cut's ticket was taken.
func (t *Tap) Lost() uint64 { return t.page.lost.Load() }

// LostCovered is the count that the last closed resync covered; it differs from Lost
// while the target lacks something. It outlives this process, not a boot.
func (t *Tap) LostCovered() uint64 { return t.page.covered.Load() }

// SetLostCovered notes what a closed resync covered.
func (t *Tap) SetLostCovered(n uint64) { t.page.covered.Store(n) }

// Incarnation is the present one; 0 on a page no VRA has used since the boot.
func (t *Tap) Incarnation() record.Incarnation {
	return record.Incarnation(t.page.incarnation.Load())
}

// RaiseIncarnation draws an incarnation above the present one and above `above` (what
// the target stands at) and returns it. Discard and Fold follow, in this order.
func (t *Tap) RaiseIncarnation(above record.Incarnation) record.Incarnation {
	next := max(t.Incarnation(), above) + 1
	t.page.incarnation.Store(uint64(next))
	return next
}

// PublishDurable says that all writes with tickets up to T are durable at the target
// (Marks and skipped tickets count as durable): generations up to there are dropped.
// It never goes back. Not before Fold has returned, for a new incarnation.
func (t *Tap) PublishDurable(T record.Ticket) {
	t.merge.Lock()
	defer t.merge.Unlock()
	t.merge.durable = max(t.merge.durable, T)
	if !t.frozenLocked() && record.Ticket(t.page.durable.Load()) < t.merge.durable {
		t.page.durable.Store(uint64(t.merge.durable))
	}
}

// Discard drops all writes published so far: Next gives none with a ticket up to the
// one returned. Their marks stand in live generations, so that Fold must follow.
func (t *Tap) Discard() record.Ticket {
	t.merge.Lock()
	defer t.merge.Unlock()
	ticket := t.page.take()
	t.merge.floor = ticket
	return ticket
}

// GoOn goes on behind writes that an earlier Tap gave: Next gives none with a ticket below from, and frees those that are
// published still. What has one below order can only come late; order is at least from. Before the first Next.
func (t *Tap) GoOn(from, order record.Ticket) {
	t.merge.Lock()
	defer t.merge.Unlock()
	t.merge.floor, t.merge.expected = from, order
	if invariant.Planted("capture/goes-on-in-any-order") {
		t.merge.expected = from
	}
}

// Passed says that the generations of a filter whose writes were passed over may not have been folded since: only a new
// incarnation, and Fold, know all that the target lacks.
func (t *Tap) Passed() bool { return t.page.passed.Load() != 0 }

// Page is the order page's own number: tickets of another are not of this order.
func (t *Tap) Page() uint64 { return t.page.id }

// Volumes lists the volumes of all filters, by ID, as large as they are now; ok once every filter that is needed has
// answered.
func (t *Tap) Volumes() (volumes []VolumeInfo, ok bool) {
	ok = true
	for _, l := range t.links() {
		l.mu.Lock()
		c, told := l.mu.conn, l.mu.volumes
		ok = ok && (l.mu.told || !l.needed.Load())
		l.mu.Unlock()
		from := len(volumes)
		volumes = append(volumes, told...)
		if c != nil {
			t.sizes(c.pool, volumes[from:])
		}
	}
	sortVolumes(volumes)
	return volumes, ok
}

// sizes corrects the sizes of volumes, those of a pool's rings, that have grown since they were told.
func (t *Tap) sizes(pool uint64, volumes []VolumeInfo) {
	t.merge.Lock()
	defer t.merge.Unlock()
	p := t.poolLocked(pool)
	if p == nil {
		return
	}
	for i := range volumes[:min(len(volumes), p.shape.rings)] {
		volumes[i].Bytes = max(volumes[i].Bytes, p.rings[i].bytes())
	}
}

// Sockets tells at which filter each volume is served, or was when it was last there.
func (t *Tap) Sockets() map[record.VolumeID]string {
	at := make(map[record.VolumeID]string)
	for _, l := range t.links() {
		l.mu.Lock()
		for _, v := range l.mu.volumes {
			at[v.ID] = l.socket
		}
		l.mu.Unlock()
	}
	return at
}

func (t *Tap) poolLocked(instance uint64) *tapPool {
	for _, p := range t.merge.pools {
		if p.shape.instance == instance {
			return p
		}
	}
	return nil
}

// retireLocked unmaps the pools of filters that are gone, once everything of them was
// given and freed.
func (t *Tap) retireLocked() {
	if t.allEnteredLocked() {
		return
	}
	kept := t.merge.pools[:0]
	for _, p := range t.merge.pools {
		if t.enteredLocked(p.shape.instance) || !p.drained() {
			kept = append(kept, p)
			continue
		}
		p.addTo(&t.merge.past)
		p.unmap()
	}
	clear(t.merge.pools[len(kept):])
	t.merge.pools = kept
}

func (t *Tap) allEnteredLocked() bool {
	t.merge.entered = t.page.entered(t.merge.entered[:0])
	for _, p := range t.merge.pools {
		if !t.enteredLocked(p.shape.instance) {
			return false
		}
	}
	return true
}

// enteredLocked reads merge.entered, which the caller has filled.
func (t *Tap) enteredLocked(instance uint64) bool {
	for _, e := range t.merge.entered {
		if e.instance == instance {
			return true
		}
	}
	return false
}

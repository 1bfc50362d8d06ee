package capture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// mirror is what a volume has whose guest keeps its own way to its disk: QEMU writes there itself, and then
// what it wrote to us, before it answers the guest. So by the time that a write takes its ticket here the disk has
// it, as with any volume; only, there is no disk of ours. What must be read, QEMU reads to us (mirrorFile).
//
// It stands from join until one of the connections that were there then ends, or a write is refused or does not end. While it does not stand nobody
// knows here what the guest writes (PastUnmirrored); QEMU's dirty bitmap does, and join takes it over.
type mirror struct {
	v    *volume
	file *mirrorFile

	// mu comes before volume.mu.
	mu struct {
		sync.Mutex
		conns   map[*mirrorConn]struct{} // a connection of which nothing is under way any more is none of them
		carries map[*mirrorConn]struct{} // those of conns that the mirror stands by; none: it does not stand
		fewer   chan struct{}            // closed when the next of conns has left
	}

	// under are the writes that QEMU, and so the guest, waits for, and how the watchdog saw them.
	under struct {
		sync.Mutex
		writes map[*beat]struct{}
		spare  []*beat
	}
}

// mirrorConn is a connection to the volume's export.
type mirrorConn struct{ front.Connection }

func newMirror(v *volume, bytes int64, connect DialSource) (*mirror, *disk) {
	m := &mirror{v: v, file: &mirrorFile{bytes: bytes, connect: connect}}
	m.mu.conns = make(map[*mirrorConn]struct{})
	m.mu.fewer = make(chan struct{})
	m.under.writes = make(map[*beat]struct{})
	d := &disk{file: m.file, align: 1}
	d.size.Store(bytes)
	return m, d
}

var _ front.Watched = (*volume)(nil)

// Refused is told of a change that was refused before it came to us.
func (v *volume) Refused(why error) { v.mirror.refused(why) }

// Connected is told of each connection to the volume, whatever carries it.
func (v *volume) Connected(to front.Connection) (left func()) {
	m := v.mirror
	if m == nil {
		return func() {}
	}
	c := &mirrorConn{to}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.conns[c] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.mu.conns, c)
		close(m.mu.fewer)
		m.mu.fewer = make(chan struct{})
		if _, carried := m.mu.carries[c]; carried {
			m.loseLocked("QEMU is not connected any more")
		}
	}
}

// look sees whether QEMU has closed a connection that the mirror stands by, though nobody has come to read that yet.
func (m *mirror) look() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.mu.carries {
		if c.Gone() && !invariant.Planted("capture/mirror-unseen") {
			m.loseLocked("QEMU has closed the connection")
			return
		}
	}
}

// begins notes a write that QEMU waits for until it ends. Of a volume that is no mirror it does nothing.
func (m *mirror) begins() (b *beat) {
	if m == nil {
		return nil
	}
	m.under.Lock()
	defer m.under.Unlock()
	if n := len(m.under.spare); n > 0 {
		b, m.under.spare = m.under.spare[n-1], m.under.spare[:n-1]
	} else {
		b = new(beat)
	}
	m.under.writes[b] = struct{}{}
	return b
}

func (m *mirror) ends(b *beat) {
	if m == nil {
		return
	}
	m.under.Lock()
	defer m.under.Unlock()
	delete(m.under.writes, b)
	*b = beat{}
	m.under.spare = append(m.under.spare, b)
}

// hangs looks, with the watchdog's eyes, whether a write is under way for so many looks that it will not end: it waits for no disk.
func (m *mirror) hangs() bool {
	m.under.Lock()
	defer m.under.Unlock()
	hangs := false
	for b := range m.under.writes {
		hangs = b.see(0, false) || hangs
	}
	return hangs
}

// hung says whether the watchdog has seen that.
func (m *mirror) hung() bool {
	m.under.Lock()
	defer m.under.Unlock()
	for b := range m.under.writes {
		if b.still >= hangBeats {
			return true
		}
	}
	return false
}

// guard gives up the connections of a mirror where a write hangs, and of who connects while it does: the guest, which waits for it,
// goes on without us. That is said before it can.
func (m *mirror) guard() {
	if m == nil || !m.hangs() || invariant.Planted("capture/mirror-unguarded") {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loseLocked(errHangs.Error())
	for c := range m.mu.conns {
		c.Drop()
	}
}

var errHangs = errors.New("a write to it does not end: start the filter again")

// refused passes on why a write was not carried out, which the guest's disk has: without it the mirror does not stand.
func (m *mirror) refused(err error) error {
	if m != nil && err != nil && !invariant.Planted("capture/mirror-refusal-unseen") {
		m.lose(fmt.Sprintf("a write was refused: %v", err))
	}
	return err
}

// lose ends the mirror, if it stands.
func (m *mirror) lose(why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loseLocked(why)
}

func (m *mirror) loseLocked(why string) {
	v := m.v
	m.mu.carries = nil
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.pastLocked() != PastNone {
		return
	}
	v.unmirroredLocked()
	v.log.Warn("the guest's writes are not mirrored any more: no checkpoints until it is attached again", "why", why)
}

// unmirroredLocked notes that the guest writes past us: a block that nobody may read keeps every resync from closing.
func (v *volume) unmirroredLocked() {
	v.mu.marks.file.past().Store(uint64(PastUnmirrored))
	if !invariant.Planted("capture/mirror-lost-unsaid") {
		v.dropLocked(0, BlockBytes)
	}
	v.showLocked()
}

// mirrorJoin is how a mirror begins to stand.
type mirrorJoin struct {
	token   uint64 // names the bitmap in which QEMU keeps what the guest writes from before now on; not 0
	source  string // URI of an NBD export of the guest's disk, read-only
	bitmap  string // name of the bitmap that holds what was written while no mirror stood; empty: everything may have been
	changes string // URI of the export that shows it
}

// join has the mirror stand, once QEMU is connected and mirrors. All that was written past us is dirty by then: whole
// regions, as those are compared with the target before any of it is sent.
func (m *mirror) join(ctx context.Context, j mirrorJoin) error {
	v := m.v
	if m.hung() {
		return errHangs
	}
	carries, err := m.present(ctx)
	if err != nil {
		return err
	}
	if err := m.file.open(ctx, j.source); err != nil {
		return fmt.Errorf("read the guest's disk: %w", err)
	}
	if err := m.markWritten(ctx, j); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range carries {
		if _, is := m.mu.conns[c]; !is || c.Gone() {
			return errors.New("QEMU has left again")
		}
	}
	if m.leavingLocked() {
		return errLeaving
	}
	m.mu.carries = carries
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.marks.file.mirror().Store(j.token)
	v.mu.marks.file.past().Store(uint64(PastNone))
	v.showLocked()
	return nil
}

// leaveWait bounds how long join waits for what is under way of connections that QEMU has closed.
const leaveWait = 10 * time.Second

var errLeaving = errors.New("a write of a connection that QEMU has closed is still under way: try again")

// present are the connections that the mirror can stand by, once nothing is under way any more of those that QEMU has closed: it
// would end after what was written past us since, and take its place.
func (m *mirror) present(ctx context.Context) (map[*mirrorConn]struct{}, error) {
	ctx, cancel := context.WithTimeout(ctx, leaveWait)
	defer cancel()
	for {
		m.mu.Lock()
		conns, leaving, fewer := maps.Clone(m.mu.conns), m.leavingLocked(), m.mu.fewer
		m.mu.Unlock()
		switch {
		case leaving:
		case len(conns) == 0:
			return nil, errors.New("no QEMU is connected: its mirror must run first")
		default:
			return conns, nil
		}
		select {
		case <-fewer:
		case <-ctx.Done():
			return nil, errLeaving
		}
	}
}

// leavingLocked says whether something may be under way of a connection that QEMU has closed.
func (m *mirror) leavingLocked() bool {
	if invariant.Planted("capture/mirror-joins-beside") {
		return false
	}
	for c := range m.mu.conns {
		if c.Gone() {
			return true
		}
	}
	return false
}

// markWritten makes everything dirty that the guest may have written past us.
func (m *mirror) markWritten(ctx context.Context, j mirrorJoin) error {
	v := m.v
	if j.bitmap == "" {
		v.mark(0, v.disk.size.Load())
		return nil
	}
	c, err := m.file.dial(ctx, j.changes, j.bitmap)
	if err != nil {
		return fmt.Errorf("what was written meanwhile: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	size, at, marked := v.disk.size.Load(), int64(0), int64(0)
	err = c.BlockStatus(0, size, func(n int64, written bool) bool {
		if written && !invariant.Planted("capture/mirror-changes-unmarked") {
			from := max(at/activity.RegionBytes*activity.RegionBytes, marked)
			to := (at + n + activity.RegionBytes - 1) / activity.RegionBytes * activity.RegionBytes
			v.mark(from, to-from)
			marked = max(marked, to)
		}
		at += n
		return true
	})
	if err == nil && at < size {
		err = fmt.Errorf("%d of %d bytes are told of", at, size)
	}
	if err != nil {
		return fmt.Errorf("what was written meanwhile: %w", err)
	}
	return nil
}

// VolumeMirror is what a filter says of a volume that its guest's QEMU mirrors to.
type VolumeMirror struct {
	Past  Past   // PastNone while the mirror stands
	Token uint64 // of the bitmap that was told last; 0: none is known
	Bytes int64  // of the volume
}

// Mirror asks the filter how the mirror stands. The error is that of ErrNoMirror where the volume is none.
func (f Filtered) Mirror(ctx context.Context) (VolumeMirror, error) {
	body, err := f.put(ctx, request{ask: askMirror, max: mirrorTell}, pastWait)
	if err != nil {
		return VolumeMirror{}, err
	}
	return parseMirror(body)
}

// joinWait bounds how long a filter may take to read from QEMU what was written meanwhile.
const joinWait = time.Minute

// Join says that QEMU mirrors to the volume from now on, that source is where its disk is read, and that token names the
// bitmap that QEMU has kept since before that. What stands in bitmap at changes is synced; without a bitmap everything is.
func (f Filtered) Join(ctx context.Context, token uint64, source, bitmap, changes string) error {
	j := mirrorJoin{token: token, source: source, bitmap: bitmap, changes: changes}
	_, err := f.put(ctx, request{ask: askMirror, max: mirrorWishJoin, off: int64(token), text: j.text()}, joinWait)
	return err
}

// answerMirror answers one question about a volume's mirror.
func (f *Filter) answerMirror(ctx context.Context, q request) reply {
	r := reply{id: q.id}
	v, why := f.named(q)
	if why == "" && v.mirror == nil {
		why = fmt.Sprintf("volume %s is a disk of its own, and no mirror target", v.name)
	}
	if why != "" {
		r.fail = why
		return r
	}
	switch q.max {
	case mirrorTell:
		v.mirror.look()
	case mirrorWishJoin:
		j, err := parseJoin(q)
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, joinWait)
			err = v.mirror.join(ctx, j)
			cancel()
		}
		if err != nil {
			r.fail = short(err.Error())
			return r
		}
		v.log.Info("the guest's writes are mirrored", "all_may_differ", j.bitmap == "")
	default:
		r.fail = fmt.Sprintf("unknown wish %d", q.max)
		return r
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	r.body = mirrorBody(VolumeMirror{Past: v.pastLocked(), Token: v.mu.marks.file.mirror().Load(), Bytes: v.disk.size.Load()})
	return r
}

// Mirrors tells of the volumes that are mirror targets whether their mirrors stood when their filters last looked. Where a filter
// that is needed is gone none does: its guests go on without it.
func (t *Tap) Mirrors() map[VolumeInfo]bool {
	stand := map[VolumeInfo]bool{}
	for _, l := range t.links() {
		mirrors, here := l.mirrors()
		if here || l.needed.Load() {
			for _, v := range mirrors {
				stand[v] = false
			}
		}
	}
	t.shown(func(v VolumeInfo, w uint64) {
		if w&shownMirror != 0 {
			stand[v] = w&shownMirrored != 0
		}
	})
	return stand
}

// mirrors are the volumes that the filter showed as mirror targets when it was last there, and whether it is there now.
func (l *link) mirrors() (mirrors []VolumeInfo, here bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.mirrors, l.mu.conn != nil
}

// leaves says that guests write unseen: they are mirrored to the filter, which is needed and is not there.
func (l *link) leaves() bool {
	mirrors, here := l.mirrors()
	return len(mirrors) > 0 && !here && l.needed.Load()
}

// lookWait bounds how long a filter may take to look at its mirrors: all that a cut waits for.
const lookWait = time.Second

// LookAtMirrors has every filter with a mirror look whether it stands. One that does not, or cannot be known to, as its filter is
// gone, is counted in lost when it returns. So a ticket that was taken before has every write of these guests before it that was
// answered before, or Lost tells. ctx is of who asks: when it ends, nothing is found out.
func (t *Tap) LookAtMirrors(ctx context.Context) {
	if len(t.Mirrors()) == 0 || invariant.Planted("capture/mirror-not-asked") {
		return
	}
	if slices.ContainsFunc(t.links(), (*link).leaves) {
		t.page.lost.Add(1)
		return
	}
	ask, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	if err := t.askAll(ask, request{ask: askLook}, func([]byte) error { return nil }); err != nil && ctx.Err() == nil {
		t.page.lost.Add(1)
	}
}

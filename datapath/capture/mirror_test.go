package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// qemu is what of a guest's QEMU a mirror volume sees: its disk, read-only, what its bitmap tells, and its connection. The real one has its tests
// where attaching has.
type qemu struct {
	mu     sync.RWMutex
	disk   []byte
	dirty  []span // what the bitmap has
	refuse error  // of connecting
	dialed func() // is called by who connects; or nil
	closed atomic.Bool
	dials  atomic.Int64
}

// set changes something of it.
func (q *qemu) set(change func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	change()
}

// imageConn is a connection to QEMU's export.
type imageConn struct {
	q      *qemu
	bitmap bool
	done   chan struct{}
	once   sync.Once
}

func (q *qemu) dial(_ context.Context, uri, bitmap string) (Source, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.refuse != nil {
		return nil, q.refuse
	}
	if (bitmap != "") != (uri == "changes") {
		return nil, fmt.Errorf("export %q with bitmap %q", uri, bitmap)
	}
	q.dials.Add(1)
	if q.dialed != nil {
		q.dialed()
	}
	return &imageConn{q: q, bitmap: bitmap != "", done: make(chan struct{})}, nil
}

func (c *imageConn) Done() <-chan struct{} { return c.done }
func (c *imageConn) Close() error          { c.once.Do(func() { close(c.done) }); return nil }

func (c *imageConn) Size() int64 {
	c.q.mu.RLock()
	defer c.q.mu.RUnlock()
	return int64(len(c.q.disk))
}

func (c *imageConn) ReadAt(p []byte, off int64) (int, error) {
	select {
	case <-c.done:
		return 0, errors.New("the export is gone")
	default:
	}
	c.q.mu.RLock()
	defer c.q.mu.RUnlock()
	return copy(p, c.q.disk[off:]), nil
}

func (c *imageConn) BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error {
	set := func(at int64) bool {
		c.q.mu.RLock()
		defer c.q.mu.RUnlock()
		if !c.bitmap {
			return isZero(c.q.disk[at : at+BlockBytes])
		}
		for _, d := range c.q.dirty {
			if d.off <= at && at < d.end {
				return true
			}
		}
		return false
	}
	for end := off + n; off < end; {
		to := off + BlockBytes
		for to < end && set(to) == set(off) {
			to += BlockBytes
		}
		if !emit(to-off, set(off)) {
			return nil
		}
		off = to
	}
	return nil
}

// mirrorRig is a rig with one mirror volume, and the QEMU of its guest.
func mirrorRig(t *testing.T, size int) (*rig, *qemu) {
	t.Helper()
	q := &qemu{disk: make([]byte, size)}
	r := newRig(t, 512, mib, 4*mib, 1)
	r.cfg.Volumes = []FilterVolume{{ID: 1, Name: "vol1", Path: "image.qcow2", Mirror: int64(size)}}
	r.cfg.Dial = q.dial
	return r.open(), q
}

// connect is a connection of QEMU's to the volume.
func (r *rig) connect(q *qemu) (left func()) { return r.vol(0).Connected(q) }

func (q *qemu) Process() int { return 0 }
func (q *qemu) Left() bool   { return true }
func (q *qemu) Gone() bool   { return q.closed.Load() }
func (q *qemu) Drop()        { q.closed.Store(true) }

// join has the mirror stand with everything known that the guest wrote before.
func (r *rig) join(q *qemu, bitmap string) error {
	changes := ""
	if bitmap != "" {
		changes = "changes"
	}
	return r.filtered(0).Join(r.t.Context(), 7, "disk", bitmap, changes)
}

func (r *rig) mustJoin(q *qemu) (left func()) {
	r.t.Helper()
	left = r.connect(q)
	if err := r.join(q, "b"); err != nil {
		r.t.Fatal(err)
	}
	return left
}

// TestMirror: what QEMU writes is captured in order, what it wrote before is read through it, and holes are not.
func TestMirror(t *testing.T) {
	r, q := mirrorRig(t, 8*mib)
	q.set(func() { copy(q.disk[mib:], fill(2*BlockBytes, 1)) })
	tap := r.openTap()
	if m := tap.Mirrors(); len(m) != 1 || m[VolumeInfo{1, "vol1", 8 * mib}] {
		t.Errorf("the VRA sees %v", m)
	}
	if err := tap.SyncRead(t.Context(), 1, 0, 8*mib); err == nil || !strings.Contains(err.Error(), PastUnmirrored.String()) {
		t.Errorf("read before it was joined: %v", err)
	}
	if err := r.join(q, ""); err == nil || !strings.Contains(err.Error(), "no QEMU is connected") {
		t.Errorf("joined by nobody: %v", err)
	}
	r.connect(q)
	if err := r.join(q, ""); err != nil {
		t.Fatal(err)
	}
	if m, err := r.filtered(0).Mirror(t.Context()); err != nil || m != (VolumeMirror{PastNone, 7, 8 * mib}) {
		t.Errorf("%+v, %v", m, err)
	}
	if m := tap.Mirrors(); !m[VolumeInfo{1, "vol1", 8 * mib}] {
		t.Errorf("joined, the VRA sees %v", m)
	}
	if n := dirtyBlocks(t, tap, 1); n != 8*mib/BlockBytes {
		t.Errorf("%d blocks are dirty at first", n)
	}
	write(t, r.vol(0), 4096, fill(512, 2)) // to what is dirty: it is read, and QEMU has it
	q.set(func() { copy(q.disk[4096:], fill(512, 2)) })
	read := make(chan error, 1)
	go func() { read <- tap.SyncRead(t.Context(), 1, 0, 8*mib) }()
	got := make([]byte, 8*mib)
	copy(got, fill(8*mib, 0xee))
	data := int64(0)
	for covered := int64(0); covered < 8*mib; {
		for _, w := range next(t, tap, 1) {
			covered += w.Len
			if w.Kind == SyncZero {
				clear(got[w.Off : w.Off+w.Len])
			} else {
				data += w.Len
				copy(got[w.Off:], payload(w))
			}
			tap.Free([]Write{w})
		}
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if string(got) != string(q.disk) || data > 2*syncChunk {
		t.Errorf("what was read is not the disk, or more than its data: %d bytes", data)
	}
	write(t, r.vol(0), 512, fill(1024, 3))
	if err := r.vol(0).Zero(8192, 4096, true, true); err != nil {
		t.Fatal(err)
	}
	ws := next(t, tap, 2)
	if ws[0].Off != 512 || string(payload(ws[0])) != string(fill(1024, 3)) || ws[1].Kind != Zero || ws[1].Off != 8192 || ws[0].Ticket >= ws[1].Ticket {
		t.Errorf("captured: %+v", ws)
	}
	tap.Free(ws)
	if err := r.vol(0).ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a mirror target is read by who writes to it")
	}
	if err := r.vol(0).Flush(); err != nil {
		t.Error(err)
	}
}

// TestMirrorIsLost: however a mirror ends, no cut after it finds lost as it was, and no resync closes.
func TestMirrorIsLost(t *testing.T) {
	f := func(name string, end func(r *rig, q *qemu, left func())) {
		t.Run(name, func(t *testing.T) {
			r, q := mirrorRig(t, 8*mib)
			left := r.mustJoin(q)
			tap := r.covered()
			lost := tap.Lost()
			write(t, r.vol(0), 0, fill(4096, 1))
			if tap.LookAtMirrors(t.Context()); tap.Lost() != lost {
				t.Fatal("a mirror that stands is said to be lost")
			}
			end(r, q, left)
			if tap.LookAtMirrors(t.Context()); tap.Lost() == lost {
				t.Fatal("lost does not tell")
			}
			within(t, "the filter says so", func() bool { p, err := r.filtered(0).Past(t.Context()); return err == nil && p.Past == PastUnmirrored })
			if n := dirtyBlocks(t, tap, 1); n < 1 || n > 2 {
				t.Errorf("%d blocks are dirty", n)
			}
			if err := tap.SyncRead(t.Context(), 1, 0, 8*mib); err == nil || !strings.Contains(err.Error(), PastUnmirrored.String()) {
				t.Errorf("a sync read: %v", err)
			}
			// QEMU comes back, and tells what it wrote.
			q.closed.Store(false)
			q.set(func() { q.dirty = []span{{5 * mib, 5*mib + BlockBytes}} })
			r.mustJoin(q)
			if n := dirtyBlocks(t, tap, 1); n != 8*mib/BlockBytes { // the region is the whole of so small a disk
				t.Errorf("joined anew, %d blocks are dirty", n)
			}
		})
	}
	f("seen before it is read", func(_ *rig, q *qemu, _ func()) { q.closed.Store(true) })
	f("left", func(_ *rig, _ *qemu, left func()) { left() })
	refused := func(what string, do func(v *volume) error) {
		f("refused "+what, func(r *rig, _ *qemu, _ func()) {
			if do(r.vol(0)) == nil {
				r.t.Error("it is not refused")
			}
		})
	}
	refused("before it came here", func(v *volume) error { err := errors.New("beyond the end"); v.Refused(err); return err })
	refused("beyond the end", func(v *volume) error { _, err := v.BeginWrite(8*mib, 512); return err })
	refused("as too long", func(v *volume) error { _, err := v.BeginWrite(0, 0); return err })
	refused("zeroes", func(v *volume) error { return v.Zero(8*mib-512, 1024, true, false) })
	refused("discard", func(v *volume) error { return v.Trim(8*mib-512, 1024, false) })
	refused("by the disk", func(v *volume) error {
		v.syncFailed.Store(true)
		defer v.syncFailed.Store(false)
		return v.Zero(0, 4096, true, true)
	})
	f("detached", func(r *rig, _ *qemu, _ func()) {
		if err := r.filtered(0).Detach(r.t.Context()); err != nil {
			r.t.Error(err)
		}
	})
	f("killed", func(r *rig, _ *qemu, _ func()) { // its guest goes on, and there is nobody to ask
		r.kill()
		within(r.t, "the VRA sees it", func() bool { return r.tap.Stats().Filters == 0 })
		if m := r.tap.Mirrors(); len(m) != 1 || m[VolumeInfo{1, "vol1", 8 * mib}] {
			r.t.Errorf("the filter is gone, and the VRA sees %v", m)
		}
		for range 2 { // as long as it is gone
			before := r.tap.Lost()
			if r.tap.LookAtMirrors(r.t.Context()); r.tap.Lost() == before {
				r.t.Fatal("lost does not tell that the filter is gone")
			}
		}
		r.tap.Follow(r.cfg.PoolSocket, false)
		before := r.tap.Lost()
		if r.tap.LookAtMirrors(r.t.Context()); r.tap.Lost() != before || len(r.tap.Mirrors()) > 0 {
			r.t.Error("a filter that is gone and not needed is missed")
		}
		r.tap.Follow(r.cfg.PoolSocket, true)
		r.open()
		within(r.t, "the VRA is back", func() bool { return r.tap.Stats().Filters == 1 })
	})
	f("hung", func(r *rig, _ *qemu, _ func()) { // nobody answers: not known is lost
		m := r.vol(0).mirror
		m.mu.Lock()
		before := r.tap.Lost()
		ctx, cancel := context.WithCancel(r.t.Context())
		cancel()
		if r.tap.LookAtMirrors(ctx); r.tap.Lost() != before {
			r.t.Error("who asked has gone, and that is counted")
		}
		r.tap.LookAtMirrors(r.t.Context())
		told := r.tap.Lost() != before
		if m.mu.Unlock(); !told {
			r.t.Fatal("lost does not tell that nobody answers")
		}
		r.kill()
		r.open()
		within(r.t, "the VRA is back", func() bool { return r.tap.Stats().Filters == 1 })
	})
}

// TestMirrorHangs: of a mirror whose write does not end the connection is given up, so that the guest goes on, and lost tells before it does;
// the filter goes on too; and nobody is mirrored there until that write has ended.
func TestMirrorHangs(t *testing.T) {
	r, q := mirrorRig(t, 8*mib)
	v := r.vol(0)
	server := &nbd.Server{}
	if err := server.Add(nbd.Export{Name: "vol1", Device: v}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(r.dir, "nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { _ = server.Serve(ctx, l) })
	connect := func() *nbd.Client {
		t.Helper()
		c, err := nbd.Dial(t.Context(), nbd.URI{Network: "unix", Address: socket, Export: "vol1"}.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		within(t, "the connection", func() bool { v.mirror.mu.Lock(); defer v.mirror.mu.Unlock(); return len(v.mirror.mu.conns) > 0 })
		return c
	}
	first := connect()
	if err := r.join(q, "b"); err != nil {
		t.Fatal(err)
	}
	tap := r.covered()
	wg.Go(func() {
		if err := r.filter.Guard(ctx, func(string) { t.Error("the filter is to end") }); err != nil {
			t.Error(err)
		}
	})
	lost := tap.Lost()
	stuck := &flight{lo: 4096, hi: 8192, off: 4096, end: 8192}
	v.mu.Lock()
	v.mu.flights.add(stuck)
	v.mu.Unlock()
	unstick := sync.OnceFunc(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.mu.flights.remove(stuck)
	})
	defer unstick()
	for range 50 { // others end, which is no excuse
		if _, err := first.WriteAt(make([]byte, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := first.WriteAt(make([]byte, 4096), 4096); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("the write that hangs: %v", err)
	}
	if tap.Lost() == lost || v.past() != PastUnmirrored {
		t.Errorf("lost is %d as before, past %v", lost, v.past())
	}
	if err := r.join(q, "b"); err == nil || !strings.Contains(err.Error(), errHangs.Error()) {
		t.Errorf("joined: %v", err)
	}
	second := connect()
	<-second.Done() // dropped as well
	unstick()
	within(t, "the end of the write", func() bool { return !v.mirror.hung() })
	within(t, "the end of the connections", func() bool { return server.Clients() == 0 })
	connect()
	if err := r.join(q, "b"); err != nil {
		t.Error(err)
	}
}

// leavingQEMU is a connection that QEMU has closed; seen is called when somebody looks.
type leavingQEMU struct{ seen func() }

func (q leavingQEMU) Gone() bool   { q.seen(); return true }
func (q leavingQEMU) Drop()        {}
func (q leavingQEMU) Process() int { return 0 }
func (q leavingQEMU) Left() bool   { return false }

// TestMirrorJoinsAfter: a write of a connection that QEMU has closed ends before what was written past us since is marked: ended
// later it would stand for it.
func TestMirrorJoinsAfter(t *testing.T) {
	r, q := mirrorRig(t, 8*mib)
	v := r.vol(0)
	tap := r.covered()
	stalled, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	left := v.Connected(leavingQEMU{sync.OnceFunc(func() { close(goOn) })})
	go func() {
		defer close(ended)
		if err := v.carryOut(v.begin(mib, 4096, Zero), false, func() error { close(stalled); <-goOn; return nil }); err != nil {
			t.Error(err)
		}
		left()
	}()
	<-stalled
	q.set(func() { // the guest goes on meanwhile
		copy(q.disk[mib:], fill(4096, 7))
		q.dirty = []span{{mib, mib + 4096}}
	})
	r.connect(q)
	q.set(func() {
		q.dialed = func() {
			select {
			case <-ended:
			default:
				t.Error("joined beside a write of before")
			}
		}
	})
	if err := r.join(q, "b"); err != nil {
		t.Error(err)
	}
	v.mu.Lock()
	dirty := v.mu.marks.allDirty(mib/BlockBytes, mib/BlockBytes+1)
	v.mu.Unlock()
	if !dirty || v.past() != PastNone {
		t.Errorf("what was written meanwhile is not dirty, or it does not stand: %v", v.past())
	}
	if tap.Stats().Filters != 1 {
		t.Error("the VRA has left")
	}
}

// TestMirrorChanges: what QEMU's bitmap tells is dirty, by whole regions, and nothing else.
func TestMirrorChanges(t *testing.T) {
	const per = activity.RegionBytes / BlockBytes
	r, q := mirrorRig(t, 5*activity.RegionBytes+3*mib)
	tap := r.covered()
	f := func(want int64, dirty ...span) {
		t.Helper()
		v := r.vol(0)
		v.mu.Lock()
		v.mu.marks.dirty -= v.mu.marks.file.dirty.clear(0, v.mu.marks.file.dirty.blocks)
		v.mu.Unlock()
		q.set(func() { q.dirty = dirty })
		left := r.mustJoin(q)
		if n := dirtyBlocks(t, tap, 1); n != want {
			t.Errorf("%v: %d blocks are dirty, want %d", dirty, n, want)
		}
		left()
	}
	f(0)
	f(per, span{0, BlockBytes})
	f(per, span{BlockBytes, 2 * BlockBytes}, span{8 * BlockBytes, 9 * BlockBytes})
	f(2*per, span{activity.RegionBytes - BlockBytes, activity.RegionBytes + BlockBytes})
	f(2*per, span{0, BlockBytes}, span{3 * activity.RegionBytes, 4 * activity.RegionBytes})
	f(3*mib/BlockBytes, span{5*activity.RegionBytes + 2*mib, 5*activity.RegionBytes + 3*mib})
}

// TestMirrorRefuses: what cannot be a mirror is told, and changes nothing.
func TestMirrorRefuses(t *testing.T) {
	r, q := mirrorRig(t, 8*mib)
	left := r.connect(q)
	f := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if r.vol(0).past() != PastUnmirrored {
			t.Error("it stands")
		}
	}
	named := r.filtered(0)
	q.set(func() { q.refuse = errors.New("no such export") })
	f("read the guest's disk: no such export", r.join(q, ""))
	q.set(func() { q.refuse = nil })
	q.set(func() { q.disk = q.disk[:4*mib] })
	f("the guest's disk has 4194304 bytes, and the volume 8388608", r.join(q, ""))
	q.set(func() { q.disk = q.disk[:8*mib] })
	q.closed.Store(true)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	f(errLeaving.Error(), r.vol(0).mirror.join(over, mirrorJoin{token: 7, source: "disk"}))
	left()
	f("no QEMU is connected", r.join(q, ""))
	q.closed.Store(false)
	r.connect(q)
	f("mirror target: holdfast attach --mirror", named.Attach(t.Context()))
	f("joining with 3 names", named.Join(t.Context(), 0, "disk", "", ""))
	_, err := named.put(t.Context(), request{ask: askMirror, max: 9}, pastWait)
	f("unknown wish 9", err)
	if err := r.join(q, ""); err != nil {
		t.Error(err)
	}

	plain := newRig(t, 512, 4*mib, mib, 1).open()
	if _, err := plain.filtered(0).Mirror(t.Context()); err == nil || !strings.Contains(err.Error(), "no mirror target") {
		t.Error(err)
	}
	for _, p := range [][]byte{nil, fill(24, 9), fill(23, 0)} {
		if _, err := parseMirror(p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v", p, err)
		}
	}
	if m, err := parseMirror(mirrorBody(VolumeMirror{PastUnmirrored, 1 << 62, 512})); err != nil || m != (VolumeMirror{PastUnmirrored, 1 << 62, 512}) {
		t.Errorf("%+v, %v", m, err)
	}
	bad := r.cfg
	bad.Volumes = []FilterVolume{{ID: 1, Name: "vol1", Mirror: 1000}}
	bad.Dial = nil
	if err := bad.validate(); err == nil || !strings.Contains(err.Error(), "multiple of 512") || !strings.Contains(err.Error(), "no way to read") {
		t.Error(err)
	}
}

// TestMirrorSource: a connection to QEMU's export that was lost is made anew.
func TestMirrorSource(t *testing.T) {
	q := &qemu{disk: make([]byte, mib)}
	q.set(func() { copy(q.disk[BlockBytes:], fill(BlockBytes, 1)) })
	f := &mirrorFile{bytes: mib, connect: q.dial}
	p := make([]byte, BlockBytes)
	if _, err := f.ReadAt(p, 0); !errors.Is(err, errNoSource) {
		t.Error(err)
	}
	for range 2 { // another takes the place of the first
		if err := f.open(t.Context(), "disk"); err != nil {
			t.Fatal(err)
		}
	}
	if at, n, err := f.NextData(0); at != BlockBytes || n != BlockBytes || err != nil {
		t.Error(at, n, err)
	}
	f.mu.client.Close()
	if n, err := f.ReadAt(p, BlockBytes); n != BlockBytes || err != nil || p[0] != 1 {
		t.Error(n, err)
	}
	if n, err := f.ReadAt(p, mib-512); n != 512 || err != io.EOF {
		t.Error(n, err)
	}
	if at, n, err := f.NextData(2 * BlockBytes); at != 0 || n != 0 || err != nil {
		t.Error(at, n, err)
	}
	if q.dials.Load() != 3 {
		t.Errorf("%d connections", q.dials.Load())
	}
	q.set(func() { q.refuse = errors.New("QEMU is gone") })
	f.mu.client.Close()
	if _, err := f.ReadAt(p, 0); !errors.Is(err, q.refuse) {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := f.NextData(512 << 10); !errors.Is(err, errNoSource) {
		t.Error(err)
	}
}

// asked is a Source of a disk without data but at one place, that keeps what it was asked of.
type asked struct {
	Source
	bytes, data int64
	asks        []span
}

func (a *asked) Size() int64           { return a.bytes }
func (a *asked) Done() <-chan struct{} { return nil }
func (a *asked) Close() error          { return nil }

func (a *asked) BlockStatus(off, n int64, emit func(n int64, hole bool) bool) error {
	a.asks = append(a.asks, span{off, off + n})
	switch end := off + n; {
	case end <= a.data || off > a.data:
		emit(n, true)
	case off == a.data || emit(a.data-off, true):
		emit(end-a.data, false)
	}
	return nil
}

// TestMirrorStatus: QEMU is asked of little where there is data, of more where there is none, and of no more than what is used of the answer.
func TestMirrorStatus(t *testing.T) {
	const tib, gib = 1 << 40, 1 << 30
	a := &asked{bytes: tib, data: 3*gib + 64<<10}
	f := &mirrorFile{bytes: tib, connect: func(context.Context, string, string) (Source, error) { return a, nil }}
	if err := f.open(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	look := func(off, wantAt, wantN int64, most int64, asks int) {
		t.Helper()
		a.asks = nil
		at, n, err := f.NextData(off)
		if at != wantAt || n != wantN || err != nil {
			t.Errorf("at %d: data at %d, %d bytes, %v; want %d and %d", off, at, n, err, wantAt, wantN)
		}
		for i, s := range a.asks {
			if s.end-s.off > most || i == 0 && s.end-s.off > 4*mib {
				t.Errorf("at %d QEMU was asked of %v", off, a.asks)
			}
		}
		if len(a.asks) != asks {
			t.Errorf("at %d QEMU was asked %d times, want %d", off, len(a.asks), asks)
		}
	}
	look(a.data, a.data, 4*mib, 4*mib, 1)
	look(a.data+128<<10, a.data+128<<10, 4*mib-128<<10, 0, 0) // known
	f.mu.known = span{}
	look(a.data-64<<10, a.data, 4*mib-64<<10, 4*mib, 1)
	f.mu.known = span{}
	look(0, 4*mib, BlockBytes, 4*mib, 1) // not known to be data; and it is asked for again
	f.mu.known = span{}
	look(4*mib, 8*mib, BlockBytes, 4*mib, 1)
	f.mu.known = span{}
	look(tib-512, 0, 0, 512, 1)
	look(tib-6*mib, tib-2*mib, BlockBytes, 4*mib, 1)
}

// TestMirrorBecomesADisk: a volume that is another kind in the filter's new file has everything dirty, and nobody writes past a disk.
func TestMirrorBecomesADisk(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1)
	q := &qemu{disk: make([]byte, 4*mib)}
	r.cfg.Dial = q.dial
	mirror, disk := r.cfg.Volumes[0], r.cfg.Volumes[0]
	mirror.Mirror = 4 * mib
	f := func(v FilterVolume, want Past, dirty int64) {
		t.Helper()
		r.cfg.Volumes = []FilterVolume{v}
		r.open()
		tap := r.openTap()
		if v.Mirror > 0 { // what QEMU noted while it was a disk, or before, is not all
			if m, err := r.filtered(0).Mirror(t.Context()); err != nil || m.Token != 0 {
				t.Errorf("%+v, %v", m, err)
			}
		}
		if n := dirtyBlocks(t, tap, 1); n != dirty || r.vol(0).past() != want {
			t.Errorf("%d blocks are dirty, %v; want %d, %v", n, r.vol(0).past(), dirty, want)
		}
		tap.Close()
		r.covered().Close() // as after a resync
		if v.Mirror > 0 {
			r.mustJoin(q)()
		}
		r.stopRun()
		if err := r.filter.Close(); err != nil {
			t.Error(err)
		}
		r.filter, r.tap = nil, nil
	}
	f(mirror, PastUnmirrored, 4*mib/BlockBytes)
	f(disk, PastNone, 4*mib/BlockBytes)
	f(mirror, PastUnmirrored, 1) // it is joined without a bitmap, as none is known, and all is dirty then
}

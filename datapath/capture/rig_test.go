package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// model is a file system with nothing but disks: each takes its sectors one at a time,
// so that reads beside writes see them torn, and reports writes that overlap.
type model struct {
	mu    sync.Mutex
	disks map[string]*modelDisk
	locks map[string]bool
}

type modelDisk struct {
	looks int // NextData

	align    int
	fail     atomic.Bool // writes fail
	failRead atomic.Bool
	dead     atomic.Bool // its process was killed: whoever writes ends there
	gate     atomic.Pointer[func(write bool, off int64)]
	t        testing.TB

	mu     sync.Mutex
	data   []byte
	flying [][2]int64
}

func newModel(t testing.TB, align int, size int64, names ...string) *model {
	m := &model{disks: map[string]*modelDisk{}, locks: map[string]bool{}}
	for _, n := range names {
		m.disks[n] = &modelDisk{t: t, align: align, data: make([]byte, size)}
	}
	return m
}

func (m *model) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.disks[name]
	if d == nil {
		return nil, os.ErrNotExist
	}
	align := 1
	if flags&ioengine.Direct != 0 {
		align = d.align
	}
	return &modelFile{d, align}, nil
}

func (m *model) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locks[name] {
		return nil, ioengine.ErrLocked
	}
	m.locks[name] = true
	return closer(func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.locks[name] = false
		return nil
	}), nil
}

type closer func() error

func (c closer) Close() error { return c() }

func (m *model) Rename(string, string) error   { return errors.ErrUnsupported }
func (m *model) Remove(string) error           { return errors.ErrUnsupported }
func (m *model) Mkdir(string) error            { return errors.ErrUnsupported }
func (m *model) List(string) ([]string, error) { return nil, errors.ErrUnsupported }
func (m *model) Free(string) (int64, error)    { return 0, errors.ErrUnsupported }
func (m *model) SyncDir(string) error          { return errors.ErrUnsupported }
func (m *model) SyncFiles([]ioengine.File) error {
	return errors.ErrUnsupported
}

type modelFile struct {
	*modelDisk
	align int
}

func (f *modelFile) Align() int { return f.align }

func (f *modelFile) check(off int64, n int) {
	if off%int64(f.align) != 0 || n%f.align != 0 {
		f.t.Errorf("access of %d bytes at %d, alignment is %d", n, off, f.align)
	}
}

func (d *modelDisk) pass(write bool, off int64) {
	if g := d.gate.Load(); g != nil {
		(*g)(write, off)
	}
	if d.dead.Load() {
		runtime.Goexit()
	}
}

// sectors calls f for every sector of [off, off+n), now and then letting others run.
func (d *modelDisk) sectors(off int64, n int, f func(at int64, from, to int)) {
	for i := 0; i < n; {
		to := min(n, i+512-int((off+int64(i))%512))
		d.mu.Lock()
		f(off+int64(i), i, to)
		d.mu.Unlock()
		i = to
		if rand.IntN(8) == 0 {
			runtime.Gosched()
		}
	}
}

func (f *modelFile) ReadAt(p []byte, off int64) (int, error) {
	f.check(off, len(p))
	f.pass(false, off)
	if f.failRead.Load() {
		return 0, errors.New("the disk cannot be read")
	}
	if off+int64(len(p)) > int64(len(f.data)) {
		return 0, io.EOF
	}
	f.sectors(off, len(p), func(at int64, from, to int) { copy(p[from:to], f.data[at:]) })
	return len(p), nil
}

func (f *modelFile) WriteAt(p []byte, off int64) (int, error) {
	f.check(off, len(p))
	return len(p), f.change(off, len(p), func(at int64, from, to int) { copy(f.data[at:], p[from:to]) })
}

func (f *modelFile) WriteStart(parts [][]byte, off int64, done func(error)) {
	go func() {
		_, err := f.WriteAt(slices.Concat(parts...), off)
		done(err)
	}()
}

func (f *modelFile) WriteParts(parts [][]byte, off int64) error {
	_, err := f.WriteAt(slices.Concat(parts...), off)
	return err
}

func (f *modelFile) Zero(off, n int64) error {
	return f.change(off, int(n), func(at int64, from, to int) { clear(f.data[at : at+int64(to-from)]) })
}

func (f *modelFile) change(off int64, n int, step func(at int64, from, to int)) error {
	f.pass(true, off)
	if f.fail.Load() {
		return errors.New("the disk fails")
	}
	me := [2]int64{off, off + int64(n)}
	f.mu.Lock()
	for _, o := range f.flying {
		if o[0] < me[1] && me[0] < o[1] {
			f.t.Errorf("writes overlap: %v, %v", me, o)
		}
	}
	f.flying = append(f.flying, me)
	f.mu.Unlock()
	f.sectors(off, n, step)
	f.mu.Lock()
	for i, o := range f.flying {
		if o == me {
			f.flying = append(f.flying[:i], f.flying[i+1:]...)
			break
		}
	}
	f.mu.Unlock()
	f.pass(true, off)
	return nil
}

func (f *modelFile) WillRead(int64, int64)  {}
func (f *modelFile) WriteBack(int64, int64) {}

func (f *modelFile) NextData(off int64) (at, n int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks++
	at, n = f.nextLocked(off)
	return at, n, nil
}

// DataFrom looks for no end.
func (f *modelFile) DataFrom(off int64) (at int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, n := f.nextLocked(off)
	if n == 0 {
		at = -1
	}
	return at, nil
}

func (f *modelFile) nextLocked(off int64) (at, n int64) {
	const unit = 4096
	hole := func(at int64) bool { return isZero(f.data[at:min(at+unit, int64(len(f.data)))]) }
	size := int64(len(f.data))
	at = off
	for at < size && hole(at/unit*unit) {
		at = at/unit*unit + unit
	}
	if at >= size {
		return 0, 0
	}
	end := at
	for end < size && !hole(end/unit*unit) {
		end = end/unit*unit + unit
	}
	return at, min(end, size) - at
}

func (f *modelFile) Sync() error                 { f.pass(true, 0); return nil }
func (f *modelFile) Allocate(off, n int64) error { return nil }
func (f *modelFile) Truncate(int64) error        { return errors.ErrUnsupported }
func (f *modelFile) Size() (int64, error)        { return int64(len(f.data)), nil }
func (f *modelFile) Close() error                { return nil }

// stopAt makes the first access that matches wait until it is released, at the latest
// when the test ends; entered is closed when it has come.
func stopAt(t testing.TB, d *modelDisk, match func(write bool, off int64) bool) (entered <-chan struct{}, release func()) {
	came, free := make(chan struct{}), make(chan struct{})
	var taken atomic.Bool
	before := d.gate.Load()
	gate := func(write bool, off int64) {
		if before != nil {
			(*before)(write, off)
		}
		if match(write, off) && taken.CompareAndSwap(false, true) {
			close(came)
			<-free
		}
	}
	d.gate.Store(&gate)
	release = sync.OnceFunc(func() { close(free) })
	t.Cleanup(release)
	return came, release
}

const testGroup = record.GroupID(0x1234)

// rig is one filter over a model, and taps that come and go.
type rig struct {
	t      testing.TB
	dir    string
	model  *model
	cfg    FilterConfig
	filter *Filter
	stop   context.CancelFunc
	ran    chan error
	tap    *Tap
}

func newRig(t testing.TB, align int, size, pool int64, volumes int) *rig {
	dir, err := os.MkdirTemp("", "hf") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir}
	var names []string
	r.cfg = FilterConfig{RunDir: dir, Group: testGroup, PoolBytes: pool, PoolSocket: filepath.Join(dir, "pool"), Log: testLog(t)}
	for i := range volumes {
		name := fmt.Sprintf("vol%d", i+1)
		names = append(names, name)
		r.cfg.Volumes = append(r.cfg.Volumes, FilterVolume{ID: record.VolumeID(i + 1), Name: name, Path: name})
	}
	r.model = newModel(t, align, size, names...)
	r.cfg.FS = r.model
	t.Cleanup(func() {
		if r.tap != nil {
			r.tap.Close()
		}
		if r.filter != nil {
			r.stopRun()
			r.filter.Close()
		}
	})
	return r
}

func testLog(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return slog.New(slog.DiscardHandler)
}

// open starts the filter.
func (r *rig) open() *rig {
	r.t.Helper()
	f, err := OpenFilter(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.filter = f
	r.run()
	return r
}

func (r *rig) run() {
	ctx, stop := context.WithCancel(context.Background())
	r.stop, r.ran = stop, make(chan error, 1)
	go func() { r.ran <- r.filter.Run(ctx) }()
}

func (r *rig) stopRun() {
	r.stop()
	if err := <-r.ran; err != nil {
		r.t.Errorf("Run: %v", err)
	}
	r.ran <- nil
}

// kill ends the filter as SIGKILL would. Its writers must be blocked or gone.
func (r *rig) kill() {
	r.stopRun()
	r.filter.abandon()
	r.filter = nil
}

// openTap opens a tap, as a VRA that starts does, and waits until it has the filter.
func (r *rig) openTap() *Tap {
	r.t.Helper()
	t, err := OpenTap(TapConfig{RunDir: r.dir, Group: testGroup, Filters: []string{r.cfg.PoolSocket}, Log: testLog(r.t)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.tap = t
	within(r.t, "the filter answers", func() bool { _, ok := t.Volumes(); return ok })
	return t
}

// covered has a tap that begins afresh with nothing dirty, as after a resync: it drops
// the dirty map behind the product's back.
func (r *rig) covered() *Tap {
	r.t.Helper()
	t := r.openTap()
	for _, v := range r.filter.volumes {
		v.mu.Lock()
		v.mu.marks.dirty -= v.mu.marks.file.dirty.clear(0, v.mu.marks.file.dirty.blocks)
		v.mu.Unlock()
	}
	t.RaiseIncarnation(0)
	t.SetLostCovered(t.Lost())
	return t
}

func (r *rig) vol(i int) *volume { return r.filter.volumes[i] }

// patience is how long a test waits for what must come. Only what never comes takes it
// all: a loaded machine is late by seconds.
const patience = time.Minute

// within polls until ok, and has patience.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Microsecond) // what it waits for needs the processor too
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func write(t testing.TB, d front.Device, off int64, p []byte) {
	t.Helper()
	if err := tryWrite(d, off, p); err != nil {
		t.Fatalf("write of %d at %d: %v", len(p), off, err)
	}
}

func tryWrite(d front.Device, off int64, p []byte) error {
	w, err := d.BeginWrite(off, len(p))
	if err != nil {
		return err
	}
	for _, b := range w.Buffers() {
		p = p[copy(b, p):]
	}
	return w.Commit(false)
}

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

// next returns the next n writes of the tap.
func next(t testing.TB, tap *Tap, n int) (ws []Write) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for len(ws) < n {
		got, err := tap.Next(ctx, n-len(ws), time.Second)
		if err != nil {
			t.Fatalf("after %d of %d writes: %v", len(ws), n, err)
		}
		ws = append(ws, got...)
	}
	return ws
}

func none(t testing.TB, tap *Tap) {
	t.Helper()
	ws, err := tap.Next(t.Context(), 10, 30*time.Millisecond)
	if err != nil || len(ws) > 0 {
		t.Fatalf("Next: %+v, %v; want nothing", ws, err)
	}
}

func payload(w Write) []byte { return bytes.Join(w.Data, nil) }

func dirtyBlocks(t testing.TB, tap *Tap, vol record.VolumeID) int64 {
	t.Helper()
	d, err := tap.Dirty(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return d[vol].Blocks
}

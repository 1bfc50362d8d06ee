package stripe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// The shape of the sets whose upkeep is tested: with a shard and a copy damaged, one store
// may still fail.
var upkeepShape = Geometry{2, 2}

// neglected is a set that needs all upkeep there is: the copies of /j/raw differ, in bytes
// and in size, by what was not synced; a shard of /j/g/1.seg is damaged, and so is the copy
// of /j/late that is served; /j/open was to be sealed under its writer; and /new holds what
// an earlier membership left.
func neglected(t *testing.T) (*world, *promises) {
	t.Helper()
	w, p := newWorld(t, 4), newPromises()
	s := mustOpen(t, w, upkeepShape)
	ok(t, story(s, p))
	late := noise(50, 2*BlockBytes)
	for _, name := range []string{"/j/late", "/j/open"} {
		put(t, s, name, late)
		p.begin(name, late)
		p.kept(name)
	}
	f, err := s.Open("/j/open", 0)
	ok(t, err)
	if err := s.Seal("/j/open", nil); !errors.Is(err, ErrBusy) {
		t.Fatalf("sealed under a writer: %v", err)
	}
	ok(t, f.Close())
	raw, err := s.Open("/j/raw", 0)
	ok(t, err)
	before, err := get(s, "/j/raw")
	ok(t, err)
	after := append(slices.Clone(before), noise(51, 512)...)
	copy(after, noise(52, 512))
	_, err = raw.WriteAt(after[len(before):], int64(len(before)))
	ok(t, err)
	_, err = raw.WriteAt(after[:512], 0)
	ok(t, err)
	p.may["/j/raw"] = [][]byte{before, after}
	places := s.names.objects[s.names.files["/j/raw"]].places
	ahead := s.stores[places[1]].dir // its copy is longer than the one that is served
	shard := objectFile(s, "/j/g/1.seg", "/s1")
	served := s.stores[s.names.objects[s.names.files["/j/late"]].places[0]].dir
	copied := objectFile(s, "/j/late", served)
	written := objectFile(s, "/j/raw", ahead)
	power := w.each(func(dir string, d *faultdisk.Disk) *faultdisk.Disk {
		if dir == ahead { // this disk had written out what was not synced
			return d.Kill()
		}
		return d.Crash(seeded(1), faultdisk.KeepNone)
	})
	f, err = power.disks[ahead].Open(written, 0)
	ok(t, err)
	ok(t, f.Sync())
	ok(t, power.disks["/s1"].Rot(shard, 4096+100, 1))
	ok(t, power.disks[served].Rot(copied, 100, 1))
	delete(p.may, "/j/late") // until it is repaired
	d := power.disks[power.disk(t, "/new")]
	ok(t, d.Mkdir("/new/"+objectsName))
	put(t, d, "/new/"+objectsName+"/00000000000000ff", noise(1, 512))
	ok(t, d.SyncDir("/new"))
	ok(t, d.SyncDir("/new/"+objectsName))
	return power, p
}

// upkeep does with a set what is done with one beside its use: every one of its steps, also
// when others failed. It returns what failed.
func upkeep(s *Set, p *promises) error {
	ctx := context.Background()
	var failed []error
	note := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
	}
	raw, err := startWriter(s) // its copies are made alike
	note("open", err)
	_, err = s.Free("/")
	note("free", err)
	note("probe", s.Probe())
	note("scrub", s.Scrub(ctx, nil))
	var late bytes.Buffer
	note("repair", s.Repair("/j/late", []Part{{0, 4096}}, &late))
	if late.Len() > 0 && !bytes.Equal(late.Bytes(), noise(50, 2*BlockBytes)[:late.Len()]) {
		note("repair", errDifferent)
	}
	note("add", s.Add("/new"))
	note("retire", s.Retire("/s0"))
	wrote := 0
	note("mend", s.Mend(ctx, func(int) error { // beside a writer
		if raw != nil && raw.filling() && wrote < 3 {
			wrote++
			note("write", raw.change(p, 512*wrote, noise(wrote, 512), func(p []byte, off int64) error {
				d := newDone()
				raw.f.WriteStart([][]byte{p}, off, d.take)
				return d.wait(1)
			}))
		}
		return nil
	}))
	if raw != nil {
		note("zero", raw.change(p, 0, make([]byte, 512), func(p []byte, off int64) error { return raw.f.Zero(off, int64(len(p))) }))
		note("allocate", raw.change(p, len(raw.now), make([]byte, 512), func(p []byte, off int64) error { return raw.f.Allocate(off, int64(len(p))) }))
		_, _, err = raw.f.NextData(0)
		note("next data", err)
		n, err := raw.f.Size()
		note("size", err)
		if err == nil && !raw.failed && n != int64(len(raw.now)) {
			note("size", errDifferent)
		}
		note("close", raw.f.Close())
	}
	for _, name := range []string{"/j/g/1.seg", "/j/raw"} {
		for i := range s.Copies(name) {
			_, err = s.ReadCopy(name, i, buf.Aligned(4096), 0)
			note("read a copy", err)
		}
	}
	return errors.Join(failed...)
}

// writer changes /j/raw a sector at a time, until that fails.
type writer struct {
	f      ioengine.File
	now    []byte
	failed bool
}

func startWriter(s *Set) (*writer, error) {
	f, err := s.Open("/j/raw", 0)
	if err != nil {
		return nil, err
	}
	now, err := get(s, "/j/raw")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &writer{f: f, now: now}, nil
}

// filling says whether one more copy of the file is being made.
func (w *writer) filling() bool {
	o := w.f.(*handle).object
	o.layout.RLock()
	defer o.layout.RUnlock()
	return o.fill != nil
}

// change does one change and makes it durable, and promises that.
func (w *writer) change(p *promises, at int, with []byte, do func(p []byte, off int64) error) error {
	if w.failed {
		return nil
	}
	next := make([]byte, max(len(w.now), at+len(with)))
	copy(next, w.now)
	copy(next[at:], with)
	p.begin("/j/raw", w.now)
	p.begin("/j/raw", next)
	err := do(with, int64(at))
	if err == nil {
		err = w.f.Sync()
	}
	if w.failed = err != nil; !w.failed {
		p.kept("/j/raw")
		w.now = next
	}
	return err
}

var errDifferent = errors.New("other bytes")

// keptAfter holds a world against its promises. With mends it then does the upkeep with
// nothing failing, after which any two stores may go.
func keptAfter(t *testing.T, w *world, p *promises, mends bool, lose ...string) error {
	t.Helper()
	w.dirs = append(slices.Clone(w.dirs), "/new")
	s, err := w.open(upkeepShape)
	if err != nil {
		return err
	}
	if err := p.check(s); err != nil || !mends {
		return errors.Join(err, s.Close())
	}
	for _, st := range s.State().Stores {
		if st.State == memberOut.String() {
			err = errors.Join(err, s.Add(st.Dir))
		}
	}
	if err := errors.Join(err, s.Scrub(context.Background(), nil), mend(s)); err != nil {
		return fmt.Errorf("upkeep again: %w", err)
	}
	if st := s.State(); st.Spare != upkeepShape.M {
		return fmt.Errorf("mended: %+v", st)
	}
	if err := errors.Join(p.check(s), s.Close()); err != nil {
		return err
	}
	if s, err = w.lose(t, lose...).open(upkeepShape); err != nil {
		return fmt.Errorf("without %v: %w", lose, err)
	}
	return errors.Join(p.check(s), s.Close())
}

// Every operation of a store fails once, or from then on, while a set is opened and kept up:
// nothing promised is lost, in this life or after a crash; and when the store is well again,
// upkeep makes the set whole. The file of the witness fails too.
func TestUpkeepErrorAtEveryOperation(t *testing.T) {
	base, promised := neglected(t)
	for _, c := range []struct {
		fault   faultdisk.Fault
		victims []string
	}{
		{faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO}, []string{"/s0", "/s1", "/s3", "/new", "/host"}},
		{faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true}, []string{"/s1", "/new"}},
		{faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true}, []string{"/s0"}},
	} {
		for _, victim := range c.victims {
			points := 0
			for at := 1; ; at += stride(15) {
				fired, err := upkeepErrorAt(t, base.kill(), promised.clone(), victim, c.fault, at, "/new")
				if err != nil {
					t.Fatalf("%v at operation %d (%#x, ever %v) of %s: %v", c.fault.Err, at, c.fault.Ops, c.fault.Ever, victim, err)
				}
				if !fired {
					break
				}
				points++
			}
			t.Logf("%v (%#x, ever %v) of %s: %d errors", c.fault.Err, c.fault.Ops, c.fault.Ever, victim, points)
		}
	}
}

// stride is how far apart the points of a loop are: with -short (under the race detector) a
// few of them do.
func stride(n int) int {
	if testing.Short() {
		return n
	}
	return 1
}

// upkeepErrorAt keeps a set up with one fault; false when it ended before it.
func upkeepErrorAt(t *testing.T, w *world, p *promises, victim string, fault faultdisk.Fault, at int, other string) (bool, error) {
	t.Helper()
	var seen atomic.Int64
	fault.At, fault.Only = at, func(string) bool { seen.Add(1); return true }
	w.disks[victim].Inject(fault)
	s, err := w.open(upkeepShape)
	if err == nil {
		err = upkeep(s, p)
	}
	fired := seen.Load() >= int64(at)
	w.disks[victim].Heal()
	if !fired && err != nil || errors.Is(err, errDifferent) {
		return fired, err
	}
	if s != nil {
		if err := p.check(s); err != nil {
			return fired, err
		}
		s.Close() // may fail, as everything may
	}
	if err := keptAfter(t, w.crash(at, faultdisk.KeepNone), p, !fired || at%4 == 1, "/s2", other); err != nil {
		return fired, fmt.Errorf("then a crash: %w", err)
	}
	return fired, nil
}

// Power fails at every operation of upkeep, and of the opening after it.
func TestUpkeepCrashAtEveryOperation(t *testing.T) {
	base, promised := neglected(t)
	type point struct {
		w *world
		p *promises
	}
	var mu sync.Mutex
	var points []point
	keeps := []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}
	p := promised.clone()
	for _, d := range base.disks {
		d.OnOp(func(faultdisk.Op, string) {
			mu.Lock()
			defer mu.Unlock()
			points = append(points, point{base.crash(len(points), keeps[len(points)%3]), p.clone()})
		})
	}
	s := mustOpen(t, base, upkeepShape)
	ok(t, upkeep(s, p))
	ok(t, p.check(s))
	for i := 0; i < len(points); i += stride(7) {
		if err := keptAfter(t, points[i].w, points[i].p, i%4 == 0, "/s1", "/new"); err != nil {
			t.Fatalf("crash at %d: %v", i, err)
		}
	}
	t.Logf("%d crashes", len(points))
}

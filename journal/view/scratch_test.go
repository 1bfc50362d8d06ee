package view

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// user writes to a view and knows what the view owes it.
type user struct {
	w    *world
	disk *faultdisk.Disk
	boot byte
	seq  int
	rng  *rand.Rand

	v *View
	d *Device

	now     []byte   // what was answered
	flushed []byte   // what was answered before the last flush that was
	pending []change // since then, the one under way last
	under   bool     // the last of pending is under way
	failed  bool     // a sync has failed
}

type change struct {
	off  int64
	data []byte
}

const testRewrite = headerBytes + 40*entryBytes

func newUser(w *world, disk *faultdisk.Disk, seq int, seed uint64) *user {
	return &user{w: w, disk: disk, boot: 1, seq: seq, rng: rand.New(rand.NewPCG(seed, 3)),
		now: bytes.Clone(w.images[seq]), flushed: bytes.Clone(w.images[seq])}
}

// copy is the same user, who goes on with the view on another disk, opened in that boot.
func (u *user) copy(disk *faultdisk.Disk, boot byte) *user {
	c := *u
	c.disk, c.boot, c.v, c.d = disk, boot, nil, nil
	c.now, c.flushed = bytes.Clone(u.now), bytes.Clone(u.flushed)
	c.pending = append([]change(nil), u.pending...)
	c.rng = rand.New(rand.NewPCG(uint64(len(u.pending)), 4))
	return &c
}

func (u *user) open(again bool) error {
	boot := [16]byte{u.boot}
	v, err := New(Config{Checkpoint: uint64(u.seq), Options: Options{Scratch: true}, FS: u.disk, Dir: "/scratch", Log: u.w.log, Versions: u.w.versions,
		At: at(u.seq), Group: 7, Number: 3, Again: again, Boot: boot,
		Disks: []Disk{{Volume: Volume{ID: 1, Name: "one", Bytes: testBytes}, Replica: u.w.replica}}})
	if err != nil {
		return err
	}
	u.v = v
	u.d, _ = v.Device(1)
	u.d.scratch.rewrite, u.d.scratch.force = testRewrite, testRewrite+20*entryBytes
	if f := u.d.scratch.files.Load(); f != nil {
		f.rewriteAt = testRewrite
	}
	return nil
}

// step does one random thing.
func (u *user) step() error {
	switch u.rng.IntN(8) {
	case 0:
		return u.flush()
	case 1:
		if err := u.v.Leave(); err != nil {
			return err
		}
		return u.open(true)
	}
	off := u.rng.Int64N(testBytes)
	n := min(1+u.rng.Int64N(20000), testBytes-off)
	switch u.rng.IntN(3) {
	case 0:
		n = min(n, 600)
	case 1: // whole blocks
		off = off / blockBytes * blockBytes
		n = min(blockBytes*(1+u.rng.Int64N(3)), testBytes-off)
	}
	p := make([]byte, n)
	zero := u.rng.IntN(3) == 0
	if !zero {
		for i := range p {
			p[i] = byte(u.rng.Uint32()) | 1
		}
	}
	u.pending, u.under = append(u.pending, change{off, p}), true
	var err error
	if zero {
		err = u.d.Zero(off, n)
	} else {
		err = u.d.WriteAt(p, off)
	}
	u.under = false
	if err == nil {
		copy(u.now[off:], p)
		return nil
	}
	if u.failed = u.failed || errors.Is(err, ErrFailed); u.failed {
		return err
	}
	// What failed may have been done in part: what is there now, stays.
	got := make([]byte, n)
	if bad := u.d.ReadAt(got, off); bad != nil {
		return fmt.Errorf("%w; then %w", err, bad)
	}
	for i := range got {
		if got[i] != u.now[off+int64(i)] && got[i] != p[i] {
			return fmt.Errorf("BUG: after %w byte %d is %#x", err, off+int64(i), got[i])
		}
	}
	copy(u.now[off:], got)
	return err
}

func (u *user) flush() error {
	if err := u.d.Flush(); err != nil {
		u.failed = u.failed || errors.Is(err, ErrFailed)
		return err
	}
	u.flushed, u.pending = bytes.Clone(u.now), nil
	return nil
}

// owed holds what is read against what may be: after the end of a process all that was
// answered, after that of the machine what was flushed, and of each byte that was
// written since, that or any later value. What is read is then what counts.
func (u *user) owed(lost bool) error {
	got := make([]byte, testBytes)
	if err := u.d.ReadAt(got, 0); err != nil {
		return err
	}
	base := u.now
	if lost || u.failed {
		base = u.flushed
	}
	for i, b := range got {
		if b != base[i] && !u.may(int64(i), b, lost) {
			return fmt.Errorf("byte %d is %#x, want %#x or what was written since", i, b, base[i])
		}
	}
	u.now = got
	return nil
}

// may says whether a byte may be what a change that may or may not be there made it.
func (u *user) may(at int64, b byte, lost bool) bool {
	for i, c := range u.pending {
		counts := lost || u.failed || u.under && i == len(u.pending)-1
		if counts && at >= c.off && at < c.off+int64(len(c.data)) && (c.data[at-c.off] == b || u.failed && !lost) {
			return true
		}
	}
	return false
}

// goesOn writes and flushes once more; then the machine stops.
func (u *user) goesOn() error {
	for range 3 {
		if err := u.step(); err != nil {
			return fmt.Errorf("going on: %w", err)
		}
	}
	if err := u.flush(); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	c := u.copy(u.disk.Crash(u.rng, faultdisk.KeepNone), u.boot+1)
	if err := c.open(true); err != nil {
		return fmt.Errorf("going on, and again: %w", err)
	}
	if err := c.owed(true); err != nil {
		return fmt.Errorf("going on, and again: %w", err)
	}
	return nil
}

var keeps = []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}

// survives opens a disk as the next process or the next boot finds it; depth times more
// the machine stops at each operation of that.
func (u *user) survives(disk *faultdisk.Disk, lost bool, depth int) error {
	boot := u.boot
	if lost {
		boot++
	}
	c := u.copy(disk, boot)
	var nested error
	if depth > 0 {
		disk.OnOp(func(op faultdisk.Op, name string) {
			if nested != nil {
				return
			}
			again := u.copy(disk, boot)
			if err := again.survives(disk.Crash(u.rng, keeps[u.rng.IntN(len(keeps))]), true, depth-1); err != nil {
				nested = fmt.Errorf("then operation %d (%#x of %s): %w", disk.Ops(), op, name, err)
			}
		})
	}
	err := c.open(true)
	disk.OnOp(nil)
	if err == nil {
		err = errors.Join(nested, c.owed(lost))
	}
	if err == nil {
		c.pending, c.under, c.failed = nil, false, false
		c.flushed = c.now
		if !lost { // what was answered is still not flushed
			c.flushed, c.pending = u.flushed, append([]change{{0, bytes.Clone(c.now)}}, u.pending...)
		}
		err = c.goesOn()
	}
	return err
}

// Power fails, and the process is killed, at every operation of a view's life, and
// power at every one of opening it again.
func TestScratchCrashAtEveryOperation(t *testing.T) {
	seeds, sample := uint64(6), 1
	if testing.Short() {
		seeds, sample = 2, 11
	}
	points, rewrites := 0, uint32(0)
	for seed := range seeds {
		w := newWorld(t, seed)
		u := newUser(w, w.disk, 5, seed)
		must(t, w.disk.SyncDir("/"))
		must(t, u.open(false))
		rng := rand.New(rand.NewPCG(seed, 5))
		w.disk.OnOp(func(op faultdisk.Op, name string) {
			if t.Failed() || w.disk.Ops()%sample != 0 {
				return
			}
			points++
			depth := 0
			if points%7 == 0 {
				depth = 1
			}
			where := fmt.Sprintf("seed %d, operation %d (%#x of %s)", seed, w.disk.Ops(), op, name)
			keep := keeps[rng.IntN(len(keeps))]
			if err := u.survives(w.disk.Crash(rng, keep), true, depth); err != nil {
				t.Errorf("%s: crash, keep %d: %v", where, keep, err)
			}
			killed := w.disk.Kill()
			if err := u.survives(killed, false, depth); err != nil {
				t.Errorf("%s: kill: %v", where, err)
			}
			opened := u.copy(w.disk.Kill(), u.boot)
			if err := errors.Join(opened.open(true), u.survives(opened.disk.Crash(rng, keep), true, 0)); err != nil {
				t.Errorf("%s: kill, and opened, and crash, keep %d: %v", where, keep, err)
			}
		})
		for range 40 {
			must(t, u.step())
			if t.Failed() {
				return
			}
		}
		w.disk.OnOp(nil)
		must(t, same(u.d, rng, u.now))
		if f := u.d.scratch.files.Load(); f != nil {
			rewrites = max(rewrites, f.log.header.life-1)
		}
		must(t, u.v.Close())
		if names, err := w.disk.List("/scratch"); err != nil || len(names) != 0 {
			t.Errorf("scratch left: %v, %v", names, err)
		}
	}
	if rewrites == 0 {
		t.Error("no map was ever rewritten")
	}
	t.Logf("%d points", points)
}

// Every operation fails once, or from then on: what was flushed is there, and what was
// answered while no sync had failed.
func TestScratchErrorAtEveryOperation(t *testing.T) {
	w := newWorld(t, 3)
	sample := 1
	if testing.Short() {
		sample = 9
	}
	points := 0
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true},
		{Ops: faultdisk.OpSync | faultdisk.OpSyncDir, Err: syscall.EIO},
	} {
		for fault.At = 1; ; fault.At += sample {
			disk := faultdisk.New(512)
			must(t, errors.Join(disk.Mkdir("/scratch"), disk.SyncDir("/")))
			seen := 0
			fault.Only = func(string) bool { seen++; return true }
			u := newUser(w, disk, 5, 2)
			disk.Inject(fault)
			must(t, u.open(false))
			for i := 0; i < 35 && !u.failed; i++ {
				if err := u.step(); err != nil && !errors.Is(err, fault.Err) && !errors.Is(err, ErrFailed) && !errors.Is(err, ErrClosed) {
					t.Fatalf("fault %+v: %v", fault, err)
				}
			}
			if seen < fault.At {
				break
			}
			points++
			disk.Heal()
			if !u.failed {
				if err := u.survives(disk.Kill(), false, 0); err != nil {
					t.Fatalf("fault %+v: kill: %v", fault, err)
				}
			}
			for _, keep := range keeps {
				if err := u.survives(disk.Crash(u.rng, keep), true, 0); err != nil {
					t.Fatalf("fault %+v: crash, keep %d: %v", fault, keep, err)
				}
			}
		}
	}
	t.Logf("%d errors", points)
}

// While the disk stalls under a flush, or under one write, everything else goes on.
func TestScratchStalls(t *testing.T) {
	w := newWorld(t, 4)
	v, d := w.open(t, 4, Options{Scratch: true})
	p := bytes.Repeat([]byte("z"), blockBytes)
	must(t, d.WriteAt(p, 0))
	for _, op := range []faultdisk.Op{faultdisk.OpSync, faultdisk.OpWrite} {
		stall := make(chan struct{})
		hit := make(chan struct{})
		w.disk.Inject(faultdisk.Fault{Ops: op, Stall: stall, Only: func(string) bool { close(hit); return true }})
		done := make(chan error, 1)
		go func() {
			if op == faultdisk.OpSync {
				done <- d.Flush()
			} else {
				done <- d.WriteAt(p, 0)
			}
		}()
		<-hit
		w.disk.Heal()
		must(t, d.WriteAt(p, 5*blockBytes))
		must(t, d.ReadAt(p, 5*blockBytes))
		must(t, d.ReadAt(p, 20*blockBytes))
		select {
		case err := <-done:
			t.Fatalf("it did not stall: %v", err)
		default:
		}
		close(stall)
		must(t, <-done)
	}
	must(t, d.Flush())
	must(t, v.Close())
}

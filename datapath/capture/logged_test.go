package capture

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/datapath/capture/activity"
	"github.com/holdfast-dr/holdfast/datapath/capture/activity/regions"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

const region = activity.RegionBytes

// loggedRig is a filter over a disk that can be crashed, with an activity log, of a boot that it names.
type loggedRig struct {
	*rig
	disk *faultdisk.Disk
	boot byte
	size int64
}

func newLoggedRig(t *testing.T, size int64) *loggedRig {
	r := &loggedRig{rig: newRig(t, 512, mib, 4*mib, 1), disk: faultdisk.New(512), size: size}
	r.cfg.FS, r.cfg.idleSeconds = r.disk, 2
	r.cfg.Volumes[0].Path, r.cfg.Volumes[0].Log = "/disk", "/disk.activity"
	f, err := r.disk.Open("/disk", ioengine.Create)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close(), r.disk.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	return r
}

// start opens the filter in the present boot.
func (r *loggedRig) start() *volume {
	r.t.Helper()
	f, err := openFilter(r.cfg, bootID{r.boot})
	if err != nil {
		r.t.Fatal(err)
	}
	r.filter = f
	r.run()
	return r.vol(0)
}

// tapOf opens a tap of the present boot, to which nothing is dirty.
func (r *loggedRig) tapOf() *Tap {
	r.t.Helper()
	tap := r.openTapOf()
	v := r.vol(0)
	v.mu.Lock()
	v.mu.marks.dirty -= v.mu.marks.file.dirty.clear(0, v.mu.marks.file.dirty.blocks)
	v.mu.Unlock()
	tap.RaiseIncarnation(0)
	tap.SetLostCovered(tap.Lost())
	return tap
}

// crash ends the host: what runs, the run directory and what was not synced are gone.
func (r *loggedRig) crash(rng *rand.Rand, keep faultdisk.Keep) {
	r.t.Helper()
	r.reboot(r.disk.Crash(rng, keep))
}

// reboot has the next filter find that disk in a boot of its own.
func (r *loggedRig) reboot(disk *faultdisk.Disk) {
	r.t.Helper()
	if r.tap != nil {
		r.tap.Close()
		r.tap = nil
	}
	if r.filter != nil {
		r.kill()
	}
	names, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range names {
		if err := os.Remove(r.dir + "/" + n.Name()); err != nil {
			r.t.Fatal(err)
		}
	}
	r.disk, r.cfg.FS = disk, disk
	r.boot++
}

// TestServedElsewhere: a disk that another host has served since comes back to where its marks of this boot stand, clean, and has no
// mtime that would tell. They know nothing of what was written there: everything is dirty.
func TestServedElsewhere(t *testing.T) {
	r := newLoggedRig(t, 8*region)
	r.start()
	r.tapOf().Close()
	r.tap = nil
	shut := func() {
		t.Helper()
		r.stopRun()
		if err := r.filter.Close(); err != nil {
			t.Fatal(err)
		}
		r.filter = nil
	}
	shut()
	if v := r.start(); v.dirtyBlocks() != 0 {
		t.Errorf("served here alone %d blocks are dirty", v.dirtyBlocks())
	}
	shut()
	other := r.cfg
	other.RunDir, other.PoolSocket = t.TempDir(), other.PoolSocket+"2"
	f, err := openFilter(other, bootID{77})
	if err != nil {
		t.Fatal(err)
	}
	write(t, f.volumes[0], 3*region, fill(512, 1))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	marked := -1
	r.disk.OnOp(func(op faultdisk.Op, name string) {
		if marked < 0 && op != faultdisk.OpRead && strings.HasPrefix(name, "/disk.activity") { // the log of the other host goes
			p, err := os.ReadFile(marksName(r.dir, testGroup, 1))
			if err != nil {
				t.Error(err)
			}
			marked = 0
			sum, words := bitmapBytes(8 * region / BlockBytes)
			for _, b := range p[marksAtDirty+sum:][:words] {
				marked += bits.OnesCount8(b)
			}
		}
	})
	v := r.start()
	r.disk.OnOp(nil)
	if marked != 8*region/BlockBytes {
		t.Errorf("%d blocks were dirty when the log of the other host went, want %d", marked, 8*region/BlockBytes)
	}
	tap := r.openTapOf()
	if n := v.dirtyBlocks(); n != 8*region/BlockBytes || tap.Lost() == tap.LostCovered() {
		t.Errorf("%d blocks are dirty, want %d; lost tells: %v", n, 8*region/BlockBytes, tap.Lost() != tap.LostCovered())
	}
	shut()
}

// TestLogGone: a log that was whole when this host last served the disk, and tells nothing when it does again, is what another host leaves that
// could not keep it: everything is dirty, and it is said why. One that was not whole here says nothing of others.
func TestLogGone(t *testing.T) {
	const name = "/disk.activity"
	f := func(what string, clean bool, want int64, says string, lose func(r *loggedRig)) {
		t.Helper()
		r := newLoggedRig(t, 4*region)
		var logged bytes.Buffer
		r.cfg.Log = slog.New(slog.NewTextHandler(&logged, nil))
		r.start()
		r.tapOf().Close()
		r.tap = nil
		if !clean {
			lose(r)
			r.kill()
		} else {
			r.stopRun()
			if err := r.filter.Close(); err != nil {
				t.Fatal(err)
			}
			r.filter = nil
			lose(r)
		}
		logged.Reset()
		v := r.start()
		r.disk.Heal()
		tap := r.openTapOf()
		if n := v.dirtyBlocks(); n != want || want > 0 && tap.Lost() == tap.LostCovered() {
			t.Errorf("%s: %d blocks are dirty, want %d; lost tells: %v", what, n, want, tap.Lost() != tap.LostCovered())
		}
		r.stopRun()
		if err := r.filter.Close(); err != nil {
			t.Fatal(err)
		}
		r.filter = nil
		if !strings.Contains(logged.String(), says) {
			t.Errorf("%s: it says %q, want %q", what, logged.String(), says)
		}
	}
	remove := func(r *loggedRig) {
		if err := r.disk.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	all := int64(4 * region / BlockBytes)
	const why = "its activity log was whole here, and tells nothing now"
	f("nothing", true, 0, "", func(*loggedRig) {})
	f("gone", true, all, why+": "+name, remove)
	f("gone under one that was killed", false, all, why, remove)
	f("unreadable", true, all, why, func(r *loggedRig) {
		r.disk.Inject(faultdisk.Fault{Err: syscall.EIO, Ops: faultdisk.OpRead, Only: func(n string) bool { return n == name }})
	})
	f("damaged", true, all, "corrupt", func(r *loggedRig) {
		log, err := r.disk.Open(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.WriteAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
	})
	f("gone, and not whole before", true, 0, "", func(r *loggedRig) {
		remove(r)
		p, err := os.OpenFile(marksName(r.dir, testGroup, 1), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err := p.WriteAt([]byte{logLacks}, marksAtLog); err != nil {
			t.Fatal(err)
		}
	})
}

// openTapOf opens a tap of the present boot.
func (r *loggedRig) openTapOf() *Tap {
	r.t.Helper()
	tap, err := openTap(TapConfig{RunDir: r.dir, Group: testGroup, Filters: []string{r.cfg.PoolSocket}, Log: testLog(r.t)}, bootID{r.boot})
	if err != nil {
		r.t.Fatal(err)
	}
	r.tap = tap
	within(r.t, "the filter answers", func() bool { _, ok := tap.Volumes(); return ok })
	return tap
}

// dirtyRegions says which regions have dirty blocks, and how many.
func dirtyRegions(v *volume) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := ""
	for r := int64(0); r*region < v.disk.size.Load(); r++ {
		n, end := int64(0), min((r+1)*region, v.disk.size.Load())
		for b := r * region / BlockBytes; b < (end+BlockBytes-1)/BlockBytes; b++ {
			if v.mu.marks.file.dirty.all(b, b+1) {
				n++
			}
		}
		if n > 0 {
			s += fmt.Sprintf("%d:%d ", r, n)
		}
	}
	return s
}

// TestHostCrash: of a disk that was clean only the regions written to are dirty after a crash; what was marked before is,
// block by block; after a clean close nothing else is, and after a crash without a log everything is.
func TestHostCrash(t *testing.T) {
	r := newLoggedRig(t, 12*region)
	v := r.start()
	wants := func(what, want string) {
		t.Helper()
		if got := dirtyRegions(r.vol(0)); got != want {
			t.Errorf("%s: dirty are %s, want %s", what, got, want)
		}
	}
	tap := r.tapOf()
	v.activity.Keep()
	write(t, v, 5*region+100, fill(512, 1))
	ws := next(t, tap, 1)
	tap.Free(ws)
	lost := tap.Lost()
	r.crash(rand.New(rand.NewPCG(1, 1)), faultdisk.KeepNone)
	v = r.start()
	wants("after a crash", "4:4096 5:4096 6:4096 7:4096 ") // with the neighbours
	tap = r.tapOf()
	if tap.Lost() == 0 || lost == 0 {
		t.Error("lost says nothing")
	}

	// A region leaves once it was idle, its marks are kept and the disk is synced; of what is marked then the blocks stay.
	write(t, v, 9*region, fill(512, 1)) // at no target
	for range 4 {
		v.tickLog()
	}
	v.activity.Keep()
	v.activity.Keep() // what has left is not in the file any more
	within(t, "the log holds nothing", func() bool {
		f := activity.Read(r.disk, "/disk.activity", activity.Identity{Boot: bootID{r.boot}, Group: uint64(testGroup), Volume: 1, Bytes: 12 * region})
		return f.Active.Count() == 0
	})
	r.crash(rand.New(rand.NewPCG(2, 1)), faultdisk.KeepNone)
	v = r.start()
	wants("marks that were kept", "9:1 ")

	// What a VRA asks to be marked outlives a crash too, as it was answered.
	v.mark(2*region, BlockBytes)
	r.crash(rand.New(rand.NewPCG(3, 1)), faultdisk.KeepNone)
	r.start()
	wants("marked by the VRA", "0:4096 1:4096 2:4096 3:4096 9:1 ")

	// A clean close.
	r.stopRun()
	if err := r.filter.Close(); err != nil {
		t.Fatal(err)
	}
	r.filter = nil
	r.crash(rand.New(rand.NewPCG(4, 1)), faultdisk.KeepNone)
	r.start()
	wants("after a clean close", "0:4096 1:4096 2:4096 3:4096 9:1 ")

	// The filter alone dies: nothing is different. One without the log in between: the file is not gone on with.
	r.kill()
	r.start()
	wants("after a kill", "0:4096 1:4096 2:4096 3:4096 9:1 ")
	r.kill()
	r.cfg.Volumes[0].Log = ""
	v = r.start()
	write(t, v, 7*region, fill(512, 1))
	r.kill()
	r.cfg.Volumes[0].Log = "/disk.activity"
	r.start()
	r.crash(rand.New(rand.NewPCG(5, 1)), faultdisk.KeepNone)
	r.start()
	wants("after a filter without the log", "0:4096 1:4096 2:4096 3:4096 7:1 9:1 ")

	if err := r.disk.Remove("/disk.activity"); err != nil {
		t.Fatal(err)
	}
	r.crash(rand.New(rand.NewPCG(6, 1)), faultdisk.KeepSome)
	v = r.start()
	if dirty := v.dirtyBlocks(); dirty != v.disk.size.Load()/BlockBytes {
		t.Errorf("without a log %d blocks are dirty", dirty)
	}
}

// TestHostCrashAnywhere writes, sends and keeps, and crashes at every operation of the store: every block in which the disk
// and what the target was sent differ is dirty in the next boot.
func TestHostCrashAnywhere(t *testing.T) {
	t.Run("direct", func(t *testing.T) { hostCrashAnywhere(t, false) })
	t.Run("cached", func(t *testing.T) { hostCrashAnywhere(t, true) })
}

func hostCrashAnywhere(t *testing.T, cached bool) {
	const size = 6 * region
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 9))
		r := newLoggedRig(t, size)
		r.cfg.Volumes[0].Writeback = cached
		v := r.start()
		tap := r.tapOf()
		target := map[int64][]byte{} // by block; zeros otherwise
		var mu sync.Mutex
		var crashes []*faultdisk.Disk
		var targets []map[int64][]byte
		r.disk.OnOp(func(faultdisk.Op, string) {
			mu.Lock()
			defer mu.Unlock()
			v.mu.Lock()
			defer v.mu.Unlock()
			if v.mu.log != regions.On || len(crashes) >= 60 {
				return
			}
			at := map[int64][]byte{}
			for b, p := range target {
				at[b] = p
			}
			crashes, targets = append(crashes, r.disk.Crash(rng, faultdisk.KeepSome)), append(targets, at)
		})
		written := map[int64]bool{}
		for i := range 40 {
			b := int64(i*7919) % (size / BlockBytes) / 64 * 64
			written[b] = true
			write(t, v, b*BlockBytes, fill(BlockBytes, byte(i+1)))
			switch i % 5 {
			case 1:
				mu.Lock()
				through := tap.LastTicket()
				ws, err := tap.Next(t.Context(), 1000, 0)
				if err != nil {
					t.Fatal(err)
				}
				for _, w := range ws {
					target[w.Off/BlockBytes] = bytes.Clone(payload(w))
				}
				tap.Free(ws)
				mu.Unlock()
				tap.PublishDurable(through)
				r.filter.turn()
				r.filter.turn()
			case 3:
				for range 3 {
					v.tickLog()
				}
				v.activity.Keep()
			}
		}
		r.disk.OnOp(nil)
		t.Logf("%d crashes", len(crashes))
		for i, disk := range crashes {
			r.reboot(disk)
			v := r.start()
			f, err := disk.Open("/disk", ioengine.ReadOnly)
			if err != nil {
				t.Fatal(err)
			}
			for b := range written {
				p, want := make([]byte, BlockBytes), targets[i][b]
				if want == nil {
					want = make([]byte, BlockBytes)
				}
				if err := readFull(f, p, b*BlockBytes); err != nil {
					t.Fatal(err)
				}
				v.mu.Lock()
				if dirty := v.mu.marks.file.dirty.all(b, b+1); !dirty && !bytes.Equal(p, want) {
					t.Errorf("seed %d, crash %d: block %d holds %d, the target %d, and it is not dirty", seed, i, b, p[0], want[0])
				}
				v.mu.Unlock()
			}
			f.Close()
		}
	}
}

package capture

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// enlarge gives the disk of the model more bytes.
func (r *rig) enlarge(name string, bytes int64) {
	d := r.model.disks[name]
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := bytes - int64(len(d.data)); n > 0 {
		d.data = append(d.data, make([]byte, n)...)
	}
	d.data = d.data[:bytes]
}

func (r *rig) marksName() string { return marksName(r.dir, testGroup, 1) }

func untold(string) {}

func TestGrowRefuses(t *testing.T) {
	r := newRig(t, 512, mib, 4*mib, 1).open()
	f := func(bytes int64, grown bool, why string) {
		t.Helper()
		r.enlarge("vol1", bytes)
		served := r.vol(0).Size()
		names, err := r.filter.Grow(untold)
		if (err != nil) != (why != "") || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("%d bytes: %v, want %q", bytes, err, why)
		}
		if want := map[bool]int64{true: bytes, false: served}[grown]; (len(names) == 1) != grown || r.vol(0).Size() != want {
			t.Errorf("%d bytes: %v has grown, and is served with %d, want %d", bytes, names, r.vol(0).Size(), want)
		}
	}
	f(mib, false, "")
	f(mib-512, false, "does not shrink")
	f(mib+100, false, "no multiple of 512")
	f(mib+512, true, "")
	f(mib, false, "does not shrink")

	if err := os.Mkdir(r.marksName()+".new", 0o700); err != nil { // the run directory takes no file
		t.Fatal(err)
	}
	f(2*mib, false, "is a directory")
	write(t, r.vol(0), mib, fill(512, 1)) // it goes on as it was
	if err := os.Remove(r.marksName() + ".new"); err != nil {
		t.Fatal(err)
	}
	f(2*mib, true, "")
	write(t, r.vol(0), 2*mib-512, fill(512, 1))
}

// TestGrownMarks: whatever was marked before, in whichever generation, is after; what is new is dirty, and lost tells
// of it. A write that is under way meanwhile ends in its generation. The VRA sees the size.
func TestGrownMarks(t *testing.T) {
	r := newRig(t, 512, mib, 4*mib, 1).open()
	tap := r.covered()
	v := r.vol(0)
	write(t, v, 0, fill(BlockBytes, 1))
	v.turn(0) // block 0 is in a closed generation
	v.mark(5*BlockBytes, BlockBytes)
	entered, release := stopAt(t, r.model.disks["vol1"], func(write bool, off int64) bool { return write && off == 9*BlockBytes })
	done := make(chan error, 1)
	go func() { done <- tryWrite(v, 9*BlockBytes, fill(512, 2)) }()
	<-entered
	lost := tap.Lost()
	const size = 2*mib - 512
	r.enlarge("vol1", size)
	if _, err := r.filter.Grow(untold); err != nil {
		t.Fatal(err)
	}
	if tap.Lost() == lost {
		t.Error("lost does not tell of what is new")
	}
	if vs, ok := tap.Volumes(); !ok || vs[0].Bytes != size {
		t.Errorf("the VRA sees %v", vs)
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	const fresh = mib / BlockBytes
	if n := v.dirtyBlocks(); n != fresh+1 {
		t.Errorf("%d blocks are dirty, want %d", n, fresh+1)
	}
	v.mu.Lock()
	if why := v.mu.marks.check(); why != "" {
		t.Error(why)
	}
	v.mu.Unlock()
	v.fold()
	for _, b := range []int64{0, 5, 9, mib / BlockBytes, size / BlockBytes} {
		if !v.mu.marks.file.dirty.all(b, b+1) {
			t.Errorf("block %d is forgotten", b)
		}
	}
	if n := v.dirtyBlocks(); n != fresh+3 {
		t.Errorf("%d blocks are dirty, want %d", n, fresh+3)
	}
	write(t, v, size-512, fill(512, 3)) // captured not: it will be read
	for _, e := range v.dirtyExtents(nil, 0, 100) {
		if e.Off+e.Len > size {
			t.Errorf("dirty is %+v, of %d bytes", e, int64(size))
		}
	}
	if es := v.dirtyExtents(nil, size, 100); len(es) > 0 {
		t.Errorf("behind the end dirty is %v", es)
	}
}

// TestGrowsBeforeAnybodyWaits: what is new is marked, and those may be many bits, before whoever writes waits for the marks.
func TestGrowsBeforeAnybodyWaits(t *testing.T) {
	r := newRig(t, 512, mib, 4*mib, 1).open()
	v := r.vol(0)
	const size = 3 * mib
	r.enlarge("vol1", size)
	v.turning.Lock() // so that it gets no further
	grown := make(chan error, 1)
	go func() {
		_, err := r.filter.Grow(untold)
		grown <- err
	}()
	id := v.mu.marks.file.id
	id.bytes = size
	within(t, "what is new is marked", func() bool {
		mem, _, err := mapMarks(r.marksName()+".new", id)
		if err != nil {
			return false
		}
		defer unmapAll(mem)
		next := layMarks(mem, "", id, nil)
		from, to := int64(mib/BlockBytes), int64(size/BlockBytes)
		return atomic.LoadUint64(&next.dirty.words[from/64]) == ^uint64(0) && atomic.LoadUint64(&next.dirty.words[to/64-1]) == ^uint64(0)
	})
	write(t, v, 0, fill(512, 1))
	v.turning.Unlock()
	if err := <-grown; err != nil || v.Size() != size {
		t.Errorf("it has %d bytes, %v", v.Size(), err)
	}
}

// TestGrowBesideHungDisk: a disk that does not answer is said, and keeps no other's growth from its guest; once it answers,
// its own is told of too.
func TestGrowBesideHungDisk(t *testing.T) {
	r := newRig(t, 512, mib, 4*mib, 2)
	r.cfg.growWait = time.Millisecond
	r.open()
	for _, name := range []string{"vol1", "vol2"} {
		r.enlarge(name, 2*mib)
	}
	v := r.vol(0)
	v.turning.Lock() // as where its disk hangs
	told := make(chan string, 2)
	grown, err := r.filter.Grow(func(name string) { told <- name })
	if name := <-told; name != "vol2" || slices.Contains(grown, "vol1") || !errors.Is(err, errGrowing) || v.Size() != mib || r.vol(1).Size() != 2*mib {
		t.Errorf("%s is told of, %v have grown, %v", name, grown, err)
	}
	if _, err := r.filter.Grow(untold); !errors.Is(err, errGrowing) {
		t.Errorf("asked again: %v", err)
	}
	v.turning.Unlock()
	if name := <-told; name != "vol1" || v.Size() != 2*mib {
		t.Errorf("%s is told of", name)
	}
}

// TestKilledWhileGrowing kills the filter before it took the size, with the new marks made and not in place, and after
// that: the one that follows has every mark, and all that is new is dirty.
func TestKilledWhileGrowing(t *testing.T) {
	for what, step := range map[string]func(*rig){
		"before": func(*rig) {},
		"with the new marks begun": func(r *rig) {
			if err := os.WriteFile(r.marksName()+".new", []byte("begun"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"after": func(r *rig) {
			if _, err := r.filter.Grow(untold); err != nil {
				t.Fatal(err)
			}
		},
	} {
		r := newRig(t, 512, mib, 4*mib, 1).open()
		r.covered()
		write(t, r.vol(0), 3*BlockBytes, fill(512, 1))
		r.tap.Close()
		r.tap = nil
		r.enlarge("vol1", 2*mib)
		step(r)
		r.kill()
		r.open()
		v := r.vol(0)
		if n := v.dirtyBlocks(); v.Size() != 2*mib || n != mib/BlockBytes+1 || !v.mu.marks.file.dirty.all(3, 4) {
			t.Errorf("%s: %d bytes, %d blocks are dirty", what, v.Size(), n)
		}
		tap := r.openTap()
		if tap.Lost() == tap.LostCovered() {
			t.Errorf("%s: lost does not tell of it", what)
		}
		r.stopRun()
		if err := r.filter.Close(); err != nil {
			t.Fatal(err)
		}
		r.filter = nil
	}
}

// TestGrownAndCrashed: after a crash of the host all that is new is dirty, and of the rest what the log tells; whether
// the filter had taken the size or not.
func TestGrownAndCrashed(t *testing.T) {
	for what, grow := range map[string]bool{"taken": true, "not taken": false} {
		r := newLoggedRig(t, 8*region)
		v := r.start()
		tap := r.tapOf()
		v.activity.Keep()
		write(t, v, 5*region+100, fill(512, 1))
		tap.Free(next(t, tap, 1))
		f, err := r.disk.Open("/disk", 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(10*region + 512); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if grow {
			if _, err := r.filter.Grow(untold); err != nil {
				t.Fatal(err)
			}
			write(t, v, 10*region, fill(512, 1))
		}
		r.crash(rand.New(rand.NewPCG(1, 1)), faultdisk.KeepNone)
		v = r.start()
		if got, want := dirtyRegions(v), map[bool]string{true: "8:4096 9:4096 10:1 ", false: "4:4096 5:4096 6:4096 7:4096 8:4096 9:4096 10:1 "}[grow]; !grow && got != want || grow && !strings.HasSuffix(got, want) {
			t.Errorf("%s: dirty are %s, want %s", what, got, want)
		}
		if !v.mu.marks.file.dirty.all(5*region/BlockBytes, 5*region/BlockBytes+1) {
			t.Errorf("%s: what was written is forgotten", what)
		}
		if dirtyRegions(v) == "" || v.mu.marks.file.dirty.all(0, 1) {
			t.Errorf("%s: what nobody wrote to is dirty", what)
		}
	}
}

// TestLostBeforeMarksGrow: the disk grew while nobody served it, and has no mtime, as a device. A filter that opens it and is
// killed leaves nothing new that is dirty and that lost does not tell of: whether before the larger file of marks has its
// name, or right after.
func TestLostBeforeMarksGrow(t *testing.T) {
	r := newRig(t, 512, mib, 4*mib, 1).open()
	tap := r.covered()
	r.stopRun()
	if err := r.filter.Close(); err != nil {
		t.Fatal(err)
	}
	r.filter = nil
	r.enlarge("vol1", 2*mib)
	if err := os.Mkdir(r.marksName()+".new", 0o700); err != nil { // it gets no further
		t.Fatal(err)
	}
	if f, err := OpenFilter(r.cfg); err == nil {
		t.Fatal(errors.Join(errors.New("the marks grew into a folder"), f.Close()))
	}
	if tap.Lost() == tap.LostCovered() {
		t.Error("the marks were to grow, and lost does not tell")
	}
	if err := os.Remove(r.marksName() + ".new"); err != nil {
		t.Fatal(err)
	}
	boot, err := thisBoot()
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	m, _, err := openMarks(r.dir, marksIdentity{boot: boot, group: testGroup, volume: 1, bytes: 2 * mib}, nil, func() {
		if st, err := os.Stat(r.marksName()); err != nil || st.Size() != marksFileBytes(mib/BlockBytes) {
			t.Errorf("the file is the larger one before lost tells: %v", err)
		}
		told++
	})
	if err != nil {
		t.Fatal(err)
	}
	m.close() // as one that is killed
	if told != 1 {
		t.Errorf("it grew, and that was told %d times", told)
	}
	r.open()
	if n := r.vol(0).dirtyBlocks(); n != mib/BlockBytes {
		t.Errorf("%d blocks are dirty, want %d", n, mib/BlockBytes)
	}
}

// TestGrownBeforeSyncRead: a block that the old end divides is read whole by a sync read that began when the disk was smaller.
func TestGrownBeforeSyncRead(t *testing.T) {
	const was, size = mib + 512, mib + BlockBytes
	r := newRig(t, 512, was, 4*mib, 1).open()
	tap := r.covered()
	v := r.vol(0)
	const block = mib / BlockBytes
	dirty(v, block, block+1)
	slots, ok := v.pool.alloc(nil, 1, 0)
	if !ok {
		t.Fatal("no slots")
	}
	r.enlarge("vol1", size)
	copy(r.model.disks["vol1"].data[was:], fill(size-was, 4))
	v.mu.Lock() // as for growMarks
	done := make(chan error, 1)
	go func() {
		_, err := v.readPiece(syncPiece{from: block, to: block + 1}, slots)
		done <- err
	}()
	within(t, "the read waits for the lock", func() bool {
		stacks := make([]byte, 1<<20)
		for s := range bytes.SplitSeq(stacks[:runtime.Stack(stacks, true)], []byte("\n\n")) {
			if bytes.Contains(s, []byte(").readPiece(")) && bytes.Contains(s, []byte("lockSlow")) {
				return true
			}
		}
		return false
	})
	v.sizeWord.Store(size)
	v.disk.size.Store(size)
	v.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if ws := next(t, tap, 1); ws[0].Off != mib || ws[0].Len != BlockBytes || !bytes.Equal(payload(ws[0])[512:], fill(size-was, 4)) {
		t.Errorf("%d bytes at %d are read, want %d at %d", ws[0].Len, ws[0].Off, BlockBytes, mib)
	}
}

package view

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// settler is a view over a replica that holds its checkpoint, and what it must show.
type settler struct {
	disk    *faultdisk.Disk
	replica memoryReplica
	image   []byte
	v       *View
	d       *Device
	syncs   int
	boot    [16]byte
}

func (s *settler) open(again bool) (err error) {
	s.v, err = New(Config{Checkpoint: 5, Options: Options{Scratch: true}, FS: s.disk, Dir: "/scratch", Versions: ReplicasAlone{}, Group: 7, Number: 3, Again: again, Boot: s.boot,
		Disks: []Disk{{Volume: Volume{ID: 1, Name: "one", Bytes: testBytes}, Replica: &s.replica}}})
	if err == nil {
		s.d, _ = s.v.Device(1)
	}
	return err
}

func newSettler(t *testing.T) *settler {
	t.Helper()
	w := newWorld(t, 3)
	must(t, w.disk.SyncDir("/"))
	s := &settler{disk: w.disk, replica: memoryReplica{bytes.Clone(w.images[5])}, image: bytes.Clone(w.images[5])}
	v, d := w.open(t, 5, Options{Scratch: true})
	v.Rebase() // and this one reads no version any more, whatever there is
	w.replica.image = s.image
	must(t, same(d, rand.New(rand.NewPCG(1, 1)), s.image))
	must(t, v.Close())
	must(t, s.open(false))
	for _, c := range []change{{100, bytes.Repeat([]byte{1}, 50)}, {8192, bytes.Repeat([]byte{2}, 20000)}, {testBytes - 700, bytes.Repeat([]byte{3}, 700)}} {
		must(t, s.d.WriteAt(c.data, c.off))
		copy(s.image[c.off:], c.data)
	}
	must(t, s.d.Zero(40960, 12288))
	clear(s.image[40960:][:12288])
	must(t, s.d.Flush())
	return s
}

// Put implements Below.
func (s *settler) Put(parts []Part) error {
	last := int64(-1)
	for _, p := range parts {
		if p.Off <= last || p.Off+p.Len > testBytes || p.Data != nil && int64(len(p.Data)) != p.Len {
			return fmt.Errorf("part of %d bytes at %d, after %d", p.Len, p.Off, last)
		}
		if last = p.Off + p.Len - 1; p.Data == nil {
			clear(s.replica.image[p.Off:][:p.Len])
		}
		copy(s.replica.image[p.Off:], p.Data)
	}
	return nil
}

// Sync implements Below.
func (s *settler) Sync() error {
	s.syncs++
	return nil
}

// settle moves all there is, in small portions, of which a few are moved at once.
func (s *settler) settle() error {
	for {
		moved, err := s.v.Settle(1, blockBytes, 3*blockBytes, s)
		if err != nil || moved == 0 {
			return err
		}
	}
}

// Errors at every operation of settling: the view shows the same, now, after a crash, and once all
// was settled; then its scratch is empty.
func TestSettleErrorAtEveryOperation(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	points := 0
	for at := 1; ; at++ {
		s := newSettler(t)
		if _, err := s.v.Settle(9, blockBytes, blockBytes, s); err == nil {
			t.Fatal("a volume that is none was settled")
		}
		seen := 0
		s.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Err: syscall.EIO, At: at, Only: func(string) bool { seen++; return true }})
		err := s.settle()
		s.disk.Heal()
		if err == nil && seen < at {
			if !bytes.Equal(s.replica.image, s.image) || s.v.ScratchBytes() != 0 {
				t.Fatalf("settled with %d bytes of scratch, and the replica differs at %d", s.v.ScratchBytes(), firstDifference(s.replica.image, s.image))
			}
			break
		}
		points++
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		if err := same(s.d, rng, s.image); err != nil && !errors.Is(err, ErrFailed) {
			t.Fatalf("after error %d: %v", at, err)
		}
		for _, disk := range []*faultdisk.Disk{s.disk.Crash(rng, keeps[at%len(keeps)]), s.disk.Kill()} {
			c := &settler{disk: disk, replica: memoryReplica{bytes.Clone(s.replica.image)}, image: s.image}
			must(t, c.open(true))
			if err := errors.Join(same(c.d, rng, s.image), c.settle(), same(c.d, rng, s.image), c.v.Leave()); err != nil || !bytes.Equal(c.replica.image, s.image) {
				t.Fatalf("after error %d and a crash: %v; the replica differs at %d", at, err, firstDifference(c.replica.image, s.image))
			}
		}
		s.v.Close() // may fail, as its files may have
	}
	t.Logf("%d errors", points)
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// A portion of what is moved is durable beneath before scratch forgets it, and that is said once for many portions.
func TestSettleSyncsOnce(t *testing.T) {
	s := newSettler(t)
	moved, err := s.v.Settle(1, blockBytes, 1<<20, s)
	must(t, err)
	if moved < 8 || s.syncs != 1 {
		t.Errorf("%d blocks were settled, with %d syncs", moved, s.syncs)
	}
	if moved, err = s.v.Settle(1, blockBytes, 1<<20, s); moved != 0 || err != nil || s.syncs != 1 {
		t.Errorf("and then %d: %v, with %d syncs", moved, err, s.syncs)
	}
	must(t, s.v.Close())
}

// A block that is written twice while it is settled, so that it stands where it stood, is not forgotten.
func TestSettleWrittenTwice(t *testing.T) {
	s := newSettler(t)
	const block = 3 // whole in scratch
	was := s.d.scratch.blocks.at(block)
	other := bytes.Repeat([]byte{9}, blockBytes)
	_, err := s.v.Settle(1, 1<<20, 1<<20, between{s, func() {
		for s.d.scratch.blocks.at(block).slot() != was.slot() || bytes.Equal(s.image[block*blockBytes:][:blockBytes], other) == false {
			must(t, s.d.WriteAt(other, block*blockBytes))
			copy(s.image[block*blockBytes:], other)
			must(t, s.d.Flush())
		}
		s.d.scratch.blocks.set(block, fileWord(was.slot(), was.sum())) // as if the sums were the same
	}})
	must(t, err)
	if now := s.d.scratch.blocks.at(block); now != was {
		t.Errorf("scratch has forgotten what was written last: %x", now)
	}
}

// between does something when all was put.
type between struct {
	*settler
	do func()
}

func (b between) Sync() error {
	b.do()
	return nil
}

// scratchData is how many bytes the data file of scratch has allocated.
func (s *settler) scratchData() (bytes int64) {
	f, err := s.disk.Open(s.d.scratch.name+dataSuffix, ioengine.ReadOnly)
	if err != nil {
		return -1
	}
	defer f.Close()
	for at, n, err := f.NextData(0); n > 0; at, n, err = f.NextData(at + n) {
		if err != nil {
			return -1
		}
		bytes += n
	}
	return bytes
}

// What was settled takes no space in scratch any more.
func TestSettleGivesSpaceBack(t *testing.T) {
	s := newSettler(t)
	before, used := s.scratchData(), s.v.ScratchBytes()
	must(t, s.settle())
	if after := s.scratchData(); used < 5*blockBytes || before < used || after < 0 || after > before-used {
		t.Errorf("scratch took %d bytes for %d, and takes %d once all was settled", before, used, after)
	}
	must(t, same(s.d, rand.New(rand.NewPCG(1, 1)), s.image))
	must(t, s.v.Close())
}

// What is read ahead while a view comes to read the replicas alone has ended before it does. The race detector sees it.
func TestRebaseBesideReadAhead(t *testing.T) {
	w := newWorld(t, 3)
	w.replica.image = bytes.Clone(w.images[5])
	v, d := w.open(t, 5, Options{})
	p := make([]byte, blockBytes)
	for i := range int64(aheadRow + 1) {
		must(t, d.ReadAt(p, i*blockBytes))
	}
	d.ahead.mu.Lock()
	begun := d.ahead.upTo > 0
	d.ahead.mu.Unlock()
	if !begun {
		t.Fatal("nothing is read ahead")
	}
	for range 2 {
		v.Rebase()
	}
	if d.ahead.running {
		t.Error("it is read ahead by versions that do not count any more")
	}
	must(t, same(d, rand.New(rand.NewPCG(1, 1)), w.images[5]))
	must(t, v.Close())
}

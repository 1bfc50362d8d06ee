package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func seeded(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 77)) }

// world is a group of two volumes whose replicas are promoted: what stands there, what
// the log holds over it, and what both together are.
type world struct {
	base    [2][]byte
	changes [2][]Change // of the pass that is under way
	after   [2][]byte
}

var sizes = [2]int64{testBytes, 9 * BlockBytes}

func newWorld(rng *rand.Rand) *world {
	w := &world{}
	for i := range w.base {
		w.base[i] = make([]byte, sizes[i])
		for b := int64(0); b < sizes[i]; b += BlockBytes {
			if rng.IntN(3) > 0 {
				for k := b; k < min(b+BlockBytes, sizes[i]); k++ {
					w.base[i][k] = byte(rng.Uint32())
				}
			}
		}
	}
	return w
}

// pass draws what the next promotion changes.
func (w *world) pass(rng *rand.Rand) {
	for i := range w.base {
		w.changes[i] = nil
		w.after[i] = bytes.Clone(w.base[i])
		for off := rng.Int64N(3 * BlockBytes); off < sizes[i]; {
			n := min(1+rng.Int64N(3*BlockBytes), sizes[i]-off)
			switch rng.IntN(4) {
			case 0: // sectors
				n = min(512, sizes[i]-off)
			case 1: // to the end of the block, so that another may go on there
				n = min((off/BlockBytes+1)*BlockBytes, sizes[i]) - off
			}
			c := Change{Off: off, Len: n}
			if rng.IntN(4) > 0 {
				c.Data = make([]byte, n)
				for k := range c.Data {
					c.Data[k] = byte(rng.Uint32())
				}
				copy(w.after[i][off:], c.Data)
			} else {
				clear(w.after[i][off : off+n])
			}
			w.changes[i] = append(w.changes[i], c)
			off += n
			if rng.IntN(2) > 0 {
				off += rng.Int64N(3 * BlockBytes)
			}
		}
	}
}

// site is a world's replicas on a disk.
type site struct {
	disk    *faultdisk.Disk
	volumes [2]*Volume
	p       *Promoter
}

func placeOf(i int) Place { return Place{Group: 7, Volume: record.VolumeID(i + 3)} }

func openSite(disk *faultdisk.Disk) (s *site, err error) {
	s = &site{disk: disk}
	for i := range s.volumes {
		if s.volumes[i], err = Open(disk, "/r", placeOf(i), sizes[i]); err != nil {
			return nil, err
		}
	}
	s.p, err = OpenPromoter(disk, "/r", 7, func(id record.VolumeID) *Volume { return s.volumes[id-3] })
	return s, err
}

func (s *site) close() {
	for _, v := range s.volumes {
		_ = v.Close()
	}
	_ = s.p.Close()
}

// promote makes the pass, in portions.
func (s *site) promote(w *world, portion int) error {
	for i, v := range s.volumes {
		for rest := w.changes[i]; len(rest) > 0; {
			n := min(portion, len(rest))
			for n < len(rest) && rest[n].Off/BlockBytes == (rest[n-1].Off+rest[n-1].Len-1)/BlockBytes {
				n++ // not within a block
			}
			part := rest[:n]
			rest = rest[n:]
			if found, err := s.p.Apply(v, part); err != nil || len(found) > 0 {
				return errors.Join(err, fmt.Errorf("%d damages", len(found)))
			}
		}
	}
	return s.p.Finish()
}

// check holds what the log does not cover against what it was, and all when whole.
func (s *site) check(w *world) error {
	for i, v := range s.volumes {
		at := int64(0)
		read := func(to int64) error {
			got := make([]byte, to-at)
			if err := v.ReadAt(got, at); err != nil {
				return fmt.Errorf("not covered [%d, %d): %w", at, to, err)
			}
			if !bytes.Equal(got, w.base[i][at:to]) {
				return fmt.Errorf("not covered [%d, %d) of volume %d changed", at, to, i)
			}
			return nil
		}
		for _, c := range w.changes[i] {
			if err := read(c.Off); err != nil {
				return err
			}
			at = c.Off + c.Len
		}
		if err := read(sizes[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) equals(images [2][]byte) error {
	for i, v := range s.volumes {
		if err := compare(v, images[i]); err != nil {
			return fmt.Errorf("volume %d: %w", i, err)
		}
	}
	return nil
}

// build makes the world's replicas, durable, on a disk of their own.
func build(t *testing.T, w *world) *faultdisk.Disk {
	t.Helper()
	disk := newDisk(t)
	for i := range sizes {
		v, err := Create(disk, "/r", placeOf(i), sizes[i])
		must(t, err)
		must(t, v.Write(w.base[i], 0))
		must(t, v.Zero(0, 0))
		must(t, v.Sync())
		must(t, v.Close())
	}
	return disk
}

// A crash at every operation of two passes, and at every one of the recovery after:
// what the log does not cover is as it was, and the pass made again makes all as it is
// to be.
func TestPromoteCrashAtEveryOperation(t *testing.T) {
	keeps := []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}
	points := 0
	survives := func(w *world, disk *faultdisk.Disk) error {
		s, err := openSite(disk)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		defer s.close()
		if err := s.check(w); err != nil {
			return err
		}
		if err := s.promote(w, 4); err != nil {
			return fmt.Errorf("again: %w", err)
		}
		return s.equals(w.after)
	}
	for seed := range 2 {
		rng := seeded(seed)
		w := newWorld(rng)
		s, err := openSite(build(t, w))
		must(t, err)
		for range 2 {
			w.pass(rng)
			s.disk.OnOp(func(op faultdisk.Op, name string) {
				if testing.Short() && s.disk.Ops()%(4*sample) > 0 {
					return
				}
				for _, keep := range keeps {
					points++
					where := fmt.Sprintf("seed %d, operation %d (%#x of %s), keep %d", seed, s.disk.Ops(), op, name, keep)
					crashed := s.disk.Crash(rng, keep)
					nested, again := crashed.Kill(), seeded(points)
					if err := survives(w, crashed); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
					if points%50 > 0 {
						continue
					}
					nested.OnOp(func(op faultdisk.Op, name string) {
						if err := survives(w, nested.Crash(again, keeps[again.IntN(3)])); err != nil {
							t.Fatalf("%s; then operation %d (%#x of %s) of the recovery: %v", where, nested.Ops(), op, name, err)
						}
					})
					_ = survives(w, nested)
				}
			})
			must(t, s.promote(w, 3))
			s.disk.OnOp(nil)
			must(t, s.equals(w.after))
			w.base, w.changes = w.after, [2][]Change{}
		}
	}
	t.Logf("%d crashes", points)
}

// Every operation of a pass fails, once or from then on: what the log does not cover
// reads as it was all the time, by this process and after a crash; and the pass made
// again, by this process or, where a sync failed, by the next, is whole.
func TestPromoteErrorAtEveryOperation(t *testing.T) {
	for _, fault := range []faultdisk.Fault{
		{Ops: faultdisk.OpAny, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Short: true},
		{Ops: faultdisk.OpSync | faultdisk.OpSyncDir, Err: syscall.EIO},
		{Ops: faultdisk.OpMutating, Err: syscall.EIO, Short: true, Ever: true},
	} {
		points, stuck := 0, 0
		for at := 1; ; at += sample {
			rng := seeded(at % 7)
			w := newWorld(rng)
			s, err := openSite(build(t, w))
			must(t, err)
			w.pass(rng)
			fault.At = at
			seen := 0
			fault.Only = func(string) bool { seen++; return true }
			s.disk.Inject(fault)
			err = s.promote(w, 3)
			s.disk.Heal()
			if err == nil && seen < at {
				break
			}
			if err == nil { // it was only reading ahead
				must(t, s.equals(w.after))
				continue
			}
			points++
			where := fmt.Sprintf("operations %#x, error at %d", fault.Ops, at)
			if err := s.check(w); err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			crashed, err := openSite(s.disk.Crash(rng, faultdisk.KeepSome))
			if err == nil {
				err = crashed.check(w)
			}
			if err != nil {
				t.Fatalf("%s, crash: %v", where, err)
			}
			if err := s.promote(w, 5); err != nil {
				stuck++
				killed := s.disk.Kill()
				s.close()
				if s, err = openSite(killed); err != nil {
					t.Fatalf("%s, open: %v", where, err)
				}
				if err := s.check(w); err != nil {
					t.Fatalf("%s, open: %v", where, err)
				}
				if err := s.promote(w, 5); err != nil {
					t.Fatalf("%s, open, again: %v", where, err)
				}
			}
			if err := s.equals(w.after); err != nil {
				t.Fatalf("%s, again: %v", where, err)
			}
			crashed, err = openSite(s.disk.Crash(rng, faultdisk.KeepNone))
			if err == nil {
				err = crashed.equals(w.after)
			}
			if err != nil {
				t.Fatalf("%s, again, crash: %v", where, err)
			}
		}
		if sample == 1 && (points < 5 || fault.Ops&faultdisk.OpWrite == 0 && stuck == 0) {
			t.Errorf("%d errors, %d of them final for a file", points, stuck)
		}
		t.Logf("operations %#x: %d errors, %d of them final for a file", fault.Ops, points, stuck)
	}
}

// Rot in a block of which a change covers a part is told and stays rot; a change that
// covers all of it heals it. What is lost reads as damage, and only that.
func TestPromoteDamage(t *testing.T) {
	rng := seeded(3)
	w := newWorld(rng)
	disk := build(t, w)
	must(t, disk.Rot(rawName, 2*BlockBytes+9, 1))
	must(t, disk.Rot(rawName, 5*BlockBytes+9, 1))
	s, err := openSite(disk)
	must(t, err)
	v := s.volumes[0]
	some := bytes.Repeat([]byte{7}, BlockBytes)
	found, err := s.p.Apply(v, []Change{
		{Off: 2*BlockBytes + 100, Len: 50, Data: some[:50]},
		{Off: 5 * BlockBytes, Len: BlockBytes, Data: some},
		{Off: 7*BlockBytes + 1, Len: BlockBytes, Lost: true},
		{Off: testBytes - 100, Len: 100, Lost: true},
	})
	must(t, err)
	var got []int64
	for _, d := range found {
		if !errors.Is(d.Err, ErrCorrupt) || d.Len > BlockBytes {
			t.Errorf("damage %+v", d)
		}
		got = append(got, d.Off/BlockBytes)
	}
	slices.Sort(got)
	if want := []int64{2, 7, 8, 40}; !slices.Equal(got, want) {
		t.Errorf("damaged blocks %v, want %v", got, want)
	}
	must(t, s.p.Finish())
	s, err = openSite(disk.Crash(rng, faultdisk.KeepNone))
	must(t, err)
	p := make([]byte, 10)
	for b := range int64(41) {
		err := s.volumes[0].ReadAt(p, b*BlockBytes)
		if damaged := slices.Contains(got, b); errors.Is(err, ErrCorrupt) != damaged {
			t.Errorf("block %d: %v", b, err)
		}
	}
	// Twice lost is lost; overwritten whole it is well again.
	for range 2 {
		_, err = s.p.Apply(s.volumes[0], []Change{{Off: 7 * BlockBytes, Len: BlockBytes, Lost: true}})
		must(t, err)
		if err := s.volumes[0].ReadAt(p, 7*BlockBytes); !errors.Is(err, ErrCorrupt) {
			t.Errorf("lost block: %v", err)
		}
	}
	_, err = s.p.Apply(s.volumes[0], []Change{{Off: 7 * BlockBytes, Len: 2 * BlockBytes}})
	must(t, err)
	must(t, s.volumes[0].ReadAt(p, 8*BlockBytes))
}

// An image must not come back over what a block became later.
func TestImagesEndWithThePass(t *testing.T) {
	rng := seeded(4)
	w := newWorld(rng)
	s, err := openSite(build(t, w))
	must(t, err)
	some := bytes.Repeat([]byte{7}, BlockBytes)
	_, err = s.p.Apply(s.volumes[0], []Change{{Off: 3*BlockBytes + 5, Len: 9, Data: some[:9]}})
	must(t, err)
	must(t, s.p.Finish())
	_, err = s.p.Apply(s.volumes[0], []Change{{Off: 3 * BlockBytes, Len: BlockBytes, Data: some}})
	must(t, err)
	must(t, s.volumes[0].Sync())
	s, err = openSite(s.disk.Crash(rng, faultdisk.KeepNone))
	must(t, err)
	p := make([]byte, BlockBytes)
	must(t, s.volumes[0].ReadAt(p, 3*BlockBytes))
	if !bytes.Equal(p, some) {
		t.Error("a block is what it was before")
	}
}

// Readers beside a pass never see a block between its bytes and its sum.
func TestReadsBesidePromotion(t *testing.T) {
	rng := seeded(5)
	w := newWorld(rng)
	s, err := openSite(build(t, w))
	must(t, err)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			rng := seeded(100 + r)
			for {
				select {
				case <-stop:
					return
				default:
				}
				off := rng.Int64N(testBytes)
				if err := s.volumes[0].ReadAt(make([]byte, rng.Int64N(testBytes-off)+1), off); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 30 {
		w.pass(rng)
		must(t, s.promote(w, 3))
		w.base = w.after
	}
	close(stop)
	wg.Wait()
	must(t, s.equals(w.base))
}

// A pace that ends a pass ends it; long changes go in cycles.
func TestPromotePace(t *testing.T) {
	disk := newDisk(t)
	const bytes = 3*cycleBytes + 100
	v, err := Create(disk, "/r", testPlace, bytes)
	must(t, err)
	p, err := OpenPromoter(disk, "/r", 7, func(record.VolumeID) *Volume { return v })
	must(t, err)
	var cycles atomic.Int64
	p.Pace = func(n int64) error { // by several writers at once
		if n > cycleBytes+BlockBytes {
			t.Errorf("a cycle of %d bytes", n)
		}
		cycles.Add(1)
		return nil
	}
	data := make([]byte, bytes)
	_, err = p.Apply(v, []Change{{Len: bytes, Data: data}})
	must(t, err)
	if n := cycles.Load(); n < 3 {
		t.Errorf("%d cycles", n)
	}
	p.Pace = func(int64) error { return errPace }
	if _, err := p.Apply(v, []Change{{Len: 10, Data: data[:10]}}); !errors.Is(err, errPace) {
		t.Errorf("apply: %v", err)
	}
	if _, err := p.Apply(v, []Change{{Off: 5, Len: 10}, {Off: 14, Len: 1}}); err == nil {
		t.Error("changes that overlap were taken")
	}
}

var errPace = errors.New("stop")

func TestDoubleWriteGolden(t *testing.T) {
	disk := newDisk(t)
	d := doubleWrite{fs: disk, dir: "/r", group: 7}
	block := make([]byte, BlockBytes)
	copy(block, "golden")
	must(t, d.write([]image{{3, 1, block}, {4, 2, make([]byte, BlockBytes)}}))
	file, err := disk.Open("/r/"+doubleName, ioengine.ReadOnly)
	must(t, err)
	got := make([]byte, headerBytes+tableBytes+2*BlockBytes)
	_, err = file.ReadAt(got, 0)
	must(t, err)
	goldenFile(t, "testdata/v1.doublewrite", got)
	images, err := parseDouble(got, 7)
	must(t, err)
	if len(images) != 2 || images[0].block != 1 || images[1].volume != 4 || !bytes.Equal(images[0].data, block) {
		t.Errorf("read as %+v", images)
	}
	got[headerBytes+tableBytes] ^= 1
	if images, _ := parseDouble(got, 7); len(images) != 1 || images[0].volume != 4 {
		t.Error("an image that is not whole counts")
	}
	if images, _ := parseDouble(got, 8); len(images) != 0 {
		t.Error("another group's images count")
	}
}

func FuzzDoubleWrite(f *testing.F) {
	p := make([]byte, doubleBytes)
	n := putDouble(p, 7, []image{{3, 1, make([]byte, BlockBytes)}})
	f.Add(p[:n])
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > headerBytes+tableBytes { // let it past the checksums
			p = bytes.Clone(p)
			sealDouble(p)
		}
		images, err := parseDouble(p, 7)
		for _, m := range images {
			if err != nil || len(m.data) != BlockBytes || m.block < 0 {
				t.Fatalf("%+v, %v", m, err)
			}
		}
	})
}

// sealDouble makes the checksums of a double-write file right, so that a fuzzer comes past them.
func sealDouble(p []byte) {
	binary.LittleEndian.PutUint32(p, doubleMagic)
	binary.LittleEndian.PutUint32(p[atDoubleTable:], crc32.Checksum(p[headerBytes:headerBytes+tableBytes], castagnoli))
	binary.LittleEndian.PutUint32(p[atDoubleCRC:], crc32.Checksum(p[:atDoubleCRC], castagnoli))
}

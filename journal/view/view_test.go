package view

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const testBytes = 5*record.LineBytes + 512*3 // the last block is not whole

// memoryLog is a log in memory, from segment.Start on.
type memoryLog struct {
	mu    sync.Mutex
	bytes []byte
}

func (l *memoryLog) ReadAt(p []byte, pos segment.Pos) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if pos-segment.Start > segment.Pos(len(l.bytes)) {
		return segment.ErrRange
	}
	if n := copy(p, l.bytes[pos-segment.Start:]); n < len(p) {
		return segment.ErrRange
	}
	return nil
}

// memoryReplica is an image, of which some blocks may be damaged.
type memoryReplica struct{ image []byte }

func (r *memoryReplica) ReadAt(p []byte, off int64) error {
	copy(p, r.image[off:])
	return nil
}

func (r *memoryReplica) Extents(off, n int64, emit func(n int64, hole bool) bool) error {
	emit(n, false)
	return nil
}

// world is a group of one volume with some history.
type world struct {
	disk     *faultdisk.Disk
	log      *memoryLog
	versions *index.Versions
	replica  *memoryReplica
	images   [][]byte // after so many records
	damaged  []Damage
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	w := &world{disk: faultdisk.New(512), log: &memoryLog{}, versions: index.NewVersions(), replica: &memoryReplica{}}
	must(t, w.disk.Mkdir("/scratch"))
	image := make([]byte, testBytes)
	for i := range image {
		image[i] = byte(rng.Uint32())
	}
	w.replica.image = bytes.Clone(image)
	w.images = append(w.images, bytes.Clone(image))
	b, c := record.NewBatch(record.Limits{}), record.NewCompressor()
	for seq := record.Seq(1); seq <= 12; seq++ {
		for i := range 5 {
			off := rng.Int64N(testBytes)
			p := record.Piece{Volume: 1, Off: off, Len: min(1+rng.Int64N(20000), testBytes-off), Ticket: record.Ticket(i + 1)}
			if rng.IntN(4) != 0 {
				p.Data = bytes.Repeat([]byte{byte(rng.Uint32()), byte(i), byte(seq)}, int(p.Len/3+1))[:p.Len]
				copy(image[off:], p.Data)
			} else {
				clear(image[off : off+p.Len])
			}
			if !b.Add(p) {
				t.Fatal("does not fit")
			}
		}
		r, err := record.Parse(b.Seal(nil, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: seq}, 1, c))
		must(t, err)
		must(t, w.versions.Add(segment.Start+segment.Pos(len(w.log.bytes)), r))
		w.log.bytes = append(w.log.bytes, r.Bytes()...)
		w.images = append(w.images, bytes.Clone(image))
		b.Reset()
	}
	return w
}

// at is the place of the checkpoint after so many records.
func at(seq int) index.Vector {
	return index.NewVector(index.Checkpoint{Number: uint64(seq), At: []index.StreamAt{{Stream: 1, Seq: record.Seq(seq)}}})
}

func (w *world) open(t *testing.T, seq int, o Options) (*View, *Device) {
	t.Helper()
	v, err := New(Config{Checkpoint: uint64(seq), Options: o, FS: w.disk, Dir: "/scratch", Log: w.log, Versions: w.versions,
		At:      at(seq),
		Disks:   []Disk{{Volume: Volume{ID: 1, Name: "one", Bytes: testBytes}, Replica: w.replica}},
		Damaged: func(d Damage) { w.damaged = append(w.damaged, d) }})
	must(t, err)
	d, _ := v.Device(1)
	return v, d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// same compares a read of every shape with what the disk should be.
func same(d *Device, rng *rand.Rand, image []byte) error {
	for i := range 20 {
		off := rng.Int64N(testBytes)
		n := 1 + rng.Int64N(testBytes-off)
		if i == 0 {
			off, n = 0, testBytes
		}
		p := bytes.Repeat([]byte{0xEE}, int(n))
		if err := d.ReadAt(p, off); err != nil {
			return err
		}
		for k := range p {
			if p[k] != image[off+int64(k)] {
				return fmt.Errorf("read of %d at %d: byte %d is %#x, want %#x", n, off, off+int64(k), p[k], image[off+int64(k)])
			}
		}
	}
	return nil
}

// Every checkpoint reads as the state after a prefix, and a view's writes are its own:
// other views, the log and the replica do not change (I1, I11).
func TestViews(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 12
	}
	for seed := range uint64(3) {
		w := newWorld(t, seed)
		rng := rand.New(rand.NewPCG(seed, 2))
		log, base := bytes.Clone(w.log.bytes), bytes.Clone(w.replica.image)
		for seq, image := range w.images {
			if seq%stride != 0 {
				continue
			}
			v, d := w.open(t, seq, Options{Scratch: true})
			must(t, same(d, rng, image))
			mine := bytes.Clone(image)
			for i := range 60 {
				off := rng.Int64N(testBytes)
				n := min(1+rng.Int64N(30000), testBytes-off)
				if rng.IntN(2) == 0 {
					n = min(n, 700)
				}
				if rng.IntN(3) == 0 {
					must(t, d.Zero(off, n))
					clear(mine[off : off+n])
				} else {
					p := bytes.Repeat([]byte{byte(i), 0xA5}, int(n/2+1))[:n]
					must(t, d.WriteAt(p, off))
					copy(mine[off:], p)
				}
			}
			must(t, d.Flush())
			must(t, same(d, rng, mine))
			must(t, extents(d, rng, mine))
			other, o := w.open(t, seq, Options{})
			must(t, same(o, rng, image))
			must(t, extents(o, rng, image))
			must(t, other.Close())
			must(t, v.Close())
		}
		if !bytes.Equal(log, w.log.bytes) || !bytes.Equal(base, w.replica.image) {
			t.Error("a view changed what is beneath it")
		}
		if names, err := w.disk.List("/scratch"); err != nil || len(names) != 0 {
			t.Errorf("scratch left: %v, %v", names, err)
		}
	}
}

// extents checks that holes read as zeros and that nothing is left out.
func extents(d *Device, rng *rand.Rand, image []byte) error {
	for range 20 {
		off := rng.Int64N(testBytes)
		n := 1 + rng.Int64N(testBytes-off)
		at := off
		wrong := false
		err := d.Extents(off, n, func(n int64, hole bool) bool {
			wrong = wrong || hole && len(bytes.Trim(image[at:at+n], "\x00")) != 0
			at += n
			return true
		})
		if err != nil || at != off+n || wrong {
			return fmt.Errorf("extents of [%d, %d) end at %d, wrong %v: %w", off, off+n, at, wrong, err)
		}
	}
	return nil
}

// manyWrites is the history of a disk whose every block was written by itself; it counts what is looked up.
type manyWrites struct{ longest, all int64 }

func (m *manyWrites) Lookup(to []index.Piece, _ record.VolumeID, off, n int64, _ index.Vector) ([]index.Piece, error) {
	m.longest, m.all = max(m.longest, n), m.all+n
	for end := off + n; off < end; {
		k := min(blockBytes-off%blockBytes, end-off)
		to = append(to, index.Piece{Off: off, Len: k, In: index.InLog})
		off += k
	}
	return to, nil
}

// Who asks for the extents of a large disk and takes in its beginning has no more of its history looked up, and who takes
// in all has it a piece at a time.
func TestExtentsAsAsked(t *testing.T) {
	const bytes = 1 << 30
	m := &manyWrites{}
	v, err := New(Config{Checkpoint: 1, Log: &memoryLog{}, Versions: m, Disks: []Disk{{Volume: Volume{ID: 1, Name: "one", Bytes: bytes}}}})
	must(t, err)
	d, _ := v.Device(1)
	at, n := int64(0), 0
	tell := func(k int64, hole bool) bool { at += k; n++; return n < 10 && !hole }
	must(t, d.Extents(0, bytes, tell))
	if n != 10 || at != 10*blockBytes || m.all > extentsBytes {
		t.Errorf("%d bytes in %d pieces were told; %d were looked up", at, n, m.all)
	}
	at, n = 100, -1<<30
	must(t, d.Extents(100, bytes-100, tell))
	if at != bytes || m.longest > extentsBytes {
		t.Errorf("told up to %d; %d were looked up at once", at, m.longest)
	}
	must(t, v.Close())
}

// Writers of different bytes of the same blocks lose nothing to each other.
func TestWritersOfOneBlock(t *testing.T) {
	w := newWorld(t, 5)
	v, d := w.open(t, 6, Options{Scratch: true})
	want := bytes.Clone(w.images[6])
	const writers = 8
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for i := range writers {
		for at := i * 100; at+100 <= testBytes; at += writers * 100 {
			copy(want[at:], bytes.Repeat([]byte{byte(i + 1)}, 100))
		}
		wg.Go(func() {
			for at := i * 100; at+100 <= testBytes && errs[i] == nil; at += writers * 100 {
				errs[i] = d.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 100), int64(at))
			}
		})
	}
	wg.Wait()
	must(t, errors.Join(errs...))
	must(t, same(d, rand.New(rand.NewPCG(1, 1)), want))
	must(t, v.Close())
}

// The limit counts blocks over all writes, gives back what is zeroed, and what is
// refused changes nothing.
func TestScratchLimit(t *testing.T) {
	w := newWorld(t, 1)
	v, d := w.open(t, 3, Options{Scratch: true, ScratchLimit: 4 * blockBytes})
	rng := rand.New(rand.NewPCG(1, 1))
	want := bytes.Clone(w.images[3])
	p := bytes.Repeat([]byte("x"), 3*blockBytes)
	must(t, d.WriteAt(p, 0))
	copy(want, p)
	must(t, d.WriteAt(p[:100], 50)) // takes nothing new
	if err := d.WriteAt(p, 10*blockBytes); !errors.Is(err, ErrNoSpace) {
		t.Errorf("beyond the limit: %v", err)
	}
	must(t, same(d, rng, want))
	must(t, d.Zero(0, 2*blockBytes))
	clear(want[:2*blockBytes])
	must(t, d.WriteAt(p, 10*blockBytes))
	copy(want[10*blockBytes:], p)
	if n := v.ScratchBytes(); n != 4*blockBytes {
		t.Errorf("scratch takes %d bytes", n)
	}
	must(t, d.Zero(20*blockBytes, blockBytes)) // zeros take nothing
	clear(want[20*blockBytes : 21*blockBytes])
	if err := d.Zero(30*blockBytes+5, 10); !errors.Is(err, ErrNoSpace) { // but a part of a block does
		t.Errorf("beyond the limit: %v", err)
	}
	must(t, same(d, rng, want))
	must(t, v.Close())
}

// A disk that fails under scratch is an error, and what the view held before stays.
func TestScratchFails(t *testing.T) {
	for at := 1; at < 6; at++ {
		w := newWorld(t, 2)
		v, d := w.open(t, 4, Options{Scratch: true, ScratchLimit: 8 * blockBytes})
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite | faultdisk.OpZero, At: at, Err: syscall.ENOSPC})
		want := bytes.Clone(w.images[4])
		p := bytes.Repeat([]byte("y"), blockBytes)
		failed := 0
		for i := range 4 {
			off := int64(i)*9000 + 100
			if err := d.WriteAt(p, off); err == nil {
				copy(want[off:], p)
			} else if failed++; !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("write: %v", err)
			}
		}
		must(t, same(d, rand.New(rand.NewPCG(1, 1)), want))
		if used := v.ScratchBytes(); used != int64(4-failed)*2*blockBytes {
			t.Errorf("fault %d: %d bytes used, %d of 4 writes failed", at, used, failed)
		}
		must(t, v.Close())
	}
}

// A read of scratch that fails is an error for who reads, and no more; removing it fails at
// each of its operations, and what is left is removed later, other views' files excepted.
func TestScratchIsNotReadOrRemoved(t *testing.T) {
	for at := 1; ; at++ {
		w := newWorld(t, 2)
		v, d := w.open(t, 4, Options{Scratch: true})
		want := bytes.Clone(w.images[4])
		copy(want[100:], "something else")
		must(t, d.WriteAt([]byte("something else"), 100))
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, Ever: true})
		if err := d.ReadAt(make([]byte, 50), 90); !errors.Is(err, syscall.EIO) {
			t.Errorf("read: %v", err)
		}
		w.disk.Heal()
		must(t, same(d, rand.New(rand.NewPCG(1, 1)), want))
		stale, err := w.disk.Open("/scratch/7-1.data", ioengine.Create)
		must(t, errors.Join(err, stale.Close()))
		other, err := w.disk.Open("/scratch/8-1.data", ioengine.Create)
		must(t, errors.Join(err, other.Close()))
		seen := 0
		w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, At: at, Err: syscall.EIO, Only: func(string) bool { seen++; return true }})
		err = v.Close()
		for range 2 {
			if err == nil {
				err = RemoveScratch(w.disk, "/scratch", func(n uint64) bool { return n == 8 })
			}
			if err != nil && (!errors.Is(err, syscall.EIO) || seen < at) {
				t.Fatalf("error at %d: %v", at, err)
			}
			if err != nil { // the next start
				err = RemoveScratch(w.disk, "/scratch", func(n uint64) bool { return n == 8 })
			}
		}
		must(t, err)
		w.disk.Heal()
		if names, err := w.disk.List("/scratch"); err != nil || len(names) != 1 || names[0] != "8-1.data" {
			t.Fatalf("error at %d: %v is left, %v", at, names, err)
		}
		if seen < at {
			if at < 5 {
				t.Errorf("%d operations", seen)
			}
			return
		}
	}
}

// Whole blocks of scratch that do not read are an error for who reads; space that cannot be
// given back is lost to the file and nothing else; and where it cannot be seen whether a
// view was written to, it does not open as if it had not been.
func TestScratchErrorsApart(t *testing.T) {
	w := newWorld(t, 2)
	u := newUser(w, w.disk, 4, 1)
	must(t, u.open(false))
	p := bytes.Repeat([]byte("w"), 3*blockBytes)
	must(t, u.d.WriteAt(p, blockBytes))
	w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, Ever: true})
	if err := u.d.ReadAt(make([]byte, len(p)), blockBytes); !errors.Is(err, syscall.EIO) {
		t.Errorf("read: %v", err)
	}
	w.disk.Heal()
	w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpZero, Err: syscall.EIO, Ever: true})
	must(t, u.d.Zero(2*blockBytes, blockBytes))
	must(t, u.d.Flush())
	w.disk.Heal()
	clear(p[blockBytes : 2*blockBytes])
	got := make([]byte, len(p))
	must(t, u.d.ReadAt(got, blockBytes))
	if !bytes.Equal(got, p) {
		t.Error("a block that was zeroed, and its space not given back, differs")
	}
	must(t, u.v.Leave())
	names, err := w.disk.List("/scratch")
	must(t, err)
	for _, n := range names {
		if strings.HasSuffix(n, mapSuffix) {
			must(t, w.disk.Remove("/scratch/"+n))
		}
	}
	w.disk.Inject(faultdisk.Fault{Ops: faultdisk.OpOpen, Err: syscall.EIO, Ever: true, Only: func(n string) bool { return strings.HasSuffix(n, dataSuffix) }})
	if err := u.open(true); !errors.Is(err, syscall.EIO) {
		t.Errorf("not read: %v", err)
	}
	w.disk.Heal()
	if err := u.open(true); !errors.Is(err, ErrCorrupt) {
		t.Errorf("its map is gone: %v", err)
	}
}

// A damaged block of the log is an error for those who read it, and nobody else.
func TestDamagedBlock(t *testing.T) {
	w := newWorld(t, 3)
	last := len(w.images) - 1
	pieces, err := w.versions.Lookup(nil, 1, 0, testBytes, at(last))
	must(t, err)
	for _, p := range pieces {
		if p.In != index.InLog {
			continue
		}
		at := int(p.Pos-segment.Start) + p.Block.At + p.Block.Stored/2
		w.log.bytes[at] ^= 4
		w.damaged = nil
		v, d := w.open(t, last, Options{})
		err := d.ReadAt(make([]byte, p.Len), p.Off)
		if !errors.Is(err, record.ErrCorrupt) || len(w.damaged) != 1 {
			t.Errorf("piece %+v: %v, told %v", p, err, w.damaged)
		}
		must(t, v.Close())
		v, d = w.open(t, 0, Options{})
		must(t, same(d, rand.New(rand.NewPCG(1, 1)), w.images[0]))
		must(t, v.Close())
		w.log.bytes[at] ^= 4
	}
}

// dropping drops what it finds in the log before it can be read, some times.
type dropping struct {
	Versions
	log   *memoryLog
	times int
}

func (v *dropping) Lookup(dst []index.Piece, vol record.VolumeID, off, n int64, at index.Vector) ([]index.Piece, error) {
	if v.times == 0 {
		return append(dst, index.Piece{Off: off, Len: n, In: index.InReplica}), nil
	}
	v.times--
	dst, err := v.Versions.Lookup(dst, vol, off, n, at)
	for i := range dst {
		dst[i].Pos += 1 << 40
	}
	return dst, err
}

// What was dropped between finding and reading it is found again, in the replica; but
// not for ever. What cannot be found is an error.
func TestLooksAgain(t *testing.T) {
	w := newWorld(t, 6)
	open := func(v Versions) *Device {
		view, err := New(Config{Checkpoint: 12, FS: w.disk, Log: w.log, Versions: v, At: at(12),
			Disks: []Disk{{Volume: Volume{ID: 1, Bytes: testBytes}, Replica: w.replica}}})
		must(t, err)
		d, _ := view.Device(1)
		return d
	}
	for times, want := range map[int]error{1: nil, 3: nil, 1000: segment.ErrRange} {
		d := open(&dropping{Versions: w.versions, log: w.log, times: times})
		p := make([]byte, testBytes)
		if err := d.ReadAt(p, 0); !errors.Is(err, want) || err == nil && !bytes.Equal(p, w.replica.image) {
			t.Errorf("dropped %d times: %v", times, err)
		}
	}
	if err := open(lost{w.versions}).ReadAt(make([]byte, 1), 0); !errors.Is(err, record.ErrCorrupt) {
		t.Errorf("an index that does not read: %v", err)
	}
}

// folding folds the log under what it finds, some times: other bytes stand there then.
type folding struct {
	Versions
	times int
}

func (v *folding) Lookup(dst []index.Piece, vol record.VolumeID, off, n int64, at index.Vector) ([]index.Piece, error) {
	dst, err := v.Versions.Lookup(dst, vol, off, n, at)
	if v.times--; v.times >= 0 {
		for i := range dst {
			dst[i].Block.CRC ^= 1
		}
	}
	return dst, err
}

// What was folded between finding and reading it is found again, and not called damaged;
// what is wrong while nothing can be folded is.
func TestLooksAgainAfterAFold(t *testing.T) {
	w := newWorld(t, 6)
	for times, told := range map[int]int{0: 0, 1: 0, 2: 1} {
		have := 0
		view, err := New(Config{Checkpoint: 12, FS: w.disk, Log: w.log, Versions: &folding{w.versions, times}, At: at(12), Steady: new(sync.RWMutex),
			Damaged: func(Damage) { have++ }, Disks: []Disk{{Volume: Volume{ID: 1, Bytes: testBytes}, Replica: w.replica}}})
		must(t, err)
		d, _ := view.Device(1)
		p := make([]byte, testBytes)
		err = d.ReadAt(p, 0)
		if have != told || (err != nil) != (told > 0) || err == nil && !bytes.Equal(p, w.images[12]) {
			t.Errorf("folded %d times: %v, told of %d damages", times, err, have)
		}
		must(t, view.Close())
	}
}

// A read that meets damage is answered when it could be repaired, and never waits for that
// while it holds up folds; one whose damage stays, whatever the repair says, is an error
// that is told once.
func TestReadsOnceMoreAfterRepair(t *testing.T) {
	w := newWorld(t, 3)
	last := len(w.images) - 1
	pieces, err := w.versions.Lookup(nil, 1, 0, testBytes, at(last))
	must(t, err)
	var damaged []int
	for _, p := range pieces {
		if at := int(p.Pos-segment.Start) + p.Block.At + p.Block.Stored/2; p.In == index.InLog && !slices.Contains(damaged, at) {
			damaged = append(damaged, at)
		}
	}
	for _, c := range []struct {
		name          string
		heals, claims bool
		told          int
	}{{"repaired", true, true, 0}, {"not repaired", false, false, 1}, {"repaired in vain", false, true, 1}} {
		for _, at := range damaged {
			w.log.bytes[at] ^= 4
		}
		steady, told, repairs := new(sync.RWMutex), 0, 0
		v, err := New(Config{Checkpoint: uint64(last), FS: w.disk, Log: w.log, Versions: w.versions, At: at(last), Steady: steady,
			Damaged: func(Damage) { told++ },
			Repair: func(d Damage) bool {
				repairs++
				if !steady.TryLock() {
					t.Errorf("%s: it holds up folds", c.name)
					return false
				}
				defer steady.Unlock()
				if c.heals {
					w.log.bytes[int(d.Piece.Pos-segment.Start)+d.Piece.Block.At+d.Piece.Block.Stored/2] ^= 4
				}
				return c.claims
			},
			Disks: []Disk{{Volume: Volume{ID: 1, Bytes: testBytes}, Replica: w.replica}}})
		must(t, err)
		d, _ := v.Device(1)
		p := make([]byte, testBytes)
		err = d.ReadAt(p, 0)
		if c.heals && (err != nil || !bytes.Equal(p, w.images[last])) || !c.heals && !errors.Is(err, record.ErrCorrupt) || told != c.told {
			t.Errorf("%s: %v, told %d times", c.name, err, told)
		}
		if c.heals && repairs != len(damaged) || repairs == 0 || repairs > len(pieces) {
			t.Errorf("%s: %d repairs of %d places", c.name, repairs, len(damaged))
		}
		must(t, v.Close())
		if !c.heals {
			for _, at := range damaged {
				w.log.bytes[at] ^= 4
			}
		}
	}
}

// lost finds nothing.
type lost struct{ Versions }

func (lost) Lookup([]index.Piece, record.VolumeID, int64, int64, index.Vector) ([]index.Piece, error) {
	return nil, record.ErrCorrupt
}

// Reads in order, of all sizes and of two readers at once, give what is there; blocks
// that are in the cache are read with no allocation.
func TestReadInOrder(t *testing.T) {
	w := newWorld(t, 7)
	v, d := w.open(t, 12, Options{})
	for _, size := range []int64{512, 4096, 5000, 70000} {
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs {
			wg.Go(func() {
				p := make([]byte, size)
				for off := int64(0); off < testBytes && errs[i] == nil; off += size {
					n := min(size, testBytes-off)
					if errs[i] = d.ReadAt(p[:n], off); !bytes.Equal(p[:n], w.images[12][off:off+n]) {
						errs[i] = errors.Join(errs[i], fmt.Errorf("%d bytes at %d differ", n, off))
					}
				}
			})
		}
		wg.Wait()
		must(t, errors.Join(errs...))
	}
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(50, func() { must(t, d.ReadAt(p, 40960)) }); n > 0 {
		t.Errorf("%v allocations a read", n)
	}
	must(t, v.Close())
}

func TestRefused(t *testing.T) {
	w := newWorld(t, 4)
	v, d := w.open(t, 1, Options{})
	f := func(what string, want, err error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	if !d.ReadOnly() || d.Size() != testBytes || v.Checkpoint() != 1 || len(v.Volumes()) != 1 {
		t.Error("view does not tell what it is")
	}
	f("write", ErrReadOnly, d.WriteAt([]byte("x"), 0))
	f("zero", ErrReadOnly, d.Zero(0, 1))
	f("read behind the end", ErrRange, d.ReadAt(make([]byte, 2), testBytes-1))
	f("read before the start", ErrRange, d.ReadAt(make([]byte, 2), -1))
	f("extents behind the end", ErrRange, d.Extents(0, testBytes+1, func(int64, bool) bool { return true }))
	f("nothing", nil, d.ReadAt(nil, testBytes))
	if _, ok := v.Device(2); ok {
		t.Error("there is a volume 2")
	}
	must(t, v.Close())
	must(t, v.Close())
	f("read", ErrClosed, d.ReadAt(make([]byte, 1), 0))
	f("write", ErrClosed, d.WriteAt([]byte("x"), 0))
	f("flush", ErrClosed, d.Flush())
}

// go test ./journal/view -run '^$' -bench Read
func BenchmarkRead(b *testing.B) {
	w := &world{disk: faultdisk.New(512), log: &memoryLog{}, versions: index.NewVersions(), replica: &memoryReplica{image: make([]byte, testBytes)}}
	batch, c := record.NewBatch(record.Limits{}), record.NewCompressor()
	data := make([]byte, 4096)
	for i := range data {
		data[i] = byte(i * i / 64)
	}
	for i := range int64(testBytes / 4096) {
		batch.Add(record.Piece{Volume: 1, Off: i * 4096, Len: 4096, Ticket: record.Ticket(i + 1), Data: data})
	}
	r, err := record.Parse(batch.Seal(nil, record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: 1}, 1, c))
	must(b, err)
	must(b, w.versions.Add(segment.Start, r))
	w.log.bytes = r.Bytes()
	v, err := New(Config{FS: w.disk, Log: w.log, Versions: w.versions, At: at(1),
		Disks: []Disk{{Volume: Volume{ID: 1, Bytes: testBytes}, Replica: w.replica}}})
	must(b, err)
	d, _ := v.Device(1)
	for _, size := range []int{4096, 65536} {
		b.Run(fmt.Sprintf("size=%dK", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			p := make([]byte, size)
			for b.Loop() {
				must(b, d.ReadAt(p, 8192))
			}
		})
	}
}

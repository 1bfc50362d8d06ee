package segment

import (
	"bytes"
	"errors"
	"path"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const testSpare = "store/spare"

// recycler returns a log with a pool, and n segments written.
func recycler(t *testing.T, disk ioengine.FS, n int) (*Log, *Pool, []placed) {
	t.Helper()
	ok(t, disk.Mkdir("store"))
	pool, err := OpenPool(disk, testSpare, 2)
	ok(t, err)
	o := testOptions()
	o.Spare = pool
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var recs []placed
	for len(l.Segments()) < n {
		more, _ := mixed(t, l, 5)
		recs = append(recs, more...)
	}
	return l, pool, recs
}

// What is dropped is gone, and what is not stays; files go to the pool while it has
// room; Shrink gives them back.
func TestDrop(t *testing.T) {
	disk := faultdisk.New(512)
	l, pool, recs := recycler(t, disk, 8)
	segs := l.Segments()
	ok(t, l.Drop(segs[1].End-1)) // the second one holds the byte before
	if now := l.Segments(); now[0].Number != 2 {
		t.Fatalf("the log begins with segment %d, want 2", now[0].Number)
	}
	ok(t, l.Drop(segs[4].First))
	if now := l.Segments(); now[0].Number != 5 {
		t.Fatalf("the log begins with segment %d, want 5", now[0].Number)
	}
	if files, n := pool.Spare(); files != 2 || n < 2*l.segmentBytes() {
		t.Errorf("the pool has %d files, %d bytes", files, n)
	}
	for _, p := range recs {
		got := make([]byte, len(p.rec))
		err := l.ReadAt(got, p.pos)
		if p.pos < segs[4].First && !errors.Is(err, ErrRange) || p.pos >= segs[4].First && (err != nil || !bytes.Equal(got, p.rec)) {
			t.Fatalf("record at %s: %v", p.pos, err)
		}
	}
	if _, err := replayed(l, Start, l.Durable(), ReplayOptions{}); !errors.Is(err, ErrRange) {
		t.Errorf("a replay of what was dropped: %v", err)
	}
	if n := len(segmentFiles(t, disk)); n != len(l.Segments()) {
		t.Errorf("%d files for %d segments", n, len(l.Segments()))
	}
	freed, err := pool.Shrink(1)
	ok(t, err)
	if files, _ := pool.Spare(); files != 1 || freed < l.segmentBytes() {
		t.Errorf("shrunk: %d files, %d bytes freed", files, freed)
	}
	ok(t, l.Drop(l.Durable()))
	if len(l.Segments()) != 1 || l.Segments()[0].State != StateOpen {
		t.Error("the open segment does not stay alone")
	}
	if _, err := OpenPool(disk, testSpare, 1); err != nil {
		t.Error(err)
	}
	if names, _ := disk.List(testSpare); len(names) != 1 {
		t.Errorf("a pool of one has %q", names)
	}
}

// A recycled file has its space: commits to it change neither size nor places.
func TestRecycledCommitsChangeNoMetadata(t *testing.T) {
	disk := faultdisk.New(512)
	l, pool, _ := recycler(t, disk, 4)
	ok(t, l.Drop(l.Segments()[2].First))
	n := len(l.Segments())
	for len(l.Segments()) == n {
		mixed(t, l, 1)
	}
	if files, _ := pool.Spare(); files != 1 || !l.cur.Recycled {
		t.Fatalf("%d spare files, recycled %v", files, l.cur.Recycled)
	}
	l.opt.Ahead = func(func()) {} // what makes the next segment ready does
	for range 5 {
		disk.OnOp(func(op faultdisk.Op, name string) {
			if op&^(faultdisk.OpWrite|faultdisk.OpSync) != 0 {
				t.Errorf("operation %#x of %s", op, name)
			}
		})
		size := sizeOf(t, disk, l.path(l.cur.Number))
		_, err := l.Append(sealed(1, 100, seeded(1)))
		ok(t, errors.Join(err, l.Commit()))
		disk.OnOp(nil)
		if again := sizeOf(t, disk, l.path(l.cur.Number)); again != size {
			t.Errorf("the size was %d and is %d", size, again)
		}
	}
}

// A recycled file holds older rounds of the very same group at the very same places,
// whose chain goes on from the new ones: only the life says that they are old.
func TestOldRoundsNeverPassForNew(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, errors.Join(disk.Mkdir("store"), disk.SyncDir("/")))
	o := testOptions()
	var err error
	o.Spare, err = OpenPool(disk, testSpare, 2)
	ok(t, err)
	o.SegmentBytes = 16 << 10
	open := func(d *faultdisk.Disk) (*Log, []placed) {
		var found []placed
		l, err := Open(d, testDir, testGroup, Watermark{}, o, func(pos Pos, r record.Record) error {
			found = append(found, placed{pos, bytes.Clone(r.Bytes())})
			return nil
		})
		ok(t, err)
		return l, found
	}
	write := func(l *Log, seqs ...record.Seq) {
		for _, seq := range seqs {
			_, err := l.Append(sealed(seq, 600, seeded(1)))
			ok(t, errors.Join(err, l.Commit()))
		}
	}
	l, _ := open(disk)
	write(l, 1, 2, 3)
	ok(t, l.Close())
	ok(t, disk.Remove(l.path(2)))                        // it was made ready
	kept, err := o.Spare.receive(l.path(1), 4*pageBytes) // the group is removed, its file kept
	ok(t, errors.Join(err, o.Spare.settle()))
	if !kept {
		t.Fatal("the file is too small")
	}
	o.SegmentBytes = 2 * pageBytes
	l, _ = open(disk) // and made again
	if !l.cur.Recycled {
		t.Fatal("the file was not used again")
	}
	o.Spare = nil
	for n, seq := range []record.Seq{1, 2} {
		if _, found := open(disk.Crash(seeded(1), faultdisk.KeepNone)); len(found) != n {
			t.Fatalf("%d rounds were written and %d records are there", n, len(found))
		}
		write(l, seq)
	}
	if _, found := open(disk.Kill()); len(found) != 2 {
		t.Fatalf("2 rounds were written and %d records are there", len(found))
	}
}

// What a guest wrote in an earlier use of the file is no record of a newer release; what
// this life wrote is.
func TestOldBytesRefuseNothing(t *testing.T) {
	forged := record.AppendConfirm(nil, record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 1}, 1, 1, 1)
	setKind(forged, 7)
	page := make([]byte, pageBytes)
	copy(page, forged)
	for _, ours := range []bool{false, true} {
		disk := faultdisk.New(512)
		ok(t, errors.Join(disk.Mkdir("store"), disk.Mkdir(testSpare)))
		ok(t, writeFile(disk, path.Join(testSpare, "0000000000000001.spare"), bytes.Repeat(page, 16)))
		o := testOptions()
		var err error
		o.Spare, err = OpenPool(disk, testSpare, 2)
		ok(t, err)
		l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
		ok(t, err)
		for seq := range record.Seq(2) {
			_, err := l.Append(sealed(seq+1, 600, seeded(1)))
			ok(t, errors.Join(err, l.Commit()))
		}
		if ours { // the second record's kind is a newer release's
			p := fileBytes(t, disk, l.path(1))
			setKind(p[2*pageBytes:], 7)
			ok(t, writeFile(disk, l.path(1), p))
		}
		l, err = Open(disk.Kill(), testDir, testGroup, Watermark{}, testOptions(), nil)
		if ours != errors.Is(err, ErrVersion) || !ours && (err != nil || l.Durable() != Start+2*pageBytes) {
			t.Errorf("ours %v: %v", ours, err)
		}
	}
}

// A segment that is dropped before it is read back, or meanwhile, is not read on, and its file
// is used again: a log whose segments go before their turn would else make new ones.
func TestDropBesideSeal(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, disk.Mkdir("store"))
	pool, err := OpenPool(disk, testSpare, 4)
	ok(t, err)
	var l *Log
	var queue []func()
	o := testOptions()
	o.Spare, o.Go = pool, func(work func()) { queue = append(queue, work) }
	reads := 0
	o.Pace = func(int) error {
		if reads++; reads == 1 {
			ok(t, l.Drop(l.Segments()[1].First))
			if files, _ := pool.Spare(); files != 1 {
				t.Errorf("%d files are in the pool while one more is read back", files)
			}
		}
		return nil
	}
	l, err = Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for len(l.Segments()) < 5 {
		mixed(t, l, 5)
	}
	ok(t, l.Drop(l.Segments()[1].First))
	if files, _ := pool.Spare(); files != 1 {
		t.Errorf("%d files are in the pool, want that of which nothing was read", files)
	}
	queue[0]() // of what is gone
	if reads != 0 {
		t.Error("what is gone is read back")
	}
	queue[1]()
	if files, _ := pool.Spare(); files != 2 || reads != 1 {
		t.Errorf("%d files are in the pool after %d reads, want 2 after 1", files, reads)
	}
	if n := len(segmentFiles(t, disk)); n != len(l.Segments()) {
		t.Errorf("%d files for %d segments", n, len(l.Segments()))
	}
	queue[2]()
	if s := l.Segments()[0]; s.State != StateVerified || s.Number != 3 {
		t.Errorf("segment %d, which stays, is %s", s.Number, s.State)
	}
	for _, work := range queue[3:] {
		work() // Close waits for them
	}
	ok(t, l.Close())
}

// gate is a file system whose reads of one file wait.
type gate struct {
	ioengine.FS
	name    string
	reached chan struct{}
	open    chan struct{}
}

func (g *gate) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := g.FS.Open(name, flags)
	if err != nil || name != g.name {
		return f, err
	}
	return gatedFile{f, g}, nil
}

type gatedFile struct {
	ioengine.File
	g *gate
}

func (f gatedFile) ReadAt(p []byte, off int64) (int, error) {
	f.g.reached <- struct{}{}
	<-f.g.open
	return f.File.ReadAt(p, off)
}

// A file that is being read when it is dropped is not used again.
func TestDropBesideRead(t *testing.T) {
	disk := faultdisk.New(512)
	l, pool, recs := recycler(t, disk, 4)
	g := &gate{FS: disk, name: l.path(1), reached: make(chan struct{}), open: make(chan struct{})}
	l.fs, l.files.fs = g, g
	l.files.forget(l.mu.segs[0].Life) // else it may be open still, past the gate
	got, done := make([]byte, len(recs[0].rec)), make(chan error)
	go func() { done <- l.ReadAt(got, recs[0].pos) }()
	<-g.reached
	ok(t, l.Drop(l.Segments()[1].First))
	if files, _ := pool.Spare(); files != 0 {
		t.Error("a file that is being read is in the pool")
	}
	n := len(l.Segments())
	for len(l.Segments()) < n+3 {
		mixed(t, l, 2)
	}
	close(g.open)
	if err := <-done; err != nil || !bytes.Equal(got, recs[0].rec) {
		t.Errorf("the read that was under way: %v", err)
	}
	if err := l.ReadAt(got, recs[0].pos); !errors.Is(err, ErrRange) {
		t.Errorf("a read after: %v, want ErrRange", err)
	}
}

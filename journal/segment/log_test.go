package segment

import (
	"bytes"
	"errors"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestAppendRefusesWhatIsNoRecord(t *testing.T) {
	l, _, _, err := openStore(faultdisk.New(512))
	ok(t, err)
	good := sealed(1, 100, seeded(1))
	damaged := bytes.Clone(good)
	damaged[40] ^= 1
	unknown := record.AppendConfirm(nil, record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: 1}, 1, 1, 1)
	setKind(unknown, 7)
	for what, p := range map[string][]byte{
		"nothing": nil, "cut": good[:len(good)-1], "long": append(bytes.Clone(good), 0), "damaged": damaged,
		"of no kind": unknown,
	} {
		if _, err := l.Append(p); err == nil || errors.Is(err, ErrFailed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := l.Append(good); err != nil {
		t.Error("a refused record failed the log: ", err)
	}
	if err := l.ReadAt(make([]byte, 1), Start); !errors.Is(err, ErrRange) {
		t.Errorf("what is not committed can be read: %v", err)
	}
	ok(t, l.Commit())
	ok(t, l.Commit())
	if l.Durable() != Start+pageBytes || l.End() != l.Durable() {
		t.Errorf("one small record: durable up to %s, end %s", l.Durable(), l.End())
	}
	ok(t, l.Close())
	for _, err := range []error{l.Close(), l.Commit(), l.Abandon(), l.ReadAt(good, Start)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// A failed log stays failed until it is taken on, and then never touches the file
// that failed it.
func TestFailedLogLeavesItsFile(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(1), 1)
	ok(t, err)
	ok(t, f.append(sealed(1, 600, f.rng)))
	ok(t, f.commit())
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO})
	ok(t, f.append(sealed(2, 600, f.rng)))
	if err := f.commit(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("Commit: %v, want ErrFailed and EIO", err)
	}
	if f.l.Durable() != f.l.End() || f.l.Durable() != f.pending[0].pos {
		t.Errorf("after a failure the log ends at %s and is durable up to %s", f.l.End(), f.l.Durable())
	}
	if _, err := f.l.Append(sealed(3, 600, f.rng)); !errors.Is(err, ErrFailed) {
		t.Errorf("Append to a failed log: %v", err)
	}
	if err := f.l.Commit(); !errors.Is(err, ErrFailed) {
		t.Errorf("Commit of a failed log: %v", err)
	}
	first := path.Join(testDir, fileName(1)) // and the name it was made under
	disk.OnOp(func(op faultdisk.Op, name string) {
		if strings.HasPrefix(name, first) {
			t.Errorf("operation %#x on the file that failed", op)
		}
	})
	ok(t, f.again())
	ok(t, f.run(6, 0))
	disk.OnOp(nil)
	if s := f.l.Segments()[0]; s.State != StateClosed || s.Records != 1 {
		t.Errorf("the abandoned segment: %+v", s)
	}
	ok(t, f.finish(disk))
}

// Closed segments are verified and get a footer; it is found again; a torn one is
// written again.
func TestSealedSegments(t *testing.T) {
	disk, f := written(t, 14)
	states := func(l *Log) (s []State) {
		for _, i := range l.Segments() {
			s = append(s, i.State)
		}
		return s
	}
	l, _, _, err := openStore(disk)
	ok(t, err)
	for i, s := range states(l) {
		want := StateVerified
		if i == len(l.Segments())-1 {
			want = StateOpen
		}
		if s != want {
			t.Errorf("segment %d of %d is %s, want %s", i+1, len(l.Segments()), s, want)
		}
	}
	// Opened again, only the segment that this life opened is sealed.
	writes := 0
	disk.OnOp(func(op faultdisk.Op, name string) {
		if op == faultdisk.OpWrite && path.Dir(name) == testDir {
			writes++
		}
	})
	again, _, _, err := openStore(disk)
	ok(t, err)
	if writes > 3 {
		t.Errorf("opening a sealed log wrote %d times", writes)
	}
	disk.OnOp(nil)
	infos := again.Segments()
	footerAt := offset(infos[0].First, infos[0].End)
	ok(t, disk.Rot(path.Join(testDir, fileName(1)), footerAt+5, 1))
	torn, _, found, err := openStore(disk)
	ok(t, err)
	if torn.Segments()[0].State != StateVerified || len(found) != len(f.acked) {
		t.Errorf("after a torn footer: %+v, %d records", torn.Segments()[0], len(found))
	}
	if p := make([]byte, 1); torn.ReadAt(p, infos[0].First-1) == nil || torn.ReadAt(p, torn.Durable()) == nil {
		t.Error("bytes outside the log can be read")
	}
}

// A record that rots before its segment is sealed is found by the read-back.
func TestReadBackFindsRot(t *testing.T) {
	disk := faultdisk.New(512)
	var rot func()
	o := testOptions()
	o.Go = func(work func()) { rot(); work() }
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	rot = func() { ok(t, disk.Rot(path.Join(testDir, fileName(1)), pageBytes+5000, 1)) }
	for seq := record.Seq(1); len(l.Segments()) < 2; seq++ {
		_, err := l.Append(sealed(seq, 9000, seeded(1)))
		ok(t, errors.Join(err, l.Commit()))
	}
	if s := l.Segments()[0]; s.State != StateBad || !errors.Is(s.Err, ErrCorrupt) {
		t.Errorf("a rotten segment is %s: %v", s.State, s.Err)
	}
}

// The read-back reads about every byte once, and in large parts, wherever in them the
// records begin and end, and be they larger than a part.
func TestReadBackReadsInLargeParts(t *testing.T) {
	for _, payload := range []int{60000, scanBytes, scanBytes - 8000, 3 * scanBytes / 2} {
		disk := &countedFS{FS: faultdisk.New(512)}
		var bytes, reads int64
		o := testOptions()
		o.SegmentBytes = 12 << 20
		o.Go = func(work func()) {
			bytes, reads = disk.bytes.Load(), disk.reads.Load()
			work()
			bytes, reads = disk.bytes.Load()-bytes, disk.reads.Load()-reads
		}
		ok(t, disk.Mkdir("store"))
		l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
		ok(t, err)
		rng := seeded(3)
		for seq := record.Seq(1); len(l.Segments()) < 2; seq++ {
			_, err := l.Append(sealed(seq, payload, rng))
			ok(t, err)
			if seq%10 == 0 || payload > 60000 {
				ok(t, l.Commit())
			}
		}
		s := l.Segments()[0]
		size := int64(s.End - s.First)
		if s.State != StateVerified || bytes > size*10/9 || reads > 2*size/scanBytes+12 {
			t.Errorf("records of %d: %d bytes are %s at the cost of %d reads of %d bytes in all", payload, size, s.State, reads, bytes)
		}
		ok(t, l.Close())
	}
}

// The read-back says which block is damaged, and no other: of a record that is damaged
// before its blocks, all of it; of what lies between records, nothing.
func TestReadBackLocates(t *testing.T) {
	var recs []placed
	f := func(what string, spoil func(d *faultdisk.Disk, name string), want ...Damage) {
		t.Helper()
		disk := faultdisk.New(512)
		var found []Damage
		o := testOptions()
		o.SegmentBytes = 200 << 10
		o.Go = func(work func()) { spoil(disk, path.Join(testDir, fileName(1))); work() }
		o.Damaged = func(ds []Damage) { found = append(found, ds...) }
		ok(t, disk.Mkdir("store"))
		l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
		ok(t, err)
		rng := seeded(1)
		recs = recs[:0]
		for seq := record.Seq(1); len(l.Segments()) < 2; seq++ {
			rec := sealed(seq, 90000, rng) // three blocks
			pos, err := l.Append(rec)
			recs = append(recs, placed{pos, rec})
			ok(t, errors.Join(err, l.Commit()))
		}
		if s := l.Segments()[0]; s.State != StateBad || s.Err == nil {
			t.Errorf("%s: the segment is %s: %v", what, s.State, s.Err)
		}
		for i := range found {
			if found[i].Err == nil {
				t.Errorf("%s: no reason", what)
			}
			found[i].Err = nil
		}
		if !slices.Equal(found, want) {
			t.Errorf("%s: damage %v, want %v", what, found, want)
		}
	}
	block := func(rec, i int) Damage {
		r, err := record.Parse(recs[rec].rec)
		ok(t, err)
		from := recs[rec].pos + Pos(r.Block(i).At)
		return Damage{From: from, To: from + Pos(r.Block(i).Stored)}
	}
	rot := func(pos Pos) func(*faultdisk.Disk, string) {
		return func(d *faultdisk.Disk, name string) { ok(t, d.Rot(name, offset(Start, pos), 1)) }
	}
	all := func(rec int) Damage { return Damage{From: recs[rec].pos, To: recs[rec].pos + Pos(len(recs[rec].rec))} }
	recs = append(recs, placed{Start, sealed(1, 90000, seeded(1))})
	first := recs[0]
	f("a block", rot(block(0, 1).From+7), block(0, 1))
	f("a block of the second record", rot(recs[1].pos+Pos(len(recs[1].rec))-1), block(1, 2))
	f("a header", rot(first.pos+20), all(0))
	f("the tables", rot(first.pos+record.HeaderBytes+3), all(0))
	f("a commit", rot(commitEnd(first.pos+Pos(len(first.rec)))-10))
	f("the segment's header", rot(Start-pageBytes+20))
	f("two blocks", func(d *faultdisk.Disk, name string) { rot(block(0, 0).From)(d, name); rot(block(1, 2).From)(d, name) }, block(0, 0), block(1, 2))
	f("a sector that cannot be read", func(d *faultdisk.Disk, name string) {
		d.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, At: 4, Only: func(n string) bool { return n == name }})
	})
	f("the end is cut off", func(d *faultdisk.Disk, name string) { ok(t, truncate(d, name, offset(Start, block(1, 2).From))) }, block(1, 2), all(2))
}

// A sealed segment stays so when the empty one after it is replaced at the next opening.
func TestSealedStaysSealed(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(1), 1)
	ok(t, err)
	for len(f.l.Segments()) < 2 {
		ok(t, f.run(1, 0))
	}
	for range 4 { // the first of these copies the last round, the others find only that
		ok(t, f.l.Close())
		f.l, _, _, err = openStore(disk)
		ok(t, err)
		if s := f.l.Segments()[0]; s.State != StateVerified || s.Err != nil {
			t.Fatalf("the segment is %s: %v", s.State, s.Err)
		}
	}
}

// A footer that finds no space is no damage, and is written by the next life.
func TestFooterWithoutSpace(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.Go = func(work func()) {
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, Err: syscall.ENOSPC, Ever: true})
		work()
		disk.Heal()
	}
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for seq := record.Seq(1); len(l.Segments()) < 2; seq++ {
		_, err := l.Append(sealed(seq, 9000, seeded(1)))
		ok(t, errors.Join(err, l.Commit()))
	}
	if s := l.Segments()[0]; s.State != StateClosed || s.Err != nil {
		t.Errorf("without a footer the segment is %s: %v", s.State, s.Err)
	}
	ok(t, l.Close())
	l, err = Open(disk, testDir, testGroup, Watermark{}, testOptions(), nil)
	ok(t, err)
	if s := l.Segments()[0]; s.State != StateVerified {
		t.Errorf("with space for its footer the segment is %s: %v", s.State, s.Err)
	}
}

// A device that says it wrote and did not, or wrote elsewhere, is found out: by the
// next life at the latest, and never served.
func TestLyingDisk(t *testing.T) {
	for at := 1; at <= 30; at += (sample + 2) / 3 {
		for _, lie := range []faultdisk.Fault{{Lose: true}, {Shift: 8192}, {Shift: -4096}} {
			disk := faultdisk.New(512)
			f, err := start(disk, &model{}, seeded(7), 1)
			ok(t, err)
			lie.Ops, lie.At = faultdisk.OpWrite, at
			lie.Only = func(name string) bool { return path.Dir(name) == testDir }
			disk.Inject(lie)
			ok(t, f.run(14, 0))
			ok(t, f.commit())
			ok(t, f.raise(0))
			l, _, found, err := openStore(disk.Kill())
			if errors.Is(err, ErrCorrupt) {
				continue
			}
			ok(t, err)
			if _, err := rotten(l, f.acked, found); err != nil {
				t.Errorf("write %d, lie %+v: %v", at, lie, err)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	disk, f := written(t, 5)
	_, err := Open(disk.Kill(), testDir, testGroup+1, Watermark{}, testOptions(), nil)
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("another group's log: %v", err)
	}
	if _, err := Open(disk.Kill(), testDir, 0, Watermark{}, testOptions(), nil); err == nil {
		t.Error("a log of no group opens")
	}
	if _, err := Open(disk.Kill(), testDir, testGroup, Watermark{Durable: f.l.Durable() + 1}, testOptions(), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a log that ends below its watermark: %v", err)
	}
	if _, err := Open(faultdisk.New(1), "log", testGroup, Watermark{Durable: Start + 1}, testOptions(), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an empty folder below its watermark: %v", err)
	}
	stop := errors.New("stop")
	if _, err := Open(disk.Kill(), testDir, testGroup, Watermark{}, testOptions(), func(Pos, record.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of each: %v", err)
	}
}

// Readers run beside appends, rolls and sealing, with fewer files open than there are.
func TestReadBesideAppend(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, disk.Mkdir("store"))
	o := testOptions()
	o.Go, o.OpenFiles = nil, 1
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	var mu sync.Mutex
	var acked []placed
	done := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			rng := seeded(r)
			for {
				select {
				case <-done:
					return
				default:
				}
				mu.Lock()
				n := len(acked)
				var p placed
				if n > 0 {
					p = acked[rng.IntN(n)]
				}
				mu.Unlock()
				got := make([]byte, len(p.rec))
				if err := l.ReadAt(got, p.pos); n > 0 && (err != nil || !bytes.Equal(got, p.rec)) {
					t.Errorf("read at %s: %v", p.pos, err)
					return
				}
				l.Segments()
			}
		})
	}
	for seq := range record.Seq(100) {
		rec := sealed(seq+1, 3000, seeded(int(seq)))
		pos, err := l.Append(rec)
		ok(t, errors.Join(err, l.Commit()))
		mu.Lock()
		acked = append(acked, placed{pos, rec})
		mu.Unlock()
	}
	close(done)
	wg.Wait()
	if n := len(l.Segments()); n < 10 {
		t.Errorf("only %d segments", n)
	}
	ok(t, l.Close())
}

// The same on the file system of this machine, direct where it can.
func TestOnThisMachine(t *testing.T) {
	dir := t.TempDir()
	o := Options{SegmentBytes: 1 << 20}
	l, err := Open(ioengine.OS(), path.Join(dir, "log"), testGroup, Watermark{}, o, nil)
	ok(t, err)
	var acked []placed
	for seq := range record.Seq(40) {
		rec := sealed(seq+1, 100_000, seeded(int(seq)))
		pos, err := l.Append(rec)
		ok(t, err)
		acked = append(acked, placed{pos, rec})
		if seq%4 == 3 {
			ok(t, l.Commit())
		}
	}
	durable := l.Durable()
	ok(t, l.Close())
	n := 0
	l, err = Open(ioengine.OS(), path.Join(dir, "log"), testGroup, Watermark{Durable: durable}, o, func(pos Pos, r record.Record) error {
		if pos != acked[n].pos || r.Seq != record.Seq(n+1) {
			t.Errorf("record %d at %s", r.Seq, pos)
		}
		n++
		return nil
	})
	ok(t, err)
	if n != len(acked) || l.Durable() != durable {
		t.Errorf("%d records, durable up to %s; want %d, %s", n, l.Durable(), len(acked), durable)
	}
	for _, p := range acked {
		got := make([]byte, len(p.rec))
		if err := l.ReadAt(got, p.pos); err != nil || !bytes.Equal(got, p.rec) {
			t.Fatalf("read at %s: %v", p.pos, err)
		}
	}
	ok(t, l.Close())
}

// go test ./journal/segment -run '^$' -bench Commit
func BenchmarkCommit(b *testing.B) {
	for _, c := range []struct {
		name  string
		bytes int
	}{{"4K", 4 << 10}, {"64K", 64 << 10}, {"1M", 1 << 20}} {
		b.Run("round="+c.name, func(b *testing.B) {
			l, err := Open(ioengine.OS(), path.Join(b.TempDir(), "log"), testGroup, Watermark{}, Options{}, nil)
			if err != nil {
				b.Fatal(err)
			}
			rec := sealed(1, c.bytes, seeded(1))
			b.SetBytes(int64(len(rec)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := l.Append(rec); err != nil {
					b.Fatal(err)
				}
				if err := l.Commit(); err != nil {
					b.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// Abandon on a log that is well forgets what was not committed.
func TestAbandonForgets(t *testing.T) {
	disk := faultdisk.New(512)
	f, err := start(disk, &model{}, seeded(1), 1)
	ok(t, err)
	ok(t, f.run(3, 0))
	ok(t, f.commit())
	durable := f.l.Durable()
	ok(t, f.append(sealed(100, 20000, f.rng)))
	ok(t, f.l.Abandon())
	f.pending = nil
	if f.l.End() != durable {
		t.Errorf("the log ends at %s, want %s", f.l.End(), durable)
	}
	ok(t, f.run(3, 0))
	ok(t, f.commit())
	ok(t, f.finish(disk))
}

func TestCommitAllocatesNothing(t *testing.T) {
	l, _, _, err := openStore(faultdisk.New(512))
	ok(t, err)
	rec := sealed(1, 100, seeded(1))
	l.w.file = sink{l.w.file}
	l.opt.SegmentBytes = 1 << 40
	l.cur.entries = make([]entry, 0, 1000)
	if n := testing.AllocsPerRun(100, func() {
		_, err := l.Append(rec)
		ok(t, errors.Join(err, l.Commit()))
	}); n > 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// sink is a file that takes everything: faultdisk allocates.
type sink struct{ ioengine.File }

func (sink) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (sink) WriteStart(_ [][]byte, _ int64, done func(error)) {
	go done(nil)
}
func (sink) WriteParts(_ [][]byte, _ int64) error { return nil }
func (sink) Allocate(_, _ int64) error            { return nil }
func (sink) Sync() error                          { return nil }

// A log whose oldest segments were dropped opens if the watermark says so, and keeps
// its places.
func TestDroppedBeginning(t *testing.T) {
	disk, f := written(t, 20)
	l, _, _, err := openStore(disk.Kill())
	ok(t, err)
	second := l.Segments()[1]
	ok(t, disk.Remove(segmentFiles(t, disk)[0]))
	w := Watermark{First: second.First, Durable: f.mark.Durable}
	var first Pos
	l, err = Open(disk, testDir, testGroup, w, testOptions(), func(pos Pos, r record.Record) error {
		if first == 0 {
			first = pos
		}
		return nil
	})
	ok(t, err)
	if first != second.First || l.Durable() < w.Durable {
		t.Errorf("the first record is at %s, durable up to %s; want %s, %s", first, l.Durable(), second.First, w.Durable)
	}
	if err := l.ReadAt(make([]byte, 1), Start); !errors.Is(err, ErrRange) {
		t.Errorf("what was dropped: %v, want ErrRange", err)
	}
	ok(t, l.ReadAt(make([]byte, 9000), second.First))
}

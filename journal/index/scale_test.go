package index

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// countingFS counts what is read and written of files.
type countingFS struct {
	ioengine.FS
	reads, read, wrote atomic.Int64
}

type countingFile struct {
	ioengine.File
	fs *countingFS
}

func (c *countingFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := c.FS.Open(name, flags)
	return &countingFile{f, c}, err
}

func (f *countingFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.reads.Add(1)
	f.fs.read.Add(int64(len(p)))
	return f.File.ReadAt(p, off)
}

func (f *countingFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.wrote.Add(int64(len(p)))
	return f.File.WriteAt(p, off)
}

// feeder makes records of 16 writes of 4 KiB at random over a volume, cheaply: their
// tables are made by a batch of the one data block they share.
type feeder struct {
	rng    *rand.Rand
	blocks int64
	batch  *record.Batch
	c      *record.Compressor
	data   []byte
	buf    []byte
	pos    segment.Pos
	seq    record.Seq
}

const feedWrites = 16

func newFeeder(volumeBytes int64) *feeder {
	f := &feeder{rng: rand.New(rand.NewPCG(1, 1)), blocks: volumeBytes >> 12, batch: record.NewBatch(record.Limits{}), c: record.NewCompressor(),
		data: make([]byte, 4096), pos: segment.Start}
	f.data[0] = 1
	return f
}

func (f *feeder) next(at func() int64) (segment.Pos, record.Record) {
	f.seq++
	f.batch.Reset()
	for i := range feedWrites {
		f.batch.Add(record.Piece{Volume: 1, Off: at() << 12, Len: 4096, Ticket: record.Ticket(i + 1), Data: f.data})
	}
	f.buf = f.batch.Seal(f.buf[:0], record.Identity{Stream: 0x123456789abcdef, Epoch: 1, Incarnation: 1, Seq: f.seq}, 1, f.c)
	r, err := record.Parse(f.buf)
	if err != nil {
		panic(err)
	}
	pos := f.pos
	f.pos += feedWrites*4096 + 1024 // as if nothing of it were compressed
	return pos, r
}

func (f *feeder) random() int64 { return f.rng.Int64N(f.blocks) }

// fill adds so many writes, flushing whenever the memtable has grown to flushBytes.
func (f *feeder) fill(tb testing.TB, t *Table, writes int, flushBytes int64) {
	for n := 0; n < writes; n += feedWrites {
		pos, r := f.next(f.random)
		must(tb, t.Add(pos, r))
		if n%4096 == 0 && t.Memory() > flushBytes {
			must(tb, t.Flush(Snapshot{Pos: f.pos, Segment: 1, Life: 1}))
		}
	}
	must(tb, t.Flush(Snapshot{Pos: f.pos, Segment: 1, Life: 1}))
}

// A million writes: what the index takes of memory and disk, and how many pages a lookup
// reads, cold. No clock is in it.
func TestScale(t *testing.T) {
	writes := 1 << 20
	if testing.Short() {
		writes = 1 << 16
	}
	fs := &countingFS{FS: faultdisk.New(512)}
	cfg := testTable(fs)
	cfg.Cache = NewCache(1 << 20)
	table, err := OpenTable(cfg)
	must(t, err)
	f := newFeeder(4 << 30)
	f.fill(t, table, writes, 8<<20)
	s := table.Stats()
	if per := s.Bytes / s.Extents; s.Extents != int64(writes) || per > 36 {
		t.Errorf("%d extents of %d bytes on disk", s.Extents, per)
	}
	if per := fs.wrote.Load() / int64(writes); per > 160 {
		t.Errorf("%d bytes written an extent", per)
	}
	if m := table.Memory(); m > 64<<10 {
		t.Errorf("at rest the memtable has %d bytes", m)
	}
	must(t, table.Close())

	fs.reads.Store(0)
	fs.read.Store(0)
	table, err = OpenTable(cfg)
	must(t, err)
	if fs.read.Load() > int64(writes)/4+100<<10 {
		t.Errorf("opening read %d bytes", fs.read.Load())
	}
	table.cfg.Cache, cfg.Cache = NewCache(64<<20), nil
	for _, r := range table.mu.view.runs {
		r.cache = table.cfg.Cache
	}
	at := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: f.seq}}})
	var dst []Piece
	lookups := func(n int) float64 {
		fs.reads.Store(0)
		for range n {
			dst, err = table.Lookup(dst[:0], 1, f.random()<<12, 4096, at)
			must(t, err)
		}
		return float64(fs.reads.Load()) / float64(n)
	}
	first := lookups(1)
	lookups(3000) // the fences are in the cache then
	warm := lookups(1000)
	t.Logf("%d runs, %d bytes of disk and %d written an extent; reads: first %v, then %.2f", s.Runs, s.Bytes/s.Extents, fs.wrote.Load()/int64(writes), first, warm)
	if first > float64(2*s.Runs+2) || warm > 2 {
		t.Errorf("a cold lookup reads %v pages of %d runs, the thousandth %.2f", first, s.Runs, warm)
	}
	must(t, table.Close())
}

// A block that was written over and over does not stand in the way of its neighbours, nor
// of its own older versions.
func TestHotPlace(t *testing.T) {
	fs := &countingFS{FS: faultdisk.New(512)}
	cfg := testTable(fs)
	cfg.Cache = NewCache(0) // keeps nothing: every page is a read
	table, err := OpenTable(cfg)
	must(t, err)
	f := newFeeder(1 << 30)
	versions := 1 << 17
	if testing.Short() {
		versions = 1 << 14
	}
	pos, r := f.next(func() int64 { return 1 + f.rng.Int64N(7) }) // the neighbours
	must(t, table.Add(pos, r))
	for range versions / feedWrites {
		pos, r := f.next(func() int64 { return 0 })
		must(t, table.Add(pos, r))
	}
	look := func() {
		for _, seq := range []record.Seq{1, 2, f.seq / 2, f.seq} {
			at := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: seq}}})
			for block := range int64(8) {
				fs.reads.Store(0)
				got, err := table.Lookup(nil, 1, block<<12, 4096, at)
				must(t, err)
				want := record.Seq(1)
				if block == 0 {
					want = seq
				}
				if len(got) != 1 || got[0].In == InLog && got[0].ID.Seq != want || fs.reads.Load() > 8 {
					t.Errorf("block %d at seq %d: %d reads, %+v", block, seq, fs.reads.Load(), got)
				}
			}
		}
	}
	m := table.mu.active
	if m.versions.n < versions {
		t.Fatalf("%d versions", m.versions.n)
	}
	for _, seq := range []record.Seq{1, 2, f.seq / 2, f.seq} {
		l := &lookup{at: NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: seq}}})}
		must(t, m.collect(l, 1, 0, 32<<10, nil))
		if most := 2*markEvery + 16*feedWrites; l.steps > most || len(l.found) < 2 || len(l.found) > 16 {
			t.Errorf("at seq %d: %d of at most %d steps, %d found", seq, l.steps, most, len(l.found))
		}
	}
	look()
	must(t, table.Flush(Snapshot{Pos: f.pos, Segment: 1, Life: 1}))
	look()
	must(t, table.Close())
}

// What Memory says is what the heap holds, within a tenth or so. It is measured in a
// process of its own: what other tests left is freed whenever it pleases.
func TestMemory(t *testing.T) {
	const alone = "HOLDFAST_INDEX_ALONE"
	if os.Getenv(alone) == "" {
		self, err := os.Executable()
		must(t, err)
		again := exec.Command(self, "-test.run=^TestMemory$", "-test.v", fmt.Sprint("-test.short=", testing.Short()))
		again.Env = append(os.Environ(), alone+"=1")
		out, err := again.CombinedOutput()
		if t.Logf("%s", out); err != nil || !bytes.Contains(out, []byte("--- PASS: TestMemory")) {
			t.Errorf("alone: %v", err)
		}
		return
	}
	table, err := OpenTable(testTable(faultdisk.New(512)))
	must(t, err)
	heap := func() int64 {
		for range 3 { // pools are emptied by the second
			runtime.GC()
		}
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	extents := 200 << 10
	if testing.Short() {
		extents = 30 << 10
	}
	f := newFeeder(100 << 30)
	f.next(f.random)
	before := heap()
	for range extents / feedWrites {
		pos, r := f.next(f.random)
		must(t, table.Add(pos, r))
	}
	have, says := heap()-before, table.Memory()
	runtime.KeepAlive(f)
	t.Logf("Memory says %d, the heap has %d, for %d extents", says, have, extents)
	if says < have*85/100 || says > have*115/100 {
		t.Errorf("Memory says %d, the heap has %d", says, have)
	}
	must(t, table.Close())
}

// HOLDFAST_INDEX_EXTENTS sets how many writes, HOLDFAST_INDEX_DIR a folder on a real disk:
//
//	HOLDFAST_INDEX_EXTENTS=100000000 HOLDFAST_INDEX_DIR=/data go test ./journal/index -run '^$' -bench Table -benchtime 20000x -timeout 1h
func BenchmarkTable(b *testing.B) {
	writes := 1 << 20
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_INDEX_EXTENTS")); err == nil {
		writes = n
	}
	disk := ioengine.FS(faultdisk.New(512))
	dir := "index"
	if d := os.Getenv("HOLDFAST_INDEX_DIR"); d != "" {
		disk, dir = ioengine.OS(), d
	}
	fs := &countingFS{FS: disk}
	cfg := TableConfig{FS: fs, Dir: dir, Group: 1, Cache: NewCache(64 << 20), Go: func(f func()) { f() }}
	table, err := OpenTable(cfg)
	must(b, err)
	f := newFeeder(100 << 30)
	f.fill(b, table, writes, 32<<20)
	s := table.Stats()
	at := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: f.seq}}})
	b.Run(fmt.Sprintf("lookup/extents=%d", writes), func(b *testing.B) {
		var dst []Piece
		fs.reads.Store(0)
		for b.Loop() {
			if dst, err = table.Lookup(dst[:0], 1, f.random()<<12, 4096, at); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(fs.reads.Load())/float64(b.N), "reads/op")
		b.ReportMetric(float64(s.Runs), "runs")
		b.ReportMetric(float64(s.Bytes)/float64(s.Extents), "disk-B/extent")
		b.ReportMetric(float64(fs.wrote.Load())/float64(writes), "written-B/extent")
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			again, err := OpenTable(cfg)
			must(b, err)
			must(b, again.Close())
		}
	})
	must(b, table.Close())
}

// feed is records that are made once and come again and again.
type feed struct {
	records []record.Record
	pos     segment.Pos
	seq     record.Seq
}

func newFeed(extents int) *feed {
	f, all := newFeeder(100<<30), &feed{pos: segment.Start}
	for range extents / feedWrites {
		_, r := f.next(f.random)
		all.records = append(all.records, r)
		f.buf = nil // r keeps it
	}
	return all
}

func (f *feed) each(b *testing.B, add func(segment.Pos, record.Record) error) {
	for _, r := range f.records {
		f.seq++
		r.Seq = f.seq
		must(b, add(f.pos, r))
		f.pos += feedWrites*4096 + 1024
	}
}

// What a write of 4 KiB, of a record of 16, costs in memory: adding it, and giving it out in
// order; and finding one, with and without a newer one.
func BenchmarkMemtable(b *testing.B) {
	const extents = 1 << 18
	f := newFeed(extents)
	var add, each time.Duration
	var m *memtable
	for b.Loop() {
		m = newMemtable()
		began := cpuNow()
		f.each(b, func(pos segment.Pos, r record.Record) error { return m.add(pos, &r) })
		add += cpuNow() - began
		began = cpuNow()
		must(b, m.each(func(*version) error { return nil }))
		each += cpuNow() - began
	}
	b.ReportMetric(float64(add.Nanoseconds())/float64(b.N)/extents, "add-ns/extent")
	b.ReportMetric(float64(each.Nanoseconds())/float64(b.N)/extents, "each-ns/extent")
	b.ReportMetric(float64(m.bytes())/extents, "B/extent")
	l := &lookup{at: NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: f.seq}}})}
	const lookups = 100000
	began := cpuNow()
	for i := range lookups {
		l.found = l.found[:0]
		off := f.records[i*7919%len(f.records)].Extent(0).Off ^ int64(i&1)<<13
		must(b, m.collect(l, 1, off, off+4096, nil))
	}
	b.ReportMetric(float64((cpuNow()-began).Nanoseconds())/lookups, "lookup-ns")
}

// The time is of one version of a million.
func BenchmarkTableFlushMerge(b *testing.B) {
	f := newFeed(1 << 18)
	var flush, merge time.Duration
	for b.Loop() {
		cfg := testTable(faultdisk.New(512))
		var due func()
		cfg.Go = func(f func()) { due = f }
		table, err := OpenTable(cfg)
		must(b, err)
		for range 4 {
			f.each(b, table.Add)
			began := cpuNow()
			must(b, table.Flush(Snapshot{Pos: f.pos, Segment: 1, Life: 1}))
			flush += cpuNow() - began
		}
		began := cpuNow()
		due()
		merge += cpuNow() - began
		must(b, table.Close())
	}
	b.ReportMetric(float64(flush.Nanoseconds())/float64(b.N)/(1<<20), "flush-ns/extent")
	b.ReportMetric(float64(merge.Nanoseconds())/float64(b.N)/(1<<20), "merge-ns/extent")
}

// cpuNow is what the process has used of the processors so far: other load on the machine shows
// less in it than in the time.
func cpuNow() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

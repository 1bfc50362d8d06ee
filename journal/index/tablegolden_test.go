package index

import (
	"bytes"
	"errors"
	"hash/crc32"
	"os"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// goldenVersions are those of testdata/v1.run, in order: enough for a second data page.
func goldenVersions() (vs []version) {
	for cell := range uint64(120) {
		v := version{sortKey: sortKey{group: group{area: areaOf(3, 0), cell: 7 + cell*cell, span: spanOf(4096, 4096), stream: 5}, seq: 900 - record.Seq(cell), pos: segment.Pos(1<<33 - cell*70000), ext: uint16(cell)},
			epoch: 2, inc: 3, number: uint16(cell % 5), blockOff: 512, block: record.Block{Codec: record.CodecLZ4, Raw: record.LineBytes, Stored: 9000, CRC: 0x01020304 * uint32(cell), At: 900}}
		switch cell % 4 {
		case 1:
			v.span, v.block.Codec, v.block.Stored = spanOf(1000, 77), record.CodecRaw, record.LineBytes
		case 2:
			v.block.Codec, v.block.Raw, v.block.Stored = record.CodecRaw, 4096, 4096
		case 3:
			v.zero, v.number, v.blockOff, v.block, v.inc = true, 0, 0, record.Block{}, 4
		}
		vs = append(vs, v)
		older := v
		older.seq, older.pos, older.ext = v.seq-100, v.pos-1e6, 3
		vs = append(vs, older)
	}
	vs = append(vs, version{sortKey: sortKey{group: group{area: areaOf(3, 5), cell: 2, span: spanOf(123, 1<<29), stream: record.FoldedStream}, seq: 44, pos: 4096, ext: 1}, zero: true, epoch: 1, inc: 1})
	return append(vs, version{sortKey: sortKey{group: group{area: areaOf(3, 7), cell: 1, stream: 5}, seq: 45, pos: 1 << 34}, zero: true, epoch: 2, inc: 3})
}

var goldenID = runID{group: 0x0102030405060708, number: 9, life: 0x1112131415161718}

func goldenLayout() layout {
	return layout{covered: Snapshot{Pos: 1<<34 + 1, Segment: 64, Life: 77, State: []byte("the journal's own")}, first: 4096, next: 10,
		runs: []layoutRun{{id: goldenID, pages: 7, masks: []Span{{8192, 16384}, {1 << 20, 1 << 21}}}}}
}

// goldenFolds is a layout that only version 2 can say.
func goldenFolds() layout {
	l := goldenLayout()
	l.marks = []FoldMark{{4096, 1 << 20, 5}, {1 << 20, 1 << 30, 1 << 63}}
	return l
}

// The golden files are what is written today, and read as what was written.
func TestTableGolden(t *testing.T) {
	disk := faultdisk.New(512)
	w, err := newRunWriter(disk, "run", goldenID, nil)
	must(t, err)
	for _, v := range goldenVersions() {
		must(t, w.add(&v))
	}
	_, err = w.finish()
	must(t, err)
	run := make([]byte, sizeOf(t, disk, "run"))
	f, err := disk.Open("run", ioengine.ReadOnly)
	must(t, err)
	_, err = f.ReadAt(run, 0)
	must(t, err)
	l := goldenLayout()
	folded := goldenFolds()
	for name, have := range map[string][]byte{"testdata/v1.run": run, "testdata/v1.current": l.encode(goldenID.group), "testdata/v2.current": folded.encode(goldenID.group)} {
		if *update {
			must(t, os.WriteFile(name, have, 0o644))
		}
		want, err := os.ReadFile(name)
		must(t, err)
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what is written today", name)
		}
	}
}

func TestTableGoldenReads(t *testing.T) {
	p, err := os.ReadFile("testdata/v1.current")
	must(t, err)
	l, err := parseCurrent(p, goldenID.group)
	must(t, err)
	want := goldenLayout()
	if !bytes.Equal(l.encode(1), want.encode(1)) {
		t.Errorf("current reads as %+v", l)
	}
	p, err = os.ReadFile("testdata/v2.current")
	must(t, err)
	l, err = parseCurrent(p, goldenID.group)
	must(t, err)
	if want := goldenFolds(); !bytes.Equal(l.encode(1), want.encode(1)) || len(l.marks) != 2 {
		t.Errorf("current of version 2 reads as %+v", l)
	}
	p, err = os.ReadFile("testdata/v1.run")
	must(t, err)
	disk := faultdisk.New(512)
	f, err := disk.Open("run", ioengine.Create)
	must(t, err)
	_, err = f.WriteAt(p, 0)
	must(t, err)
	r, err := openRun(disk, "run", goldenID, uint64(len(p)/pageBytes))
	must(t, err)
	s := r.scan(nil)
	for i, v := range goldenVersions() {
		if ok, err := s.next(); !ok || err != nil || s.v != v {
			t.Fatalf("version %d reads as %+v (%v), want %+v", i, s.v, err, v)
		}
	}
	if ok, err := s.next(); ok || err != nil {
		t.Errorf("behind the last: %v, %v", ok, err)
	}
}

// A page that verifies and yet holds anything gives versions or an error, and never panics.
func FuzzDataPage(f *testing.F) {
	var d dataPage
	d.reset()
	for _, v := range goldenVersions()[:40] {
		d.add(&v, 0)
	}
	f.Add(d.p, uint16(d.count))
	f.Fuzz(func(t *testing.T, p []byte, count uint16) {
		page := make([]byte, pageBytes)
		copy(page, p)
		le.PutUint16(page[atCount:], count)
		var r dataReader
		r.reset(page, []streamLife{{1, 2, 3}, {record.FoldedStream, 1, 1}})
		var v version
		for r.next(&v) {
			if off, n := v.place(); off < 0 || n < 0 || v.block.Stored > record.LineBytes || v.pos < 0 {
				t.Fatalf("%+v", v)
			}
		}
	})
}

func FuzzTail(f *testing.F) {
	w := &runWriter{}
	w.volumes = map[record.VolumeID]uint16{3: 1}
	w.origins, w.streams, w.fences = []streamLife{{1, 2, 3}}, []seqRange{{1, 2, 3}}, []fence{{page: 1}}
	f.Add(w.appendTail(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		r := &run{tail: 100}
		if err := r.parseTail(p); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzCurrent(f *testing.F) {
	l := goldenLayout()
	f.Add(l.encode(7)[:len(l.encode(7))-4])
	folded := goldenFolds()
	f.Add(folded.encode(7)[:len(folded.encode(7))-4])
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := parseCurrent(le.AppendUint32(bytes.Clone(p), crc32.Checksum(p, castagnoli)), 7)
		if err == nil && len(l.covered.State) > len(p) {
			t.Fatalf("%+v", l)
		}
	})
}

func TestCache(t *testing.T) {
	c := NewCache(16 * 64 << 10)
	key := func(i int) CacheKey { return CacheKey{Owner: 1, At: uint64(i)} }
	for i := range 100 {
		c.Put(key(i), make([]byte, 1000))
		c.Get(key(i)) // asked for: they stay
	}
	c.Put(key(5), []byte("another")) // what is there stays
	for i := 1000; i < 50000; i++ {  // a scan
		c.Put(key(i), make([]byte, 1000))
	}
	left := 0
	for i := range 100 {
		if p, ok := c.Get(key(i)); ok && len(p) == 1000 {
			left++
		}
	}
	if left < 95 {
		t.Errorf("a scan left %d of 100 that were asked for", left)
	}
	if b := c.Bytes(); b > 16*64<<10 || b < 16*64<<10/2 {
		t.Errorf("the cache of 1 MiB has %d bytes", b)
	}
	c.Put(key(1), make([]byte, 1<<20))
	for i := 60000; i < 61000; i++ { // who comes back soon stays
		c.Put(key(i), make([]byte, 1000))
	}
	if first, second := c.Owner(), c.Owner(); first == second {
		t.Error("two owners are one")
	}
}

func TestPlanMerge(t *testing.T) {
	f := func(first segment.Pos, wantFrom, wantTo int, mib ...int64) {
		t.Helper()
		var runs []runShape
		pos := segment.Pos(1000 * len(mib))
		for _, m := range mib {
			runs = append(runs, runShape{m << 20, pos - 1000, pos})
			pos -= 1000
		}
		if from, to := planMerge(runs, first, 1<<30); from != wantFrom || to != wantTo {
			t.Errorf("runs of %v MiB: merge [%d, %d), want [%d, %d)", mib, from, to, wantFrom, wantTo)
		}
	}
	f(0, 0, 0)
	f(0, 0, 0, 1, 1, 1, 1, 1)
	f(0, 0, 6, 1, 1, 1, 1, 1, 1)
	f(0, 0, 0, 1, 1, 1, 1, 1, 64)
	f(0, 0, 6, 1, 1, 1, 1, 1, 1, 64)
	f(0, 1, 7, 32, 1, 1, 1, 1, 1, 1)
	f(0, 0, 0, 200, 200, 200, 200, 200, 200) // the result would be too large
	f(400, 0, 0, 400)                        // less than half dropped
	f(600, 0, 1, 400)                        // more than half
	f(0, 0, 0, 512, 128, 32, 8, 2)           // each at its size
}

// Of flushes alike, each version is merged few times, and few runs stand side by side.
func TestMergesAreFew(t *testing.T) {
	const flushes, bytes = 400, int64(10 << 20)
	var runs []runShape // newest first
	written, most := int64(0), 0
	for i := range segment.Pos(flushes) {
		runs = append([]runShape{{bytes, 1000 * i, 1000 * (i + 1)}}, runs...)
		for {
			from, to := planMerge(runs, 0, 1<<50)
			if to-from < 2 {
				break
			}
			one := runShape{lo: runs[to-1].lo, hi: runs[from].hi}
			for _, r := range runs[from:to] {
				one.bytes += r.bytes
			}
			written += one.bytes
			runs = append(append(runs[:from:from], one), runs[to:]...)
		}
		most = max(most, len(runs))
	}
	if times := float64(written) / flushes / float64(bytes); times > 3.3 || most > 12 {
		t.Errorf("each version is merged %.2f times, %d runs at most", times, most)
	}
}

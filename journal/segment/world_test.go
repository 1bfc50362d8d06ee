package segment

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	testGroup  record.GroupID  = 0x0102030405060708
	testStream record.StreamID = 0x1112131415161718
)

// testOptions make everything happen within a few records: rolls, writes before a
// commit, records that are lent, closed files; sealing is done at once, so that a seed says it all.
func testOptions() Options {
	return Options{
		SegmentBytes: 24 << 10, StageBytes: 8 << 10, LendBytes: 5000, OpenFiles: 2,
		Go:    func(work func()) { work() },
		Ahead: func(work func()) { work() },
		Life:  func() uint64 { return lives.Add(1) },
	}
}

// lives makes every life of every log of the tests its own, as chance does outside.
var lives atomic.Uint64

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func seeded(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 0x5e6)) }

// sealed returns record seq of the test's stream, of about n bytes, in memory that can be lent.
func sealed(seq record.Seq, n int, rng *rand.Rand) []byte {
	b := record.NewBatch(record.Limits{})
	for i := record.Ticket(0); n > 0; i++ {
		data := make([]byte, min(n, 32<<10))
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		b.Add(record.Piece{Volume: 1, Off: int64(rng.IntN(1000)) << 15, Len: int64(len(data)), Ticket: record.Ticket(seq)*100 + i, Data: data})
		n -= len(data)
	}
	id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: seq}
	p := b.Seal(nil, id, record.Time(seq), record.NewCompressor())
	mem := buf.Aligned(len(p))
	copy(mem, p)
	return mem
}

// setKind makes the record at the start of p one of another kind, its header's checksum right.
func setKind(p []byte, kind record.Kind) {
	p[5] = byte(kind)
	fixCRC(p, record.HeaderBytes-4)
}

// placed is a record and where the log said it is.
type placed struct {
	pos Pos
	rec []byte
}

// model is what the log was told and what it promised.
type model struct {
	acked   []placed // their Commit returned
	pending []placed // appended since, in order
	mark    Watermark
	first   Pos // the next mark's
}

func (m *model) clone() *model {
	return &model{append([]placed(nil), m.acked...), append([]placed(nil), m.pending...), m.mark, m.first}
}

// from returns what was committed at begin or after it.
func (m *model) from(begin Pos) []placed {
	i := 0
	for i < len(m.acked) && m.acked[i].pos < begin {
		i++
	}
	return m.acked[i:]
}

func (m *model) committed() {
	m.acked = append(m.acked, m.pending...)
	m.pending = nil
}

const testDir, testMarks = "store/log", "watermarks"

// slowOpen has the tests' logs opened with each, not with a Replay after Open.
var slowOpen bool

// openStore opens watermarks and log, and returns what the log held.
func openStore(fs ioengine.FS) (l *Log, marks *Watermarks, found []placed, err error) {
	if err := fs.Mkdir("store"); err != nil {
		return nil, nil, nil, err
	}
	if err := fs.SyncDir("/"); err != nil {
		return nil, nil, nil, err
	}
	marks, err = OpenWatermarks(fs, "store", testMarks)
	if err != nil {
		return nil, nil, nil, err
	}
	o := testOptions()
	if o.Spare, err = OpenPool(fs, "store/spare", 3); err != nil {
		return nil, nil, nil, errors.Join(err, marks.Close())
	}
	each := func(pos Pos, r record.Record) error {
		found = append(found, placed{pos, bytes.Clone(r.Bytes()[:r.TablesEnd()])})
		return nil
	}
	if slowOpen {
		l, err = Open(fs, testDir, testGroup, marks.Get(testGroup), o, each)
	} else if l, err = Open(fs, testDir, testGroup, marks.Get(testGroup), o, nil); err == nil {
		if err = l.Replay(l.Segments()[0].First, l.Durable(), ReplayOptions{}, each); err != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, marks.Close())
	}
	return l, marks, found, nil
}

// check says what of the model's promises the log breaks, having found these
// records when it was opened.
func (m *model) check(l *Log, found []placed) error {
	begin := l.Segments()[0].First
	if begin > max(m.mark.First, Start) {
		return fmt.Errorf("the log begins at %s, and was dropped up to %s", begin, m.mark.First)
	}
	acked := m.from(begin)
	if len(found) < len(acked) {
		return fmt.Errorf("%d records were committed, %d are left", len(acked), len(found))
	}
	all := append(append([]placed(nil), acked...), m.pending...)
	if len(found) > len(all) {
		return fmt.Errorf("%d records were appended, %d are there", len(all), len(found))
	}
	for i, f := range found {
		want := all[i]
		if f.pos != want.pos || !bytes.Equal(f.rec, want.rec[:len(f.rec)]) {
			return fmt.Errorf("record %d at %s is not the one appended at %s", i, f.pos, want.pos)
		}
		got := make([]byte, len(want.rec))
		if err := l.ReadAt(got, f.pos); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		if !bytes.Equal(got, want.rec) {
			return fmt.Errorf("record %d at %s reads back as other bytes", i, f.pos)
		}
	}
	if n := len(found); n > 0 && l.Durable() < found[n-1].pos+Pos(len(all[n-1].rec)) {
		return fmt.Errorf("durable up to %s with a record at %s", l.Durable(), found[n-1].pos)
	}
	return nil
}

// recovered opens the disk, checks it, and returns the model as the next life finds
// it: what was found is durable now.
func (m *model) recovered(disk *faultdisk.Disk) (*model, *Log, *Watermarks, error) {
	l, marks, found, err := openStore(disk)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := m.check(l, found); err != nil {
		return nil, nil, nil, err
	}
	if w := marks.Get(testGroup); w.Durable < m.mark.Durable {
		return nil, nil, nil, fmt.Errorf("the watermark was %s and is %s", m.mark.Durable, w.Durable)
	}
	next := m.clone()
	next.acked = append(next.from(l.Segments()[0].First), next.pending...)[:len(found)]
	next.pending = nil
	next.mark = marks.Get(testGroup)
	return next, l, marks, nil
}

// life is one process writing to a log, for as long as it can.
type life struct {
	*model
	l     *Log
	marks *Watermarks
	rng   *rand.Rand
	next  record.Seq
	drops bool // run drops the beginning of the log now and then
}

// start opens the store, trying again where that fails.
func start(fs ioengine.FS, m *model, rng *rand.Rand, tries int) (*life, error) {
	for {
		l, marks, found, err := openStore(fs)
		if err == nil {
			if err := m.check(l, found); err != nil {
				return nil, err
			}
			m.pending = m.pending[:len(found)-len(m.acked)]
			m.committed()
			return &life{model: m, l: l, marks: marks, rng: rng, next: record.Seq(len(found) + 1)}, nil
		}
		if tries--; tries <= 0 {
			return nil, err
		}
	}
}

// run appends records, commits and raises the watermark. Where the log fails it
// abandons and appends again what was not committed.
func (f *life) run(steps, tries int) error {
	for range steps {
		rec := sealed(f.next, 1+f.rng.IntN([]int{300, 5000, 20000}[f.rng.IntN(3)]), f.rng)
		f.next++
		err := f.append(rec)
		switch {
		case err != nil:
		case f.rng.IntN(3) > 0:
			err = f.commit()
		case f.rng.IntN(2) > 0:
			err = f.overlap()
		}
		for n := tries; err != nil; n-- {
			if n == 0 {
				return err
			}
			err = f.again()
		}
		if f.rng.IntN(5) == 0 {
			if err := f.raise(tries); err != nil {
				return err
			}
		}
		if f.drops && f.rng.IntN(4) == 0 {
			if err := f.drop(tries); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop raises the watermark's first place and drops what is below.
func (f *life) drop(tries int) error {
	segs := f.l.Segments()
	f.first = max(f.first, segs[f.rng.IntN(len(segs))].First)
	err := f.raise(tries)
	for n := tries; err == nil; n-- {
		if err := f.l.Drop(f.first); err == nil || n <= 0 {
			return err
		}
	}
	return err
}

func (f *life) append(rec []byte) error {
	f.pending = append(f.pending, placed{f.l.End(), rec}) // it may be durable even if Append fails
	pos, err := f.l.Append(rec)
	f.pending[len(f.pending)-1].pos = pos
	if err != nil {
		f.pending[len(f.pending)-1].pos = -1
	}
	return err
}

func (f *life) commit() error {
	if err := f.l.Commit(); err != nil {
		return err
	}
	f.committed()
	return nil
}

// overlap appends the beginning of the next round before the sync of this one.
func (f *life) overlap() error {
	file, err := f.l.Write()
	if err != nil || file == nil {
		return err
	}
	n := len(f.pending)
	var staged error
	if !f.l.Full() {
		rec := sealed(f.next, 1+f.rng.IntN(20000), f.rng)
		f.next++
		staged = f.append(rec)
	}
	if err := f.l.Synced(file.Sync()); err != nil {
		return err
	}
	f.acked = append(f.acked, f.pending[:n]...)
	f.pending = append([]placed(nil), f.pending[n:]...)
	return staged
}

// again takes a failed log on.
func (f *life) again() error {
	if err := f.l.Abandon(); err != nil {
		return err
	}
	old := f.pending
	f.pending = nil
	for i, p := range old {
		if err := f.append(p.rec); err != nil {
			f.pending = append(f.pending, old[i+1:]...)
			return err
		}
	}
	return f.commit()
}

func (f *life) raise(tries int) error {
	for {
		w := Watermark{First: f.first, Durable: f.l.Durable()}
		f.mark.First = f.first // it may be durable even if Raise fails
		err := f.marks.Raise(map[record.GroupID]Watermark{testGroup: w})
		if err == nil {
			f.mark = w
			return nil
		}
		if tries--; tries < 0 {
			return err
		}
	}
}

// finish checks the log as it runs, then as the next process finds it, then as a machine does.
func (f *life) finish(disk *faultdisk.Disk) error {
	for i, p := range f.from(f.l.Segments()[0].First) {
		got := make([]byte, len(p.rec))
		if err := f.l.ReadAt(got, p.pos); err != nil || !bytes.Equal(got, p.rec) {
			return fmt.Errorf("record %d in its own life: %v", i, err)
		}
	}
	if _, _, _, err := f.recovered(disk.Crash(seeded(1), faultdisk.KeepNone)); err != nil {
		return fmt.Errorf("after a crash: %w", err)
	}
	killed := disk.Kill()
	m, _, _, err := f.recovered(killed)
	if err != nil {
		return fmt.Errorf("after a kill: %w", err)
	}
	if _, _, _, err := m.recovered(killed.Crash(seeded(1), faultdisk.KeepNone)); err != nil {
		return fmt.Errorf("after a kill, a recovery and a crash: %w", err)
	}
	return nil
}

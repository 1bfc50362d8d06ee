package journal

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// everySnapshot has each field of a snapshot: streams with and without sums, with and
// without records, and cuts that wait.
func everySnapshot() *snapshot {
	c := newCuts()
	c.newest, c.seen, c.limit = 6, 9, 5
	c.streams[70] = &streamCuts{seq: 300}
	c.streams[71] = &streamCuts{seq: 4, open: true, initial: true}
	for n := uint64(7); n <= 8; n++ {
		c.pending[n] = &pendingCut{time: record.Time(1000 * n), cut: record.Cut{Checkpoint: n, Wall: int64(n), Tag: "before the upgrade"},
			at: map[record.StreamID]record.Seq{70: 290, 71: 3}, confirmed: map[record.StreamID]bool{70: true},
			volumes: map[record.VolumeID]int64{1: 1 << 30, 2: 4096}}
	}
	s := &snapshot{group: testGroup, lineage: testLineage, pos: 0x12000, complete: 0x10800, cuts: c,
		streams: map[record.StreamID]standing{
			70: {mark: mark{last: life{2, 3}, next: 301, phase: phaseLog}},
			71: {mark: mark{last: life{2, 1}, next: 5, phase: phaseLog}, recent: []sumOf{{2, 22}, {4, 44}}},
			72: {mark: mark{next: 1, phase: phaseLog}},
		}}
	long := s.streams[70]
	for seq := record.Seq(301 - recentCount); seq < 301; seq++ {
		long.recent = append(long.recent, sumOf{seq, uint32(seq) * 7})
	}
	s.streams[70] = long
	return s
}

func TestGoldenSnapshot(t *testing.T) {
	const name = "testdata/v1.snapshot"
	got := everySnapshot().appendTo(nil)
	if *update {
		ok(t, os.WriteFile(name, got, 0o666))
	}
	golden, err := os.ReadFile(name)
	ok(t, err)
	if !bytes.Equal(got, golden) {
		t.Errorf("the bytes of a snapshot changed; first at %d", firstDifference(got, golden))
	}
	s, err := parseSnapshot(golden)
	ok(t, err)
	if again := s.appendTo([]byte("before")); !bytes.Equal(again[6:], golden) {
		t.Error("golden snapshot is not what was read")
	}
	if s.streams[71].recent[1] != (sumOf{4, 44}) || s.cuts.pending[8].at[71] != 3 || s.cuts.streams[72] != nil || s.complete != 0x10800 {
		t.Errorf("golden snapshot reads as %+v", s)
	}
}

// A snapshot that is not what was written is none.
func TestDamagedSnapshot(t *testing.T) {
	p := everySnapshot().appendTo(nil)
	for i := range p {
		q := bytes.Clone(p)
		q[i] ^= 0x10
		if _, err := parseSnapshot(q); err == nil {
			t.Fatalf("byte %d flipped, and it is read", i)
		}
	}
	for n := range p {
		if _, err := parseSnapshot(p[:n]); err == nil {
			t.Fatalf("cut at %d, and it is read", n)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	p := everySnapshot().appendTo(nil)
	f.Add(p[:len(p)-4])
	empty := &snapshot{group: 1, lineage: 1, cuts: newCuts()}
	p = empty.appendTo(nil)
	f.Add(p[:len(p)-4])
	f.Fuzz(func(t *testing.T, p []byte) {
		p = appendSum(slices.Clone(p), p) // else nothing gets past the checksum
		s, err := parseSnapshot(p)
		if err == nil && !bytes.Equal(s.appendTo(nil), p) {
			t.Fatalf("read and written disagree on %x", p)
		}
	})
}

// A snapshot that the manifest contradicts is none of this group's.
func TestSnapshotFollows(t *testing.T) {
	f := func(want bool, change func(*snapshot, *facts)) {
		t.Helper()
		s, m := everySnapshot(), newFacts()
		m.lineage = testLineage
		for id := range s.streams {
			m.streams[id] = streamFacts{admitted: life{2, 4}, applied: entry{kind: entryApplied, life: life{1, 1}, seq: 1, closed: true}}
		}
		m.streams[72] = streamFacts{admitted: life{1, 1}}
		change(s, &m)
		if err := s.follows(testGroup, &m); (err == nil) != want {
			t.Errorf("follows: %v, want %v", err, want)
		}
	}
	f(true, func(*snapshot, *facts) {})
	f(false, func(s *snapshot, _ *facts) { s.group++ })
	f(false, func(s *snapshot, _ *facts) { s.lineage++ })
	f(false, func(_ *snapshot, m *facts) { delete(m.streams, 71) })
	f(false, func(_ *snapshot, m *facts) { m.streams[71] = streamFacts{admitted: life{1, 4}} })
	f(false, func(_ *snapshot, m *facts) { m.streams[70] = streamFacts{admitted: life{2, 2}} })
	f(false, func(_ *snapshot, m *facts) {
		m.streams[71] = streamFacts{admitted: life{2, 1}, applied: entry{kind: entryApplied, life: life{2, 1}, seq: 5, closed: true}}
	})
	f(false, func(_ *snapshot, m *facts) {
		m.streams[71] = streamFacts{admitted: life{2, 1}, applied: entry{kind: entryApplied, life: life{2, 1}, seq: 1}}
	})
}

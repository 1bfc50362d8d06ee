package journal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// sealRecord makes a record of a stream: o and c open and close a resync, w writes, sN is
// the cut of checkpoint N by a lone source, pN by one of several, yN confirms it.
func sealRecord(t *testing.T, stream record.StreamID, seq record.Seq, what string) record.Record {
	t.Helper()
	id := record.Identity{Stream: stream, Epoch: 1, Incarnation: 1, Seq: seq}
	var n uint64
	fmt.Sscan(what[1:], &n)
	ticket, volumes := record.Ticket(seq), []record.VolumeSize{{ID: 1, Bytes: 4096}}
	var p []byte
	switch what[0] {
	case 'o':
		p = record.AppendResyncOpen(nil, id, 1, ticket, record.Resync{Initial: true})
	case 'c':
		p = record.AppendResyncClose(nil, id, 1, ticket, record.Resync{Initial: true})
	case 's', 'p':
		p = record.AppendCut(nil, id, 1, ticket, record.Cut{Checkpoint: n, Wall: 1, Solo: what[0] == 's', Volumes: volumes})
	case 'y':
		p = record.AppendConfirm(nil, id, 1, ticket, n)
	case 'w':
		b := record.NewBatch(record.Limits{})
		b.Add(record.Piece{Volume: 1, Len: 512, Ticket: ticket})
		p = b.Seal(nil, id, 1, record.NewCompressor())
	}
	r, err := record.Parse(p)
	ok(t, err)
	return r
}

// follow gives rows of "stream seq what" to the history, and returns what it lists as
// number@stream=seq, and where the streams stand.
func follow(t *testing.T, h *history, rows string) (listed string, stands string, err error) {
	t.Helper()
	for _, row := range strings.Split(rows, ",") {
		var stream record.StreamID
		var seq record.Seq
		var what string
		if _, scanned := fmt.Sscan(row, &stream, &seq, &what); scanned != nil {
			continue
		}
		if what == "-" { // left out
			h.skip(stream, seq)
			continue
		}
		rec := record.Record{Header: record.Header{Identity: record.Identity{Stream: record.FoldedStream, Seq: seq}, Kind: record.KindFolded}}
		if what != "fold" {
			rec = sealRecord(t, stream, seq, what)
		}
		cp, ok, err := h.follow(rec)
		if err != nil {
			return listed, "", err
		}
		if ok {
			listed += fmt.Sprint(cp.Number, "@")
			for _, a := range cp.At {
				listed += fmt.Sprint(uint64(a.Stream), "=", a.Seq, ";")
			}
			listed += " "
		}
	}
	var ids []record.StreamID
	for id := range h.streams {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		stands += fmt.Sprint(uint64(id), ":", h.streams[id].next-1, " ")
	}
	return strings.TrimSpace(listed), strings.TrimSpace(stands), h.ended()
}

// What the records of a log say, begun with what the manifest states of its beginning.
func TestHistory(t *testing.T) {
	f := func(manifest func(*facts), gaps bool, rows, wantListed, wantStands string, wantErr error) {
		t.Helper()
		m := newFacts()
		for id := record.StreamID(1); id <= 2; id++ {
			m.streams[id] = streamFacts{admitted: life{1, 1}}
		}
		if manifest != nil {
			manifest(&m)
		}
		h := beginning(&m)
		h.gaps = gaps
		listed, stands, err := follow(t, h, rows)
		if !errors.Is(err, wantErr) || err == nil && (listed != wantListed || stands != wantStands) {
			t.Errorf("%s: lists %q, stands %q, %v; want %q, %q, %v", rows, listed, stands, err, wantListed, wantStands, wantErr)
		}
	}
	applied := func(id record.StreamID, seq record.Seq, closed bool) func(*facts) {
		return func(m *facts) {
			s := m.streams[id]
			s.applied = entry{kind: entryApplied, stream: id, life: life{1, 1}, seq: seq, closed: closed}
			m.streams[id] = s
		}
	}
	promotedTo := func(number uint64, at ...record.Seq) func(*facts) {
		return func(m *facts) {
			m.promoted.number = number
			for i, seq := range at {
				m.promoted.at = append(m.promoted.at, index.StreamAt{Stream: record.StreamID(i + 1), Seq: seq})
			}
		}
	}
	f(nil, false, "", "", "1:0 2:0", nil)
	f(nil, false, "1 1 o,1 2 c,1 3 s1,1 4 w,1 5 s2", "1@1=3; 2@1=5;", "1:5 2:0", nil)
	f(nil, false, "1 1 o,1 3 c", "", "", ErrCorrupt)
	f(nil, false, "1 2 o", "", "", ErrCorrupt)
	f(nil, false, "3 1 o", "", "", ErrCorrupt) // never admitted
	f(applied(1, 7, true), false, "1 8 s1", "1@1=8;", "1:8 2:0", nil)
	f(applied(1, 7, true), false, "1 7 s1", "", "", ErrCorrupt)
	f(applied(1, 7, false), false, "", "", "1:7 2:0", nil)
	f(applied(1, 7, false), false, "1 8 s1", "", "", ErrCorrupt) // its sync was never complete

	// The log begins at the promoted checkpoint, or a little before it.
	f(promotedTo(5, 50), false, "1 50 s5,1 51 w,1 52 s6", "5@1=50; 6@1=52;", "1:52 2:0", nil)
	f(promotedTo(5, 50), false, "1 40 s4,1 41 w,1 42 o,1 43 w,1 44 c", "", "", ErrCorrupt) // ends before it
	f(promotedTo(5, 50), false, "1 47 w,1 48 s4,1 49 w,1 50 s5,1 51 s6", "5@1=50; 6@1=51;", "1:51 2:0", nil)
	f(promotedTo(5, 50), false, "1 52 w", "", "", ErrCorrupt)
	f(promotedTo(5, 50), false, "1 48 w,1 50 s5", "", "", ErrCorrupt)
	f(promotedTo(5, 50, 9), false, "2 8 w,2 9 p5,1 50 p5,1 51 y5,2 10 y5,1 52 p6,2 11 p6,1 53 y6,2 12 y6",
		"5@1=50;2=9; 6@1=52;2=11;", "1:53 2:12", nil)
	f(promotedTo(5, 50, 9), false, "1 50 s5,1 51 s6", "5@1=50;2=9; 6@1=51;2=9;", "1:51 2:9", nil) // the other is silent
	f(promotedTo(5, 50, 9), false, "1 50 s5,2 11 w", "", "", ErrCorrupt)

	// In a folded segment streams go on anywhere later, and only there.
	f(nil, true, "1 1 o,1 2 c,1 3 s1,0 9 fold,1 9 s2,1 10 w,1 11 s3", "1@1=3; 2@1=9; 3@1=11;", "1:11 2:0", nil)
	f(nil, true, "1 1 o,1 2 c,1 9 s2,1 11 s3", "2@1=9; 3@1=11;", "1:11 2:0", nil)
	f(nil, true, "1 1 o,1 2 c,1 3 s1,0 9 fold,1 3 s2", "", "", ErrCorrupt)
	f(nil, false, "1 1 o,1 2 c,0 9 fold", "", "", ErrCorrupt)
	f(nil, false, "1 1 o,1 2 c,1 9 s2", "", "", ErrCorrupt)

	// Where records that carry writes are left out, a silent stream's end is still known.
	f(nil, true, "1 1 o,1 2 c,2 1 o,2 2 c,2 3 -,2 4 -,1 3 -,1 4 s1", "1@1=4;2=4;", "1:4 2:2", nil)
}

// A snapshot in the middle of any history goes on as if there had been none.
func TestHistoryResumes(t *testing.T) {
	rows := strings.Split("1 1 o,1 2 c,2 1 o,2 2 w,2 3 c,1 3 p1,2 4 p1,1 4 y1,2 5 y1,1 5 w,2 6 p2,1 6 p2,2 7 y2,1 7 o,1 8 c,1 9 p3,2 8 p3,1 10 y3,2 9 y3", ",")
	m := newFacts()
	m.lineage = testLineage
	for id := record.StreamID(1); id <= 2; id++ {
		m.streams[id] = streamFacts{admitted: life{1, 1}}
	}
	whole := beginning(&m)
	wantListed, wantStands, err := follow(t, whole, strings.Join(rows, ","))
	ok(t, err)
	end := whole.snapshot(testGroup, testLineage, 1000, 0).appendTo(nil)
	for at := range rows {
		h := beginning(&m)
		before, _, err := follow(t, h, strings.Join(rows[:at], ","))
		ok(t, err)
		s, err := parseSnapshot(h.snapshot(testGroup, testLineage, 500, 0).appendTo(nil))
		ok(t, err)
		ok(t, s.follows(testGroup, &m))
		again := beginning(&m)
		again.resume(s)
		after, stands, err := follow(t, again, strings.Join(rows[at:], ","))
		ok(t, err)
		if got := strings.TrimSpace(before + " " + after); got != wantListed || stands != wantStands {
			t.Errorf("resumed at %d: lists %q, stands %q; want %q, %q", at, got, stands, wantListed, wantStands)
		}
		if got := again.snapshot(testGroup, testLineage, 1000, 0).appendTo(nil); !slices.Equal(got, end) {
			t.Errorf("resumed at %d: it ends otherwise", at)
		}
	}
}

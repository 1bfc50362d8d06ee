package journal

import (
	"errors"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Who may append: a table of lives after a life.
func TestAdmitLives(t *testing.T) {
	f := func(before, l life, want error) {
		t.Helper()
		a := newAdmission()
		if err := a.admit(1, before); err != nil {
			t.Fatal(err)
		}
		if err := a.admit(1, l); !errors.Is(err, want) {
			t.Errorf("after %s, %s: %v, want %v", before, l, err, want)
		}
	}
	f(life{2, 5}, life{2, 5}, nil) // the same source comes back
	f(life{2, 5}, life{2, 6}, nil) // it lost its window
	f(life{2, 5}, life{3, 5}, nil) // a new epoch was granted
	f(life{2, 5}, life{2, 4}, ErrFenced)
	f(life{2, 5}, life{1, 5}, ErrFenced)
	f(life{2, 5}, life{1, 9}, ErrFenced)
	f(life{2, 5}, life{3, 4}, ErrFenced) // an old copy of the source that was given an epoch
	f(life{2, 5}, life{0, 5}, ErrAdmit)
	f(life{2, 5}, life{2, 0}, ErrAdmit)
}

// An epoch is the group's: raised by one stream, it fences all.
func TestEpochIsTheGroups(t *testing.T) {
	a := newAdmission()
	ok(t, a.admit(1, life{1, 1}))
	ok(t, a.admit(2, life{2, 1}))
	if err := a.admit(1, life{1, 2}); !errors.Is(err, ErrFenced) {
		t.Errorf("admit below the group's epoch: %v", err)
	}
	r := arrival{Identity: record.Identity{Stream: 1, Epoch: 1, Incarnation: 1, Seq: 1}, kind: record.KindResyncOpen}
	if _, err := a.step(r); !errors.Is(err, ErrFenced) {
		t.Errorf("record below the group's epoch: %v", err)
	}
}

// Which record is next: a table of records after three of life (1, 2).
func TestAdmitRecords(t *testing.T) {
	const sum = 100 // of record seq: sum + seq
	at := func(epoch record.Epoch, inc record.Incarnation, seq record.Seq) record.Identity {
		return record.Identity{Stream: 1, Epoch: epoch, Incarnation: inc, Seq: seq}
	}
	ready := func() *admission {
		a := newAdmission()
		ok(t, a.admit(1, life{1, 2}))
		for seq := record.Seq(1); seq <= 3; seq++ {
			kind := record.KindData
			if seq == 1 {
				kind = record.KindResyncOpen
			}
			if _, err := a.step(arrival{Identity: at(1, 2, seq), kind: kind, sum: sum + uint32(seq)}); err != nil {
				t.Fatal(err)
			}
		}
		return a
	}
	f := func(admit life, id record.Identity, kind record.Kind, recordSum uint32, want verdict, wantErr error) {
		t.Helper()
		a := ready()
		ok(t, a.admit(1, admit))
		before := a.streams[1].mark()
		v, err := a.step(arrival{Identity: id, kind: kind, sum: recordSum})
		if !errors.Is(err, wantErr) || err == nil && v != want {
			t.Errorf("%s admitted, %s %s: %d, %v; want %d, %v", admit, kind, id, v, err, want, wantErr)
		}
		if (err != nil || v == duplicate) && a.streams[1].mark() != before {
			t.Errorf("%s admitted, %s %s: left a trace", admit, kind, id)
		}
	}
	same, next := life{1, 2}, life{1, 3}
	f(same, at(1, 2, 4), record.KindData, 1, toLog, nil)
	f(same, at(1, 2, 4), record.KindResyncOpen, 1, toLog, nil)
	f(same, at(1, 2, 3), record.KindData, sum+3, duplicate, nil)
	f(same, at(1, 2, 1), record.KindResyncOpen, sum+1, duplicate, nil)
	f(same, at(1, 2, 3), record.KindData, sum+4, 0, ErrCorrupt)
	f(same, at(1, 2, 5), record.KindData, 1, 0, ErrGap)
	f(same, at(1, 2, 0), record.KindData, 1, 0, ErrGap)
	f(same, at(1, 1, 4), record.KindData, 1, 0, ErrFenced)
	f(same, at(1, 3, 4), record.KindResyncOpen, 1, 0, ErrAdmit) // not let in yet
	f(same, at(2, 2, 4), record.KindData, 1, 0, ErrAdmit)
	f(next, at(1, 3, 4), record.KindResyncOpen, 1, toLog, nil)
	f(next, at(1, 3, 4), record.KindData, 1, 0, ErrNeedOpen)
	f(next, at(1, 3, 4), record.KindResyncClose, 1, 0, ErrNeedOpen)
	f(next, at(1, 3, 5), record.KindResyncOpen, 1, 0, ErrGap)
	f(next, at(1, 3, 3), record.KindResyncOpen, sum+3, 0, ErrGap) // no duplicate: another life
	f(next, at(1, 2, 4), record.KindData, 1, 0, ErrFenced)
	f(next, at(1, 2, 3), record.KindData, sum+3, 0, ErrFenced)
	f(life{2, 2}, at(2, 2, 4), record.KindResyncOpen, 1, toLog, nil)
	f(life{2, 2}, at(2, 2, 4), record.KindData, 1, 0, ErrNeedOpen)
	f(life{2, 2}, at(1, 2, 4), record.KindData, 1, 0, ErrFenced)

	if _, err := ready().step(arrival{Identity: record.Identity{Stream: 9, Epoch: 1, Incarnation: 1, Seq: 1}}); !errors.Is(err, ErrAdmit) {
		t.Errorf("stream never admitted: %v", err)
	}
}

// A duplicate is compared with what is remembered; one that is older is believed.
func TestOldDuplicate(t *testing.T) {
	a := newAdmission()
	ok(t, a.admit(1, life{1, 1}))
	id := record.Identity{Stream: 1, Epoch: 1, Incarnation: 1}
	for range 2 * recentCount {
		id.Seq++
		if _, err := a.step(arrival{Identity: id, kind: record.KindResyncOpen, sum: uint32(id.Seq)}); err != nil {
			t.Fatal(err)
		}
	}
	f := func(seq record.Seq, sum uint32, want error) {
		t.Helper()
		id.Seq = seq
		if v, err := a.step(arrival{Identity: id, kind: record.KindData, sum: sum}); !errors.Is(err, want) || err == nil && v != duplicate {
			t.Errorf("seq %d, sum %d: %d, %v", seq, sum, v, err)
		}
	}
	f(2*recentCount, 2*recentCount, nil)
	f(2*recentCount, 9, ErrCorrupt)
	f(recentCount+1, recentCount+1, nil)
	f(recentCount+1, 9, ErrCorrupt)
	f(recentCount, 9, nil) // nobody knows it any more
	f(1, 9, nil)
	if sums := a.streams[1].recent.upTo(2*recentCount + 1); len(sums) != recentCount || sums[0] != (sumOf{recentCount + 1, recentCount + 1}) {
		t.Errorf("%d sums are remembered, from %+v on", len(sums), sums[0])
	}
	if sums := a.streams[1].recent.upTo(recentCount + 3); len(sums) != 2 {
		t.Errorf("of the first half %v are remembered", sums)
	}
}

// Where records go: the replica only until the first closing boundary, and only while
// no stream has a log.
func TestPhases(t *testing.T) {
	a := newAdmission()
	for stream := record.StreamID(1); stream <= 3; stream++ {
		ok(t, a.admit(stream, life{1, 1}))
	}
	f := func(stream record.StreamID, seq record.Seq, kind record.Kind, initial bool, want verdict) {
		t.Helper()
		id := record.Identity{Stream: stream, Epoch: 1, Incarnation: 1, Seq: seq}
		if v, err := a.step(arrival{Identity: id, kind: kind, initial: initial}); err != nil || v != want {
			t.Errorf("stream %d, %s %d: %d, %v; want %d", stream, kind, seq, v, err, want)
		}
	}
	f(1, 1, record.KindResyncOpen, true, toReplica)
	f(2, 1, record.KindResyncOpen, true, toReplica)
	f(1, 2, record.KindData, false, toReplica)
	f(1, 3, record.KindResyncClose, true, toReplica)
	f(1, 4, record.KindData, false, toLog)
	f(1, 5, record.KindResyncOpen, true, toLog)
	f(2, 2, record.KindData, false, toReplica)
	f(3, 1, record.KindResyncOpen, true, toLog)
	f(3, 2, record.KindData, false, toLog)
	f(2, 3, record.KindResyncClose, true, toReplica)
	f(2, 4, record.KindData, false, toLog)
}

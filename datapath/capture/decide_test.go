package capture

import (
	"fmt"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestMergeStep(t *testing.T) {
	f := func(what string, m mergeState, want mergeAction) {
		t.Helper()
		if got := mergeStep(m); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	f("the next ticket", mergeState{expected: 5, lowest: 5, state: entryReady}, mergeGive)
	f("our own mark", mergeState{expected: 5, lowest: 5, state: entryMark}, mergeGive)
	f("the first ever, 0 expected", mergeState{lowest: 5, state: entryReady}, mergeLook)
	f("4 is missing", mergeState{expected: 4, lowest: 5, state: entryReady}, mergeLook)
	f("4 is missing before our mark", mergeState{expected: 4, lowest: 5, state: entryMark}, mergeLook)
	f("4 cannot come any more", mergeState{expected: 4, lowest: 5, state: entryReady, closed: 5}, mergeGive)
	f("that was seen for another one", mergeState{expected: 4, lowest: 5, state: entryReady, closed: 6}, mergeLook)
	f("in ticketing", mergeState{expected: 5, lowest: 5, state: entryPending}, mergeWait)
	f("in ticketing and missing", mergeState{expected: 4, lowest: 5, state: entryPending, closed: 5}, mergeWait)
	f("revoked", mergeState{expected: 5, lowest: 5, state: entryStale}, mergeSkip)
	f("discarded", mergeState{expected: 5, lowest: 5, state: entryReady, floor: 6}, mergeDrop)
	f("discarded and late", mergeState{expected: 7, lowest: 5, state: entryReady, floor: 6}, mergeDrop)
	f("at the floor", mergeState{expected: 5, lowest: 5, state: entryReady, floor: 5}, mergeGive)
	f("our mark is never discarded", mergeState{expected: 5, lowest: 5, state: entryMark, floor: 9}, mergeGive)
	f("late", mergeState{expected: 7, lowest: 5, state: entryReady}, mergeLate)
}

func TestEntryState(t *testing.T) {
	f := func(use uint32, slotUse, state uint64, want entryState) {
		t.Helper()
		if got := entryStateOf(use, slotUse<<8|state); got != want {
			t.Errorf("entry of use %d, slot of use %d in state %d: %d, want %d", use, slotUse, state, got, want)
		}
	}
	f(7, 7, slotPublished, entryReady)
	f(7, 1<<32|7, slotPublished, entryReady) // the entry holds the low half
	f(7, 7, slotTicketing, entryPending)
	f(7, 8, slotTicketing, entryStale)
	f(7, 8, slotPublished, entryStale)
	f(7, 7, slotRevoked, entryStale)
	f(7, 7, slotFree, entryStale)
	f(7, 7, slotClaimed, entryStale)
	f(7, 7, slotMember, entryStale)
	f(7, 7, 0, entryStale)
}

func TestHolds(t *testing.T) {
	f := func(number, deadline uint64, now int64, want holdState) {
		t.Helper()
		if got := holds(number, deadline, now); got != want {
			t.Errorf("holds(%d, %d, %d) = %d, want %d", number, deadline, now, got, want)
		}
	}
	f(0, 100, 0, holdNone)
	f(1, 100, 99, holdOn)
	f(1, 100, 100, holdOver)
	f(1, 100, 1000, holdOver)
	f(1, uint64(HoldMost)+5, 5, holdOn)
	f(1, uint64(HoldMost)+6, 5, holdOver) // no VRA sets one so far away
	f(1, 1<<63, 5, holdOver)
}

// TestFlights: who waits for whom. Each step is "name lo hi" to add, "-name" to end one;
// want lists who may run afterwards.
func TestFlights(t *testing.T) {
	var fs flights
	all := map[string]*flight{}
	f := func(step string, want ...string) {
		t.Helper()
		var name string
		var lo, hi int64
		if n, _ := fmt.Sscanf(step, "%s %d %d", &name, &lo, &hi); n == 3 {
			all[name] = &flight{lo: lo, hi: hi, off: lo, end: hi}
			fs.add(all[name])
		} else {
			fs.remove(all[step[1:]])
			delete(all, step[1:])
		}
		var got []string
		for name, f := range all {
			select {
			case <-f.ready:
				got = append(got, name)
			default:
				if f.ready == nil {
					got = append(got, name)
				}
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("after %q: %v may run, want %v", step, got, want)
		}
	}
	f("a 0 8", "a")
	f("b 8 16", "a", "b")       // touches, does not overlap
	f("c 4 12", "a", "b")       // waits for both
	f("d 0 4", "a", "b")        // waits for a
	f("e 20 24", "a", "b", "e") // waits for nobody
	f("-a", "b", "d", "e")
	f("g 5 6", "b", "d", "e") // behind c, which came first
	f("-b", "c", "d", "e")
	f("-c", "d", "e", "g")
	f("-d", "e", "g")
	f("-g", "e")
}

func TestSyncRest(t *testing.T) {
	f := func(out []span, want ...span) {
		t.Helper()
		s := &syncFlight{span: span{10, 20}}
		for _, o := range out {
			s.leaveOut(&flight{off: o.off, end: o.end})
		}
		if got := s.rest(); !slices.Equal(got, want) {
			t.Errorf("[10, 20) without %v: %v, want %v", out, got, want)
		}
	}
	f(nil, span{10, 20})
	f([]span{{0, 10}, {20, 30}}, span{10, 20})
	f([]span{{0, 11}}, span{11, 20})
	f([]span{{15, 16}, {12, 13}}, span{10, 12}, span{13, 15}, span{16, 20})
	f([]span{{12, 18}, {11, 13}, {14, 15}}, span{10, 11}, span{18, 20})
	f([]span{{19, 40}}, span{10, 19})
	f([]span{{0, 40}})
}

// TestStartSync: what captured writes had in flight is left out, what went uncaptured is waited for.
func TestStartSync(t *testing.T) {
	var fs flights
	captured, uncaptured, waiting, after := &flight{lo: 0, hi: 8, off: 2, end: 5}, &flight{lo: 8, hi: 16, off: 8, end: 16},
		&flight{lo: 0, hi: 8, off: 0, end: 8}, &flight{lo: 16, hi: 24, off: 17, end: 18}
	for _, f := range []*flight{captured, uncaptured, waiting, after} {
		fs.add(f)
	}
	fs.start(captured, true)
	fs.start(uncaptured, false)
	s := &syncFlight{span: span{0, 32}}
	if wait := fs.startSync(s); len(wait) != 1 {
		t.Fatalf("waits for %d, want the uncaptured one", len(wait))
	}
	fs.start(after, true)
	fs.remove(uncaptured)
	fs.remove(captured)
	fs.start(waiting, true)
	if got, want := s.rest(), []span{{8, 17}, {18, 32}}; !slices.Equal(got, want) {
		t.Errorf("left: %v, want %v", got, want)
	}
	select {
	case <-uncaptured.gone:
	default:
		t.Error("who waits for the uncaptured one was not told")
	}
	if wait := fs.endSync(s); len(wait) != 2 { // captured has ended; waiting and after have not
		t.Errorf("%d flights left out are under way, want 2", len(wait))
	}
	if got := fs.unsettled(); got != 2 {
		t.Errorf("%d blocks unsettled, want 2", got)
	}
	later := &flight{lo: 24, hi: 32, off: 24, end: 32}
	fs.add(later)
	fs.start(later, true)
	if got := s.rest(); len(got) != 2 {
		t.Errorf("a write after the ticket was left out: %v", got)
	}
}

func TestCanDrop(t *testing.T) {
	f := func(closed, noted bool, note uint64, durable record.Ticket, want bool) {
		t.Helper()
		file := layMarks(make([]byte, marksFileBytes(64)), "", marksIdentity{bytes: 64 * BlockBytes}, nil)
		g := &generation{file: &file.gens[0], closed: closed, noted: noted}
		g.file.note.Store(note)
		if got := canDrop(g, durable); got != want {
			t.Errorf("closed %v, noted %v at %d, durable %d: %v, want %v", closed, noted, note, durable, got, want)
		}
	}
	f(true, true, 7, 7, true)
	f(true, true, 7, 8, true)
	f(true, true, 7, 6, false)
	f(true, false, 0, 9, false) // in flight
	f(false, false, 0, 9, false)
}

// TestMergedGenerations: the joined one is noted only when both are, at the higher ticket.
func TestMergedGenerations(t *testing.T) {
	last := record.Ticket(10)
	file := layMarks(make([]byte, marksFileBytes(64)), "", marksIdentity{bytes: 64 * BlockBytes}, nil)
	for i := range file.gens {
		file.gens[i].state.Store(genFree)
	}
	m, _ := recoverMarks(file, true, func() record.Ticket { return last })
	slow := m.begin(0, 1)
	m.turn()
	last = 20
	fast := m.begin(1, 2)
	m.end(fast)
	m.turn()
	if !m.closed[1].noted || m.closed[1].file.note.Load() != 20 || m.closed[0].noted {
		t.Fatal("before the merge")
	}
	m.closed[0].file.bits.orInto(&m.closed[1].file.bits)
	place := m.merged()
	place.bits.reset()
	g := m.closed[0]
	if len(m.closed) != 1 || g.noted || g.inflight != 1 || g.file.bits.count() != 2 {
		t.Fatalf("merged: %+v", g)
	}
	if canDrop(g, 1000) {
		t.Error("dropped with a write in flight")
	}
	last = 30
	m.end(slow) // it began in the generation that is gone
	if !g.noted || g.file.note.Load() != 30 {
		t.Errorf("noted %v at %d, want 30", g.noted, g.file.note.Load())
	}
}

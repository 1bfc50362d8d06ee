package failover

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/journal/retain"
)

var boot = [16]byte{1}

func at(d time.Duration) retain.Instant {
	return retain.Instant{Boot: boot, Mono: d, Wall: int64(d)}
}

func with(s State) Failover {
	f := Failover{State: s}
	if s != None {
		f = Failover{State: s, ID: "a", Checkpoint: 7, Epoch: 2, View: 3, Timer: time.Hour, Then: Rollback, Left: time.Hour, At: at(0)}
	}
	return f
}

// Every event in every state: what comes of it, or why it is refused.
func TestEveryEvent(t *testing.T) {
	same := State(255)
	other := Begin{ID: "b", Checkpoint: 9, Above: 5, View: 4, Timer: time.Minute, Then: Commit, Now: at(1)}
	table := []struct {
		event Event
		want  [11]State // by state
		errs  [11]error
	}{
		{other, [11]State{Raised, same, same, same, Raised, same, same, same, same, same, same}, [11]error{nil, ErrOther, ErrOther, ErrOther, nil, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{Begin{ID: "a", Checkpoint: 7, Above: 5}, [11]State{Raised, same, same, same, same, same, same, same, same, same, same}, [11]error{}},
		{Begin{ID: "a", Checkpoint: 8, Above: 5}, [11]State{Raised, same, same, same, same, same, same, same, same, same, same}, [11]error{nil, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{Begin{ID: "b", Checkpoint: 9, Above: 5, View: 4, Now: at(1), Ended: []Ended{{ID: "b"}}}, [11]State{same, same, same, same, same, same, same, same, same, same, same},
			[11]error{ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded, ErrEnded}},
		{Kept{}, [11]State{same, Recovering, same, same, same, same, same, same, same, same, same}, [11]error{}},
		{Abandon{}, [11]State{same, RollingBack, RollingBack, same, same, same, same, same, same, same, same}, [11]error{ErrNone, nil, nil, nil, nil, ErrCommitted, ErrCommitted, ErrCommitted, ErrCommitted, ErrCommitted, ErrCommitted}},
		{Abandon{ID: "a"}, [11]State{same, RollingBack, RollingBack, same, same, same, same, same, same, same, same}, [11]error{ErrNone, nil, nil, nil, nil, ErrCommitted, ErrCommitted, ErrCommitted, ErrCommitted, ErrCommitted, ErrCommitted}},
		{Abandon{ID: "b"}, [11]State{same, same, same, same, same, same, same, same, same, same, same}, [11]error{ErrNone, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{Dropped{}, [11]State{same, same, same, RolledBack, same, same, same, same, same, same, same}, [11]error{}},
		{Accept{}, [11]State{same, same, Committed, same, same, same, same, same, same, same, same}, [11]error{ErrNone, ErrNotReady, nil, ErrRolledBack, ErrRolledBack, nil, nil, nil, nil, nil, nil}},
		{Accept{ID: "a"}, [11]State{same, same, Committed, same, same, same, same, same, same, same, same}, [11]error{ErrNone, ErrNotReady, nil, ErrRolledBack, ErrRolledBack, nil, nil, nil, nil, nil, nil}},
		{Accept{ID: "b"}, [11]State{same, same, same, same, same, same, same, same, same, same, same}, [11]error{ErrNone, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{Release{}, [11]State{same, same, same, same, same, same, Released, same, Released, Released, same}, [11]error{ErrNone, ErrNotCommitted, ErrNotCommitted, ErrRolledBack, ErrRolledBack, ErrUnsettled, nil, nil, nil, nil, ErrMoving}},
		{Release{ID: "a"}, [11]State{same, same, same, same, same, same, Released, same, Released, Released, same}, [11]error{ErrNone, ErrNotCommitted, ErrNotCommitted, ErrRolledBack, ErrRolledBack, ErrUnsettled, nil, nil, nil, nil, ErrMoving}},
		{Release{ID: "b"}, [11]State{same, same, same, same, same, same, same, same, same, same, same}, [11]error{ErrNone, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{Verified{}, [11]State{same, same, same, same, same, same, Passing, same, same, same, same}, [11]error{}},
		{MoveOn{}, [11]State{same, same, same, same, same, same, same, same, Moving, same, same},
			[11]error{ErrNone, ErrNotCommitted, ErrNotCommitted, ErrRolledBack, ErrRolledBack, ErrUnsettled, ErrUnsettled, ErrReleased, nil, nil, nil}},
		{MoveOn{ID: "a"}, [11]State{same, same, same, same, same, same, same, same, Moving, same, same},
			[11]error{ErrNone, ErrNotCommitted, ErrNotCommitted, ErrRolledBack, ErrRolledBack, ErrUnsettled, ErrUnsettled, ErrReleased, nil, nil, nil}},
		{MoveOn{ID: "b"}, [11]State{same, same, same, same, same, same, same, same, same, same, same},
			[11]error{ErrNone, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{LetGo{}, [11]State{same, same, same, same, same, same, same, same, OnDisks, same, OnDisks},
			[11]error{ErrNone, ErrNotCommitted, ErrNotCommitted, ErrRolledBack, ErrRolledBack, ErrUnsettled, ErrUnsettled, ErrReleased, nil, nil, nil}},
		{LetGo{ID: "a"}, [11]State{same, same, same, same, same, same, same, same, OnDisks, same, OnDisks},
			[11]error{ErrNone, ErrNotCommitted, ErrNotCommitted, ErrRolledBack, ErrRolledBack, ErrUnsettled, ErrUnsettled, ErrReleased, nil, nil, nil}},
		{LetGo{ID: "b"}, [11]State{same, same, same, same, same, same, same, same, same, same, same},
			[11]error{ErrNone, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther, ErrOther}},
		{Promoted{}, [11]State{same, same, same, same, same, Settled, same, same, same, same, same}, [11]error{}},
		{Passed{Now: at(59 * time.Second)}, [11]State{same, same, same, same, same, same, same, same, same, same, same}, [11]error{}},
		{Passed{Now: at(time.Hour)}, [11]State{same, RollingBack, RollingBack, same, same, same, same, same, same, same, same}, [11]error{}},
	}
	for _, row := range table {
		for s := None; s <= Last; s++ {
			f := with(s)
			next, err := f.Step(row.event)
			want := row.want[s]
			if want == same {
				want = s
			}
			if next.State != want || !errors.Is(err, row.errs[s]) || row.errs[s] == nil && err != nil || want == s && next != f {
				t.Errorf("%+v in %s: %+v, %v; want %s, %v", row.event, s, next, err, want, row.errs[s])
			}
		}
	}
	f, _ := with(RolledBack).Step(other)
	if f != (Failover{State: Raised, ID: "b", Checkpoint: 9, Epoch: 6, View: 4, Timer: time.Minute, Then: Commit, Began: 1, Left: time.Minute, At: at(1)}) {
		t.Errorf("begun: %+v", f)
	}
	f, _ = f.Step(Kept{})
	if f, _ = f.Step(Passed{Now: at(2 * time.Minute)}); f.State != Committed {
		t.Errorf("its time is over: %s", f.State)
	}
	f, _ = with(RollingBack).Step(Dropped{})
	if f.Epoch != 3 {
		t.Errorf("rolled back with epoch %d: a source has none to go on with", f.Epoch)
	}
	f = with(Raised)
	f.Then = Commit
	if f, _ = f.Step(Passed{Now: at(2 * time.Hour)}); f.State != Raised {
		t.Errorf("without disks it was %s", f.State)
	}
}

func TestHolds(t *testing.T) {
	for s := None; s <= Last; s++ {
		gone := s == Released || s == OnDisks
		passes := s == Passing || s == Moving
		merged := s == Settled || passes || gone
		final := s == Committed || merged
		holds := s == Raised || s == Recovering || s == RollingBack || final
		if s.Holds() != holds || s.Fences() != holds || s.Final() != final || s.Shows() != (s == Recovering || final && !gone) || s.Merged() != merged || s.Gone() != gone || s.Passes() != passes || s.Plain() != (passes || gone) {
			t.Errorf("%s: holds %v, fences %v, shows %v", s, s.Holds(), s.Fences(), s.Shows())
		}
	}
	if State(99).String() != "state 99" || Commit.String() != "commit" || Rollback.String() != "rollback" {
		t.Error("names")
	}
}

// No clock that is set, no reboot and no restart ends it early; what passed in one boot counts.
func TestTime(t *testing.T) {
	f := with(Recovering)
	step := func(now retain.Instant) {
		t.Helper()
		next, err := f.Step(Passed{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		f = next
	}
	jump := at(30 * time.Second)
	jump.Wall += int64(1000 * time.Hour)
	step(jump)
	if f.State != Recovering || f.Left != time.Hour {
		t.Fatalf("the wall clock was set: %+v", f)
	}
	step(at(20 * time.Minute))
	if f.Left != 40*time.Minute {
		t.Fatalf("20 minutes on, %s are left", f.Left)
	}
	other := retain.Instant{Boot: [16]byte{2}, Mono: 5 * time.Hour, Wall: int64(5 * time.Hour)}
	step(other) // rebooted
	if f.State != Recovering || f.Left != 40*time.Minute || f.At != other {
		t.Fatalf("after a reboot: %+v", f)
	}
	other.Wall = 0 // set back
	other.Mono += 39 * time.Minute
	step(other)
	if f.State != Recovering || f.LeftAt(other) != time.Minute {
		t.Fatalf("a minute before: %+v", f)
	}
	other.Mono += time.Minute
	step(other)
	if f.State != RollingBack || f.LeftAt(other) != 0 {
		t.Fatalf("its time is over: %+v", f)
	}
	f = with(Recovering)
	f.Timer, f.Left = 0, 0
	step(at(1e6 * time.Hour))
	if f.State != Recovering {
		t.Errorf("without a timer it is %s", f.State)
	}
	if f.At.Boot = [16]byte{}; f.LeftAt(retain.Instant{Mono: time.Hour}) != 0 || certain(retain.Instant{}, retain.Instant{Mono: 1}) != 0 {
		t.Error("a boot that is not known counts")
	}
}

// TestTimeWaitsForTheView: time alone does not make a failover final whose view is amiss; a word, and a rollback, do as ever.
func TestTimeWaitsForTheView(t *testing.T) {
	for then, want := range map[End]State{Commit: Recovering, Rollback: RollingBack} {
		f := Failover{State: Recovering, ID: "a", Timer: time.Hour, Left: time.Hour, Then: then, At: at(0)}
		g, err := f.Step(Passed{Now: at(2 * time.Hour), Amiss: true})
		if err != nil || g.State != want || g.Left != 0 {
			t.Errorf("then %s: %+v, %v", then, g, err)
		}
		if g, _ = g.Step(Passed{Now: at(2 * time.Hour)}); then == Commit && g.State != Committed {
			t.Errorf("the view is there again, and it is %s", g.State)
		}
	}
}

// What is remembered of those that are over is bounded, and the first word on each stands.
func TestNote(t *testing.T) {
	var list []Ended
	for i := range 3 * MaxEnded {
		list = Note(list, Ended{ID: strconv.Itoa(i / 2), By: ByTimer + Ender(i%2)})
	}
	if len(list) != MaxEnded || list[0].ID != strconv.Itoa(MaxEnded/2) {
		t.Errorf("%d are remembered, from %s on", len(list), list[0].ID)
	}
	if e, ok := Find(list, list[5].ID); !ok || e.By != ByTimer {
		t.Errorf("found %+v, %v", e, ok)
	}
	if _, ok := Find(list, "0"); ok {
		t.Error("one of long ago is remembered")
	}
}

package group

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// TestEveryCheckpointIsTheDisk runs a source against a world of faults: every
// checkpoint that is listed must be the disk as it was at its ticket, and when the
// faults stop the group must come back to protected by itself.
func TestEveryCheckpointIsTheDisk(t *testing.T) {
	seen, goneOn := 0, 0
	for seed := range uint64(500) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			seen += runWorld(t, rand.New(rand.NewPCG(seed, 1)), &goneOn)
		})
	}
	if goneOn < 100 {
		t.Errorf("only %d processes went on with what one before them left", goneOn)
	}
	if seen < 4000 {
		t.Errorf("only %d checkpoints were held against the disk", seen)
	}
}

func runWorld(t *testing.T, rng *rand.Rand, goneOn *int) (checkpoints int) {
	w := newWorld(t)
	calm := rng.IntN(2) == 0 // little but deaths of the source
	for range 400 {
		op := rng.IntN(200)
		if calm && op >= 188 && op != 196 && rng.IntN(8) > 0 {
			op = 198
		}
		switch {
		case op == 198 && calm && w.goOn(rng.IntN(3), rng.IntN(2) == 0):
			*goneOn++
		case op < 20:
			w.guest(rng.IntN(6))
		case op < 70:
			w.tap()
		case op < 120:
			w.carry(op%2 == 0)
		case op < 160:
			w.background()
		case op < 180:
			w.tick(time.Duration(rng.IntN(3000)) * time.Millisecond)
		case op < 188:
			w.connect()
		case op < 191: // more than the slots take
			for range 6 {
				w.guest(rng.IntN(6))
			}
		case op < 194:
			w.step(CutAsked{Ask: uint64(w.writes + 1), Tag: "t"})
		case op < 197:
			w.ack()
		case op < 198 && rng.IntN(3) == 0:
			w.step([]Event{GiveWay{}, SpillLost{Reason: "damaged"}}[rng.IntN(2)])
		case op < 198:
			w.cut()
		case op < 199 && rng.IntN(2) == 0:
			w.pause(!w.paused)
		case op < 199 && rng.IntN(4) > 0 && w.goOn(rng.IntN(3), rng.IntN(2) == 0):
			*goneOn++
		case op < 199:
			w.start()
		default:
			if rng.IntN(3) == 0 {
				w.forget(1 + rng.IntN(3))
			}
		}
	}
	w.pause(false)
	for range 60 { // the faults stop
		w.connect()
		for range 4 {
			w.background()
			w.tap()
			w.tap()
			w.carry(true)
			w.carry(true)
		}
		w.ack()
		w.tick(500 * time.Millisecond)
	}
	if s := w.shell.m.Status(); s.State != Protected {
		t.Fatalf("without faults the group is %+v: phase %d, taking %v, dirty %v, queue %d, window %d", s, w.shell.m.phase, w.shell.m.taking, w.dirty, len(w.queue), len(w.shell.window))
	}
	if w.image != w.disk {
		t.Fatalf("the target is %v, the disk %v", w.image, w.disk)
	}
	if len(w.shell.m.asked)+len(w.shell.m.placed) > 0 {
		t.Fatal("a wish was never answered")
	}
	return w.checked
}

// script steps a machine with the events and returns what it did, in words.
func script(m *Machine, now *time.Time, events ...Event) (did []string) {
	for _, e := range events {
		if d, ok := e.(after); ok {
			*now = now.Add(time.Duration(d))
			e = Tick{m.sense}
		}
		for _, a := range m.Step(*now, e) {
			did = append(did, fmt.Sprintf("%T", a)[len("group."):])
		}
	}
	return did
}

// after is time that passes, as an event.
type after time.Duration

func (after) event() {}

func TestStates(t *testing.T) {
	now := time.Unix(1e6, 0)
	m := New(5*time.Second, 1, now)
	f := func(want State, reason string, events ...Event) {
		t.Helper()
		script(m, &now, events...)
		if s := m.Status(); s.State != want || (reason == "") != (s.Reason == "") || reason != "" && !contains(s.Reason, reason) {
			t.Errorf("after %T: %+v, want %s %q", events[len(events)-1], s, want, reason)
		}
	}
	f(Disconnected, "no session", after(0))
	f(Error, "no space", SessionUp{}, Refused{Text: "no space", Retry: 2 * time.Second})
	if did := script(m, &now, after(2*time.Second)); !slices.Contains(did, "OpenStream") {
		t.Errorf("after a refusal it did %v", did)
	}
	f(Error, "no space", Stood{}) // a refusal that is taken back is believed when something is acknowledged
	f(InitialSync, "first", Acked{})
	f(InitialSync, "first", Begun{1})
	f(InitialSync, "it waits: disk", Walked{Life: 1, Trouble: "disk"})
	f(InitialSync, "first", Walked{Life: 1, Left: 5})
	f(InitialSync, "first", Walked{Life: 1}, Taken{Life: 1, Kind: Close, Lost: 3, Before: 3})
	f(InitialSync, "checkpoint", Tick{Sense{Lost: 3}}, Placed{Life: 1, Kind: Close})
	f(InitialSync, "checkpoint", Taken{Life: 1, Kind: Cut, Lost: 3}, Placed{Life: 1, Kind: Cut, Number: 9}, Listed{8})
	f(Protected, "", Listed{9})
	f(Behind, "12.0 s", Tick{Sense{Lost: 3, Lag: 12 * time.Second}})
	f(Behind, "7.0 s", Tick{Sense{Lost: 3, Lag: 7 * time.Second}})
	f(Protected, "", Tick{Sense{Lost: 3, Lag: time.Second}})
	f(Disconnected, "next try in 3 s; the last one ended with: cut", SessionDown{"cut", 2500 * time.Millisecond})
	f(Disconnected, "next try in 1 s; the last one ended with: cut", after(2*time.Second))
	f(Disconnected, "connecting; the last try ended with: cut", after(time.Second))
	f(Disconnected, "connected", SessionUp{})
	f(Disconnected, "cut", SessionDown{Reason: "cut"})
	f(MarksOnly, "cut", Tick{Sense{Lost: 4}})
	f(Error, "gone", Tick{Sense{Lost: 4, Trouble: "filter gone"}})
	f(MarksOnly, "cut", Tick{Sense{Lost: 4}})
	since := m.Status().Since
	f(MarksOnly, "cut", after(time.Minute))
	if m.Status().Since != since {
		t.Error("since moved while the state stayed")
	}
}

func TestVoidCuts(t *testing.T) {
	now := time.Unix(1e6, 0)
	m := New(5*time.Second, 1, now)
	script(m, &now, SessionUp{}, Stood{}, Begun{1}, Walked{Life: 1}, Taken{Life: 1, Kind: Close, Lost: 1, Before: 1}, Tick{Sense{Lost: 1}})
	f := func(want string, events ...Event) {
		t.Helper()
		if got := fmt.Sprint(script(m, &now, events...)); got != want {
			t.Errorf("did %s, want %s", got, want)
		}
	}
	f("[Take]", Placed{Life: 1, Kind: Close})
	f("[Void Take]", Taken{Life: 1, Kind: Cut, Lost: 2}) // the second is the opening boundary's
	f("[Place]", Taken{Life: 1, Kind: Open, Lost: 2})
	f("[Walk]", Placed{Life: 1, Kind: Open})
	f("[]", CutAsked{Ask: 7, Tag: "now"}) // not while the resync is open
	f("[Take]", Walked{Life: 1})
	f("[Void Walk]", Taken{Life: 1, Kind: Close, Lost: 3, Before: 2})
	f("[Take]", Walked{Life: 1})
	f("[Void Walk]", Taken{Life: 1, Kind: Close, Lost: 3, Before: 3, Left: 1})
	f("[Take]", Walked{Life: 1}, Tick{Sense{Lost: 3}})
	f("[Place]", Taken{Life: 1, Kind: Close, Lost: 3, Before: 3})
	f("[Take]", Placed{Life: 1, Kind: Close})
	f("[Void Take]", Taken{Life: 1, Kind: Cut, Lost: 4})
	f("[Place]", Taken{Life: 1, Kind: Open, Lost: 4})
	f("[Walk]", Placed{Life: 1, Kind: Open})
	f("[Take]", Walked{Life: 1})
	f("[Place]", Taken{Life: 1, Kind: Close, Lost: 5, Before: 5}) // more than the last tick knew of
	f("[Take]", Placed{Life: 1, Kind: Close})
	f("[Place]", Taken{Life: 1, Kind: Cut, Lost: 5}) // a cut, not one resync after the other
	f("[]", Placed{Life: 1, Kind: Cut, Number: 5}, Listed{4})
	f("[Take]", Listed{6}) // 5 may be bad: another is taken for who asked
	f("[Place]", Taken{Life: 1, Kind: Cut, Lost: 5})
	f("[]", Placed{Life: 1, Kind: Cut, Number: 7})
	f("[Answer]", Listed{7})
	f("[]", after(4*time.Second))
	f("[Take]", after(1100*time.Millisecond))
	f("[Void]", Taken{Life: 0, Kind: Cut, Lost: 3}) // of an earlier life
}

func TestWhereTheTargetStands(t *testing.T) {
	f := func(s Stood, want Begin) {
		t.Helper()
		now := time.Unix(1e6, 0)
		m := New(time.Second, 9, now)
		m.Step(now, SessionUp{})
		as := m.Step(now, s)
		b, ok := as[0].(Begin)
		b.Reason = ""
		want.Life, want.Incarnation = 1, 9
		if !ok || b != want || as[1] != (Resume{From: want.Next}) {
			t.Errorf("%+v gives %+v, want %+v", s, as, want)
		}
	}
	f(Stood{}, Begin{Next: 1, MarkAll: true, Initial: true})
	f(Stood{Acked: 5}, Begin{Next: 1, MarkAll: true, Initial: true})
	f(Stood{Durable: 7, Incarnation: 8, Acked: 6}, Begin{Next: 8})
	f(Stood{Durable: 7, Incarnation: 8, Acked: 7, Unfinished: true}, Begin{Next: 8, Initial: true})
	f(Stood{Durable: 7, Incarnation: 8, Acked: 8}, Begin{Next: 8, MarkAll: true})
	f(Stood{Durable: 7, Incarnation: 8, MarksNew: true}, Begin{Next: 8, MarkUnknown: true})
	f(Stood{Durable: 7, Incarnation: 8, Acked: 8, MarksNew: true}, Begin{Next: 8, MarkAll: true})
}

func TestReconnect(t *testing.T) {
	f := func(want string, s Stood) {
		t.Helper()
		now := time.Unix(1e6, 0)
		m := New(time.Second, 9, now)
		script(m, &now, SessionUp{}, Stood{Durable: 10, Incarnation: 8, Acked: 10}, Begun{1}, SessionDown{Reason: "cut"}, SessionUp{})
		if got := fmt.Sprint(script(m, &now, s)); got != want {
			t.Errorf("%+v: did %s, want %s", s, got, want)
		}
	}
	f("[Resume]", Stood{Durable: 10, Incarnation: 8, Acked: 10, Sealed: 20})
	f("[Resume]", Stood{Durable: 15, Incarnation: 9, Acked: 12, Sealed: 20})
	f("[Draw]", Stood{Durable: 11, Incarnation: 9, Acked: 12, Sealed: 20})
	f("[]", Stood{Durable: 15, Incarnation: 10, Acked: 12, Sealed: 20})
	f("[]", Stood{Durable: 21, Incarnation: 9, Acked: 12, Sealed: 20})
}

// A life that is gone on with ends where the target has more of it than was kept; what had changed is read again, and the reason says so.
func TestKeptIsShort(t *testing.T) {
	f := func(want string, s Stood) {
		t.Helper()
		now := time.Unix(1e6, 0)
		m := New(time.Second, 9, now)
		m.Step(now, Kept{OpensAt: 11, Since: 12})
		m.Step(now, SessionUp{})
		if got := fmt.Sprint(script(m, &now, s)); got != want {
			t.Errorf("%+v: did %s, want %s", s, got, want)
		}
		if want != "[Draw OpenStream]" && want != "[Draw]" {
			return
		}
		m.Step(now, Drawn{Life: m.Life(), Incarnation: 10})
		as := m.Step(now, Stood{Durable: 21, Incarnation: 9, Acked: 12})
		b, ok := as[0].(Begin)
		if !ok || b.Next != 22 || b.MarkAll || b.Reason != "the source restarted, and what it kept ends before what the target has" {
			t.Errorf("then it gives %+v", as)
		}
	}
	f("[Resume]", Stood{Durable: 20, Incarnation: 9, Acked: 12, Sealed: 20})
	f("[Draw]", Stood{Durable: 21, Incarnation: 9, Acked: 12, Sealed: 20})
}

// A cut says that the guests were at rest only where its ticket was taken meanwhile.
func TestFreeze(t *testing.T) {
	now := time.Unix(1e6, 0)
	m := New(time.Minute, 1, now)
	script(m, &now, SessionUp{}, Stood{}, Begun{1}, Walked{Life: 1}, Taken{Life: 1, Kind: Close}, Placed{Life: 1, Kind: Close},
		Taken{Life: 1, Kind: Cut}, Placed{Life: 1, Kind: Cut, Number: 5}, Listed{5})
	frozen := func(id uint64) CutAsked { return CutAsked{Ask: id, Tag: "f", Freeze: record.Frozen} }
	f := func(want record.Freeze, ask uint64, events ...Event) {
		t.Helper()
		for _, e := range events[:len(events)-1] {
			m.Step(now, e)
		}
		as := m.Step(now, events[len(events)-1])
		if p, ok := as[0].(Place); !ok || p.Freeze != want || p.Ask != ask {
			t.Errorf("%+v, want freeze %d of wish %d", as, want, ask)
		}
	}
	cut := Taken{Life: 1, Kind: Cut}
	f(record.Frozen, 1, frozen(1), cut)
	m.Step(now, Placed{Life: 1, Kind: Cut, Number: 6})
	f(record.FreezeFailed, 1, Listed{7}, cut) // another, since 6 is bad: that is after the thaw
	m.Step(now, Placed{Life: 1, Kind: Cut, Number: 8})
	m.Step(now, frozen(2))
	f(record.FreezeFailed, 2, CutThawed{2}, cut)
	m.Step(now, Placed{Life: 1, Kind: Cut, Number: 9})
	f(record.Frozen, 3, frozen(3), frozen(4), CutThawed{4}, cut)
	f(record.FreezeFailed, 4, Placed{Life: 1, Kind: Cut, Number: 10}, cut)
	m.Step(now, Placed{Life: 1, Kind: Cut, Number: 11})
	f(record.NotAsked, 5, CutAsked{Ask: 5, Tag: "x"}, CutThawed{5}, cut)
}

// A group that is paused sends nothing, says so whatever else is true, and begins anew from
// its marks when it is resumed. It waits for an answer that is under way, which is of this life.
func TestPause(t *testing.T) {
	now := time.Unix(1e6, 0)
	var m *Machine
	f := func(want string, state State, reason string, events ...Event) {
		t.Helper()
		got := fmt.Sprint(script(m, &now, events...))
		if s := m.Status(); got != want || s.State != state || reason != "" && !contains(s.Reason, reason) {
			t.Errorf("did %s, want %s; %+v", got, want, s)
		}
	}
	live := func() {
		m = New(time.Second, 9, now)
		script(m, &now, SessionUp{}, Stood{Durable: 10, Incarnation: 8, Acked: 10}, Begun{1}, Walked{Life: 1}, Taken{Life: 1, Kind: Close},
			Placed{Life: 1, Kind: Close}, Taken{Life: 1, Kind: Cut}, Placed{Life: 1, Kind: Cut, Number: 12}, Listed{12})
	}
	stood := Stood{Durable: 20, Incarnation: 9, Acked: 20, Sealed: 30}
	live()
	f("[CloseStream Draw]", Paused, "somebody", Pause{})
	f("[]", Paused, "", Drawn{2, 10}, after(time.Minute), GiveWay{}, SessionDown{Reason: "cut"}, Tick{Sense{Lost: 7, Trouble: "filter gone"}}, SessionUp{})
	f("[OpenStream]", Disconnected, "", Tick{Sense{}}, Unpause{})
	f("[]", Disconnected, "", Unpause{})
	f("[]", Paused, "", Pause{})
	f("[CloseStream]", Paused, "", stood) // nothing of this life is there yet
	f("[OpenStream Begin Resume]", Resync, "it was paused", Unpause{}, stood)
	f("[CloseStream Draw]", Paused, "", Pause{})

	live()
	f("[OpenStream]", Protected, "", Retell{})
	f("[]", Protected, "", GiveWay{})
	f("[]", Paused, "", Pause{}, after(time.Second)) // what the target answers is of this life
	f("[Resume CloseStream Draw]", Paused, "", stood)

	live()
	f("[]", Disconnected, "", SessionDown{Reason: "cut"}, Retell{})
	f("[OpenStream Resume]", Protected, "", SessionUp{}, stood) // that told the volumes
	f("[OpenStream]", Protected, "", Retell{})
	f("[]", Protected, "", Retell{})
	f("[Resume OpenStream]", Protected, "", stood) // those that came after it was asked
	f("[Resume]", Protected, "", stood)
	f("[Take]", Resync, "sent again", Forced{}, Tick{Sense{Lost: 1}})
}

func contains(s, part string) bool {
	for i := range s {
		if len(s)-i >= len(part) && s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

// trial holds a machine to what it does and says, and makes it anew one of a group that is protected.
func trial(t *testing.T, m *Machine, now *time.Time, interval time.Duration) (f func(want string, state State, reason string, events ...Event), protected func()) {
	f = func(want string, state State, reason string, events ...Event) {
		t.Helper()
		got := fmt.Sprint(script(m, now, events...))
		if s := m.Status(); got != want || s.State != state || reason != "" && !contains(s.Reason, reason) {
			t.Errorf("did %s, want %s; %+v", got, want, s)
		}
	}
	return f, func() {
		t.Helper()
		*m = *New(interval, 9, *now)
		script(m, now, SessionUp{}, Stood{Durable: 10, Incarnation: 8, Acked: 10}, Acked{}, Begun{1}, Walked{Life: 1}, Taken{Life: 1, Kind: Close},
			Placed{Life: 1, Kind: Close}, Taken{Life: 1, Kind: Cut}, Placed{Life: 1, Kind: Cut, Number: 12})
		f("[]", Protected, "", Listed{12})
	}
}

// A group that gives way begins anew from its marks, nothing more, and says why, whether
// there is a target or not. While it is asked where it stands, or has nothing, it does not.
func TestGiveWay(t *testing.T) {
	now, m := time.Unix(1e6, 0), new(Machine)
	f, protected := trial(t, m, &now, time.Second)
	stood := Stood{Durable: 20, Incarnation: 9, Acked: 20, Sealed: 30}

	protected()
	f("[]", Disconnected, "cut", SessionDown{Reason: "cut"})
	f("[Draw]", MarksOnly, "with: cut", GiveWay{})
	f("[]", MarksOnly, "with: cut", GiveWay{})
	f("[]", MarksOnly, "", Drawn{2, 10})
	f("[OpenStream]", MarksOnly, "higher priority: connected", SessionUp{})
	f("[]", MarksOnly, "", GiveWay{})
	for _, a := range m.Step(now, stood) {
		if b, ok := a.(Begin); ok && (b.MarkAll || b.Initial || b.Next != 21 || b.Incarnation != 10 || b.Life != 3) {
			t.Errorf("%+v", b)
		}
	}
	f("[]", Resync, "higher priority")
	f("[]", Resync, "", GiveWay{}) // nothing is in its window yet

	protected()
	f("[Draw]", MarksOnly, "higher priority", GiveWay{})
	f("[OpenStream]", MarksOnly, "", Drawn{2, 10})
	f("[Begin Resume]", Resync, "higher priority", stood)
	f("[Walk]", Resync, "higher priority", Begun{3})
	f("[Draw]", MarksOnly, "higher priority", GiveWay{})                             // a resync gives way too
	f("[Void]", MarksOnly, "", Begun{3}, Walked{Life: 3}, Taken{Life: 1, Kind: Cut}) // of before
}

// A source that is fenced gives up what it holds, asks now and then and begins nothing; what it is
// granted begins a new life, in whatever state that finds it.
func TestStandby(t *testing.T) {
	now := time.Unix(1e6, 0)
	var m *Machine
	f := func(want string, state State, reason string, events ...Event) {
		t.Helper()
		got := fmt.Sprint(script(m, &now, events...))
		if s := m.Status(); got != want || s.State != state || reason != "" && !contains(s.Reason, reason) {
			t.Errorf("did %s, want %s; %+v", got, want, s)
		}
	}
	live := func() {
		m = New(time.Second, 9, now)
		script(m, &now, SessionUp{}, Stood{Durable: 10, Incarnation: 8, Acked: 10}, Begun{1}, Walked{Life: 1}, Taken{Life: 1, Kind: Close},
			Placed{Life: 1, Kind: Close}, Taken{Life: 1, Kind: Cut}, Placed{Life: 1, Kind: Cut, Number: 12}, Listed{12})
	}
	fenced := Refused{Text: "a live failover", Retry: 10 * time.Second, Fenced: true}
	stood := Stood{Durable: 20, Incarnation: 9, Acked: 20, Sealed: 30}
	live()
	f("[Draw]", Standby, "a live failover", fenced)
	f("[]", Standby, "", Drawn{2, 10}, after(9*time.Second), GiveWay{}, Tick{Sense{Lost: 7, Trouble: "filter gone"}})
	f("[OpenStream]", Standby, "", after(time.Second))
	f("[]", Standby, "", fenced, SessionDown{Reason: "cut"}, after(time.Hour))
	f("[OpenStream]", Standby, "", SessionUp{})
	f("[]", Standby, "", Refused{Text: "no space", Retry: time.Second})
	f("[OpenStream]", Standby, "", after(time.Second))
	f("[OpenStream]", Disconnected, "asked where", Tick{Sense{}}, Granted{})
	f("[Begin Resume]", Resync, "rolled back", stood)
	f("[]", Resync, "", after(time.Hour))

	live()
	f("[OpenStream]", Disconnected, "", SessionDown{Reason: "cut"}, SessionUp{}) // it was away all the time
	f("[Draw]", Disconnected, "", Granted{})
	f("[OpenStream]", Disconnected, "", Drawn{2, 10})
	f("[Begin Resume]", Resync, "rolled back", stood)

	// One that was outdrawn draws far above when it is time to ask again.
	outdrawn := Refused{Text: "a later life", Retry: time.Second, Outdrawn: true}
	live()
	f("[]", Error, "a later life", outdrawn, after(time.Second/2))
	f("[Draw]", Error, "a later life", after(time.Second))
	f("[OpenStream]", Error, "", Drawn{2, 5000})
	f("[Begin Resume]", Resync, "later incarnation", stood)

	// One that is refused because of what another one sent is let in once it is adopted, also in the middle of its life,
	// and whether the target is being asked or not.
	foreign := Stood{Durable: 20, Incarnation: 77, Foreign: true}
	live()
	f("[OpenStream]", Error, "group adopt", SessionDown{Reason: "cut"}, SessionUp{}, foreign)
	f("[Draw]", Error, "", Adopted{})
	f("[OpenStream]", Error, "", Drawn{2, 10})
	f("[Begin Resume]", Resync, "adopted", stood)
	live()
	f("[OpenStream OpenStream Take]", Error, "", SessionDown{Reason: "cut"}, SessionUp{}, foreign, after(10*time.Second))
	f("[]", Error, "", Adopted{})
	f("[Draw]", Error, "", Stood{Durable: 20, Incarnation: 77, Acked: 20})
	f("[OpenStream]", Error, "", Drawn{2, 10})
	f("[Begin Resume]", Resync, "adopted", stood)

	live()
	f("[Draw]", Standby, "", fenced)
	f("[OpenStream]", Standby, "", Drawn{2, 10}, after(10*time.Second))
	f("[Begin Resume]", Resync, "rolled back", stood) // it never came to a failover

	live()
	f("[CloseStream Draw]", Paused, "", Pause{}, fenced)
	f("[]", Paused, "", Drawn{2, 10}, Granted{})
}

// What the target holds of an incarnation that was never drawn here is another VRA's: nothing begins,
// nothing goes on, and it is asked again now and then.
func TestForeign(t *testing.T) {
	now := time.Unix(1e6, 0)
	m := New(time.Second, 9, now)
	foreign := Stood{Durable: 10, Incarnation: 12, Acked: 8, Foreign: true}
	if did := script(m, &now, SessionUp{}, foreign); fmt.Sprint(did) != "[OpenStream]" || m.Status().State != Error || !contains(m.Status().Reason, "clone") {
		t.Errorf("did %v, %+v", did, m.Status())
	}
	if did := script(m, &now, after(10*time.Second)); fmt.Sprint(did) != "[OpenStream]" {
		t.Errorf("later it did %v", did)
	}
	if did := script(m, &now, Stood{Durable: 10, Incarnation: 8, Acked: 10}, Begun{1}, SessionDown{Reason: "cut"}, SessionUp{}, foreign); fmt.Sprint(did) != "[Begin Resume Walk OpenStream]" || m.Status().State != Error {
		t.Errorf("in the middle it did %v, %+v", did, m.Status())
	}
}

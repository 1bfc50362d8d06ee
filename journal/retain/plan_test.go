package retain

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// cp is a checkpoint of the tests' world.
type cp struct {
	number       uint64
	at           time.Duration
	bytes        int64 // of the log up to the next one
	good, pinned bool
}

type list []cp

func (l list) Newest(number uint64) (any, good uint64) {
	for _, c := range l {
		if c.number <= number {
			any = c.number
			if c.good {
				good = c.number
			}
		}
	}
	return any, good
}

func (l list) Next(number uint64) (any, good uint64) {
	for _, c := range l {
		if c.number > number && any == 0 {
			any = c.number
		}
		if c.number > number && c.good && good == 0 {
			good = c.number
		}
	}
	return any, good
}

// parse reads checkpoints as "number@minutes", with ! for bad and * for pinned.
func parse(t *testing.T, text string) (l list, a *Ages) {
	t.Helper()
	a = new(Ages)
	for _, f := range strings.Fields(text) {
		var c cp
		var minutes int
		if _, err := fmt.Sscanf(f, "%d@%d", &c.number, &minutes); err != nil {
			t.Fatalf("%q: %v", f, err)
		}
		c.at, c.good, c.pinned = time.Duration(minutes)*time.Minute, !strings.Contains(f, "!"), strings.Contains(f, "*")
		l = append(l, c)
		a.Note(c.at, c.number, nil)
	}
	return l, a
}

func (l list) pinned() uint64 {
	for _, c := range l {
		if c.pinned {
			return c.number
		}
	}
	return 0
}

func TestPlan(t *testing.T) {
	f := func(what, have string, now time.Duration, change func(*State), want string) {
		t.Helper()
		l, ages := parse(t, have)
		s := State{Policy: Policy{History: time.Hour, Limit: 100, WarnPercent: 75}, Now: now, Ages: ages, Checkpoints: l,
			Listed: ^uint64(0), Pinned: l.pinned()}
		if change != nil {
			change(&s)
		}
		d := Plan(s)
		got := fmt.Sprintf("%d", d.Promote)
		if d.Yield {
			got += " yield"
		}
		if d.Level != Plenty {
			got += " " + d.Level.String()
		}
		if d.Stop != (d.Level == Stopped) || (d.Level == Plenty) != (d.Reason == "") {
			t.Errorf("%s: %+v", what, d)
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%s)", what, got, want, d.Reason)
		}
	}
	full := func(s *State) { s.Used = 100 }
	tight := func(s *State) { s.Used, s.Slack = 90, 10 }
	f("nothing there", "", time.Hour, nil, "0")
	f("all is young", "1@0 2@30 3@59", time.Hour, nil, "0")
	f("a clock that has just begun", "1@0 2@30", 31*time.Minute, nil, "0")
	f("over age, not by enough for a pass", "1@0 2@30 3@59", 61*time.Minute-1, nil, "0")
	f("the newest over age is where history begins", "1@0 2@1 3@2 4@50", 62*time.Minute, nil, "3")
	f("the last good one stays whatever its age", "1@0 2@1 3@2!", 10*time.Hour, nil, "2")
	f("a bad one is no beginning", "1@0 2@1! 3@30", 62*time.Minute, nil, "1")
	f("no good one is lost by beginning at a bad one", "1@0! 2@1! 3@30", 62*time.Minute, nil, "2")
	f("a pin", "1@0 2@1* 3@2 4@50", 62*time.Minute, nil, "2")
	f("the promotion limit", "1@0 2@1 3@2 4@50", 62*time.Minute, func(s *State) { s.Listed = 1 }, "1")
	f("a test view", "1@0 2@1 3@2 4@50", 62*time.Minute, func(s *State) { s.TestView = 2 }, "2")
	f("a view in use", "1@0 2@1 3@2 4@50", 62*time.Minute, func(s *State) { s.LiveView = 1 }, "1")
	f("stuck is said", "1@0 2@1 3@2 4@50", 62*time.Minute, func(s *State) { s.Stuck = "a sync failed" }, "0 warning")
	f("done already", "2@1 3@62", 62*time.Minute, func(s *State) { s.Gone, s.Base = 2, 2 }, "0")
	f("a pass that was begun", "2@1 3@2 4@3", 4*time.Minute, func(s *State) { s.Gone = 2 }, "2")

	held := func(s *State) { s.Held = "a failover" }
	f("held: nothing goes", "1@0 2@1 3@2 4@50", 62*time.Minute, held, "0")
	f("held: nor when it is tight", "1@0 2@1 3@30", 61*time.Minute, func(s *State) { held(s); tight(s) }, "0 shortened")
	f("held: test views give way", "1@0 2@1 3@30", 61*time.Minute, func(s *State) { held(s); tight(s); s.TestView = 3 }, "0 yield shortened")
	f("held: a pass that was begun is finished", "2@1 3@2 4@3", 10*time.Hour, func(s *State) { held(s); s.Gone = 2 }, "2")

	f("warning", "1@0 2@30", time.Hour, func(s *State) { s.Used = 75 }, "0 warning")
	f("below it", "1@0 2@30", time.Hour, func(s *State) { s.Used = 74 }, "0")
	f("tight: what is over age goes first", "1@0 2@1 3@30", 61*time.Minute, func(s *State) { tight(s); s.TestView = 3 }, "2 shortened")
	f("tight: then test views", "1@0 2@10 3@30", 31*time.Minute, func(s *State) { tight(s); s.TestView = 3 }, "0 yield shortened")
	f("tight: then history, by one", "1@0 2@10 3@30", 31*time.Minute, tight, "1 shortened")
	f("and by the next", "1@0 2@10 3@30", 31*time.Minute, func(s *State) { tight(s); s.Gone, s.Base = 1, 1 }, "2 shortened")
	f("a sixteenth", "1@0 2@1 3@2 4@3 5@4 9@32", 32*time.Minute, func(s *State) { tight(s); s.Gone, s.Base = 1, 1 }, "3 shortened")
	f("never past a view in use", "1@0 2@10 3@30", 31*time.Minute, func(s *State) { tight(s); s.LiveView, s.Gone, s.Base = 1, 1, 1 }, "0 shortened")
	f("nor a pin", "1@0 2@10* 3@30", 31*time.Minute, func(s *State) { full(s); s.Gone, s.Base = 2, 2 }, "0 stopped")
	f("full: history goes, and intake waits for it", "1@0 2@10 3@30", 31*time.Minute, full, "1 stopped")
	f("down to the last good one", "1@0 2@10 3@30!", 31*time.Minute, func(s *State) { full(s); s.Gone, s.Base = 2, 2 }, "0 stopped")
	f("down to the minimum", "1@0 2@10 3@30", 31*time.Minute,
		func(s *State) { full(s); s.Gone, s.Base, s.Policy.Minimum = 1, 1, 25*time.Minute }, "0 stopped")
	f("a minimum longer than there is history", "1@0 2@10 3@30", 31*time.Minute,
		func(s *State) { full(s); s.Policy.Minimum = time.Hour }, "0 stopped")
	f("the disk is full", "1@0 2@10", 31*time.Minute, func(s *State) { s.Full, s.Policy.Limit = true, 0 }, "1 stopped")
	f("the disk is almost full", "1@0 2@10", 31*time.Minute, func(s *State) { s.Short, s.Policy.Limit = true, 0 }, "1 shortened")
}

// What holds the space is said in one line, with what there is and what is to be done.
func TestReasons(t *testing.T) {
	l, ages := parse(t, "1@0 2@1 3@90")
	f := func(level Level, reason string, change func(*State)) {
		t.Helper()
		s := State{Policy: Policy{History: MinHistory, WarnPercent: 75}, Ages: ages, Checkpoints: l, Listed: 3, Now: 3 * time.Hour}
		change(&s)
		if d := Plan(s); d.Level != level || d.Reason != reason || s.Unread != "" && d.Promote != 0 {
			t.Errorf("%+v, want %s %q", d, level, reason)
		}
	}
	f(Shortened, "the disk is almost full: 100.0 MiB are free, 576.0 MiB are wanted; history is being shortened",
		func(s *State) { s.Short, s.Free, s.Wanted = true, 100<<20, 576<<20 })
	f(Stopped, "no data is taken: the disk is full: 0 B are free, 576.0 MiB are wanted; history is being shortened",
		func(s *State) { s.Full, s.Wanted = true, 576<<20 })
	f(Stopped, "no data is taken: the disk is full; nothing more can be given up: a failover", func(s *State) { s.Held, s.Full = "a failover", true })
	const unread = "nobody knows where view v3 stands: holdfast view close v3"
	f(Warning, "history is not shortened: "+unread, func(s *State) { s.Unread = unread })
	f(Stopped, "no data is taken: the disk is full; nothing more can be given up: "+unread, func(s *State) { s.Unread, s.Full = unread, true })
}

// Whatever comes, a group that takes data and carries its plans out loses no pinned
// checkpoint, none that a view stands at, not the last good one, nothing inside the
// minimum and, while there is space, nothing inside the history; and it gets below its
// limit, or stops and nothing is left to give up.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{History: MinHistory, Limit: rapid.Int64Range(20, 400).Draw(t, "limit"), WarnPercent: 75,
			Minimum: time.Duration(rapid.IntRange(0, 60).Draw(t, "minimum")) * time.Minute}
		var l list
		ages := new(Ages)
		var now time.Duration
		var base, view uint64
		test := false
		used := func() (n int64) {
			for _, c := range l {
				n += c.bytes
			}
			return n
		}
		state := func() State {
			s := State{Policy: p, Used: used(), Slack: 10, Now: now, Ages: ages, Checkpoints: l, Gone: base, Base: base,
				Listed: ^uint64(0), Pinned: l.pinned()}
			if test {
				s.TestView = view
			} else {
				s.LiveView = view
			}
			return s
		}
		carryOut := func() {
			most := 2*len(l) + 4
			for round := 0; ; round++ {
				if round > most {
					t.Fatalf("plans without end at %s", now)
				}
				s := state()
				d := Plan(s)
				if d.Yield {
					if !test || view == 0 {
						t.Fatal("yields what is no test view")
					}
					view = 0
					continue
				}
				if d.Promote == 0 {
					if ceiling, _ := s.ceiling(); s.tight() && !d.Stop && used() >= p.Limit || s.stopped() && !d.Stop {
						t.Fatalf("full at %d and takes more", ceiling)
					} else if _, next := l.Next(base); d.Stop && next != 0 && next <= ceiling {
						t.Fatalf("stopped while checkpoint %d may go", next)
					}
					return
				}
				if d.Promote <= base {
					t.Fatalf("promotes to %d again", d.Promote)
				}
				var rest list
				good := false
				for _, c := range l {
					if c.number >= d.Promote {
						good = good || c.good
						rest = append(rest, c)
						continue
					}
					if c.pinned || c.number == view {
						t.Fatalf("checkpoint %d is in use and goes", c.number)
					}
					if age := now - c.at; !s.tight() && age < p.History || age < p.Minimum {
						t.Fatalf("checkpoint %d goes at an age of %s", c.number, age)
					}
				}
				if _, had := l.Newest(^uint64(0)); had != 0 && !good {
					t.Fatal("no good checkpoint is left")
				}
				if len(rest) == 0 || rest[0].number != d.Promote {
					t.Fatalf("promotes to %d, which is not there", d.Promote)
				}
				// Of a bad history's beginning nothing younger than the minimum may be missing either.
				if m := p.Minimum; m > 0 && (now < m || rest[0].at > now-m) {
					t.Fatalf("history begins at %s of %s", rest[0].at, now)
				}
				l, base = rest, d.Promote
				ages.Forget(base)
			}
		}
		number := uint64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			default:
				now += time.Duration(rapid.IntRange(0, 15).Draw(t, "minutes")) * time.Minute
				number += uint64(rapid.IntRange(1, 3).Draw(t, "number"))
				l = append(l, cp{number: number, at: now, bytes: rapid.Int64Range(0, 40).Draw(t, "bytes"), good: rapid.IntRange(0, 4).Draw(t, "bad") > 0})
				ages.Note(now, number, nil)
			case 0:
				if len(l) > 0 {
					l[rapid.IntRange(0, len(l)-1).Draw(t, "pin")].pinned = rapid.Bool().Draw(t, "pinned")
				}
			case 1:
				view, test = 0, rapid.Bool().Draw(t, "test")
				if len(l) > 0 && rapid.Bool().Draw(t, "open") {
					view = l[rapid.IntRange(0, len(l)-1).Draw(t, "view")].number
				}
			}
			carryOut()
		}
	})
}

package regions

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func set(n int, rs ...int) Set {
	s := NewSet(n)
	for _, r := range rs {
		s.Add(r)
	}
	return s
}

func (s Set) list() (rs []int) {
	s.Each(func(r int) { rs = append(rs, r) })
	return rs
}

// TestSteps runs scripts. enter A-B, take, left (take though nothing is wanted), done, fail, goon, back R..., tick N,
// idle [busy R...], leave (those); what each answers follows after "=".
func TestSteps(t *testing.T) {
	f := func(script string) {
		t.Helper()
		l := New(10, 3, NewSet(10), On)
		var idle []int
		for _, line := range strings.Split(script, ";") {
			what, want, _ := strings.Cut(strings.TrimSpace(line), "=")
			word := strings.Fields(what)
			var ns []int
			for _, w := range word[1:] {
				var n int
				if _, err := fmt.Sscan(w, &n); err != nil {
					t.Fatal(err)
				}
				ns = append(ns, n)
			}
			got := ""
			switch word[0] {
			case "enter":
				got = []string{"goes", "goes on", "waits"}[l.Enter(ns[0], ns[1]+1)]
			case "take", "left":
				if s, ok := l.Take(word[0] == "left"); ok {
					got = fmt.Sprint(s.list())
				} else {
					got = "none"
				}
			case "done":
				l.Done(true)
			case "fail":
				l.Fail()
			case "broken":
				l.Done(false)
			case "gone":
				l.Gone()
			case "goon":
				l.GoOn()
			case "back":
				l.Back(set(10, ns...))
			case "tick":
				for range ns[0] {
					l.Tick()
				}
			case "idle":
				idle = l.Idle(nil, func(r int) bool { return slices.Contains(ns, r) })
				got = fmt.Sprint(idle)
			case "leave":
				l.Leave(idle)
			case "logged":
				got = fmt.Sprint(l.Logged().list())
			case "state":
				got = []string{"on", "late", "off"}[l.State()]
			case "wanted":
				got = fmt.Sprint(l.Wanted(ns[0], ns[1]+1))
			default:
				t.Fatal(word)
			}
			if got != strings.TrimSpace(want) {
				t.Errorf("%s\n%s: %q, want %q", script, what, got, want)
			}
		}
	}
	f("take = none; enter 1 1 = waits; take = [0 1 2 3]; done; enter 3 3 = goes; take = none")
	f("enter 9 9 = waits; take = [8 9]; enter 8 8 = waits; wanted 8 8 = false; enter 0 0 = waits; wanted 0 0 = true; take = none; done; enter 8 9 = goes; take = [0 1 2 3 8 9]")
	f("enter 0 9 = waits; take = [0 1 2 3 4 5 6 7 8 9]; done; enter 0 9 = goes")
	// Late: nobody waits, and what comes is logged all the same.
	f("goon; state = on; enter 0 0 = waits; goon; state = late; enter 5 5 = goes on; take = [0 1 2 3 4 5 6 7]; enter 9 9 = goes on; done; state = late; take = [0 1 2 3 4 5 6 7 8 9]; done; state = on")
	// Off: what is written to is remembered for the next file.
	f("enter 0 0 = waits; take = [0 1 2 3]; enter 4 4 = waits; broken; state = off; enter 9 9 = waits; enter 0 0 = waits; gone; enter 8 8 = goes; enter 0 9 = goes; take = none; logged = [0 1 2 3 4 5 6 7 8 9]")
	// While a crash may find the file, who writes where it says nothing waits until it is gone, or too long.
	f("enter 0 0 = waits; take = [0 1 2 3]; done; fail; enter 1 1 = goes; enter 4 4 = waits; enter 4 4 = waits; goon; state = off; enter 4 5 = goes; logged = [0 1 2 3 4 5]")
	f("enter 0 0 = waits; fail; gone; gone; enter 1 1 = goes; fail; enter 9 9 = waits; back 1; state = late; take = [0 1 2 3 9]")
	f("fail; gone; enter 9 9 = goes; back 9; state = on; take = none; enter 9 9 = goes; enter 8 8 = waits")
	f("fail; gone; enter 5 5 = goes; enter 9 9 = goes; back 5; state = late; enter 9 9 = goes on; take = [5 8 9]; done; state = on")
	// A region leaves once nothing began in it for the idle time, and none is under way.
	f("enter 0 0 = waits; take = [0 1 2 3]; done; tick 3; idle = []; tick 1; idle 2 = [0 1 3]; leave; logged = [2]; left = [2]; done; enter 0 0 = waits")
	f("enter 0 0 = waits; take = [0 1 2 3]; done; tick 4; enter 1 1 = goes; idle = [0 2 3]; enter 2 2 = goes; leave; logged = [1 2]")
	// A write while the disk is synced, which takes longer than the idle time.
	f("enter 0 0 = waits; take = [0 1 2 3]; done; tick 4; idle = [0 1 2 3]; tick 1; enter 3 3 = goes; tick 9; leave; logged = [3]")
	f("enter 0 0 = waits; goon; idle = []; tick 9; idle = []") // nothing leaves a log that is late
}

// TestAnyOrder holds the rule of the package in any order of events: in the state On no write is under way, or has ended
// since the marks were last kept, whose region does not stand in the file.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(t, "regions")
		l := New(n, 2, NewSet(n), On)
		file := NewSet(n)   // as it is durable
		active := NewSet(n) // written to since the marks were kept
		flying := map[int]int{}
		var waiting [][2]int
		var round, asked Set
		var idle []int
		var kept Set               // active, when the marks were kept
		wasOn := true              // nobody has gone on without the log
		found, late := true, false // a crash finds the file; who waited for it to be gone went on
		begin := func(w [2]int) {
			for r := w[0]; r < w[1]; r++ {
				active.Add(r)
				flying[r]++
				if kept != nil {
					kept.Del(r)
				}
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.IntRange(0, 10).Draw(t, "event") {
			case 0, 1, 2:
				from := rapid.IntRange(0, n-1).Draw(t, "from")
				w := [2]int{from, rapid.IntRange(from+1, n).Draw(t, "to")}
				if l.Enter(w[0], w[1]) == Waits {
					waiting = append(waiting, w)
				} else {
					begin(w)
				}
			case 3:
				if round == nil {
					if s, ok := l.Take(rapid.Bool().Draw(t, "left")); ok {
						round = s
					}
				}
			case 4:
				if round != nil {
					copy(file, round)
					l.Done(true)
					round = nil
				}
			case 5:
				late = late || l.State() == Off && found
				l.GoOn()
			case 6:
				if round != nil && rapid.IntRange(0, 3).Draw(t, "breaks") == 0 {
					l.Done(false)
					round = nil
				} else if l.State() == Off {
					asked = l.Logged()
				}
			case 7:
				if l.State() == Off && asked != nil && !l.there {
					copy(file, asked)
					l.Back(asked)
					found, late = true, false
				}
				asked = nil
			case 10:
				if l.State() == Off {
					found = false
					l.Gone()
				}
			case 8:
				for r, c := range flying {
					if flying[r] = max(0, c-1); c == 1 && rapid.Bool().Draw(t, "one") {
						break
					}
				}
				l.Tick()
			case 9:
				if idle == nil {
					idle = l.Idle(nil, func(r int) bool { return flying[r] > 0 })
					kept = NewSet(n)
					for _, r := range idle {
						kept.Add(r)
					}
				} else {
					for i := range active { // kept, and the disk synced, since Idle
						active[i] &^= kept[i]
					}
					l.Leave(idle)
					idle, kept = nil, nil
				}
			}
			goes := waiting[:0]
			for _, w := range waiting { // the shell wakes those whose round has ended, or that need not wait any more
				if l.State() != On || !slices.ContainsFunc(active.missing(w, file), func(int) bool { return true }) {
					if l.Enter(w[0], w[1]) != Waits {
						begin(w)
						continue
					}
				}
				goes = append(goes, w)
			}
			waiting = goes
			if l.State() != On && !(l.State() == Off && found && !late && wasOn) {
				wasOn = false
				continue
			}
			wasOn = true
			active.Each(func(r int) {
				if !file.Has(r) {
					t.Fatalf("region %d was written to and does not stand in the log: file %v", r, file.list())
				}
			})
		}
	})
}

// missing is what of w does not stand in file.
func (s Set) missing(w [2]int, file Set) (rs []int) {
	for r := w[0]; r < w[1]; r++ {
		if !file.Has(r) {
			rs = append(rs, r)
		}
	}
	return rs
}

func TestEnterIsCheap(t *testing.T) {
	l := New(1000, 3, set(1000, 5, 6), On)
	if n := testing.AllocsPerRun(100, func() { l.Enter(5, 7) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEnter(b *testing.B) {
	l := New(65536, 600, set(65536, 5), On)
	for b.Loop() {
		if l.Enter(5, 6) != Goes {
			b.Fatal("waits")
		}
	}
}

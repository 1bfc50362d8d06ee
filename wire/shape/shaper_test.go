package shape

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world sends under a shaper with a clock of its own.
type world struct {
	*Shaper
	now   time.Time
	loads []*load
	sent  []sent
	total map[string]int64
	late  func() time.Duration // by how much a wake comes late
}

// load is a group that has records of size on a connection, all the time or in bursts.
type load struct {
	group   string
	conn    uint64
	size    func() int64
	left    int64
	stopped bool
}

type sent struct {
	at    time.Time
	bytes int64
}

var begin = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func newWorld(p Policy) *world {
	return &world{Shaper: New(begin, p, time.UTC), now: begin, total: map[string]int64{}, late: func() time.Duration { return 0 }}
}

func (w *world) load(group string, conn uint64, size int64) *load {
	l := &load{group: group, conn: conn, size: func() int64 { return size }}
	w.loads = append(w.loads, l)
	w.start(l)
	return l
}

func (w *world) start(l *load) {
	l.stopped, l.left = false, l.size()
	w.Offer(w.now, l.group, l.conn, l.left)
}

func (w *world) of(group string) *load {
	for _, l := range w.loads {
		if l.group == group {
			return l
		}
	}
	return nil
}

// run goes on for d.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for w.now.Before(end) {
		g, wake, ok := w.Next(w.now)
		if !ok {
			if wake.IsZero() || wake.After(end) {
				w.now = end
				return
			}
			if !wake.After(w.now) {
				panic("a wake that is no later")
			}
			w.now = wake.Add(w.late())
			continue
		}
		l := w.of(g.Group)
		l.left -= g.Bytes
		w.sent = append(w.sent, sent{w.now, g.Bytes})
		w.total[g.Group] += g.Bytes
		left, next := l.left, int64(0)
		if left == 0 && !l.stopped {
			next = l.size()
			l.left = next
		}
		w.Left(w.now, 0)
		w.Done(w.now, g.Group, left, next)
		if w.cap == 0 {
			w.now = w.now.Add(time.Millisecond) // what the link takes
		}
	}
}

func (w *world) charge(bytes int64) {
	w.Charge(w.now, bytes)
	w.Left(w.now, 0)
	w.sent = append(w.sent, sent{w.now, bytes})
}

// worst is by how much the fullest second exceeds what allowed gives from its start on.
func (w *world) worst(allowed func(from time.Time) float64) float64 {
	worst, sum, j := math.Inf(-1), int64(0), 0
	for i := range w.sent {
		for ; j < len(w.sent) && w.sent[j].at.Before(w.sent[i].at.Add(time.Second)); j++ {
			sum += w.sent[j].bytes
		}
		worst = max(worst, float64(sum)/allowed(w.sent[i].at)-1)
		sum -= w.sent[i].bytes
	}
	return worst
}

func (w *world) use(r Rate, d time.Duration) float64 {
	sum := int64(0)
	for _, s := range w.sent {
		sum += s.bytes
	}
	return float64(sum) / (r.BytesPerSecond() * d.Seconds())
}

func always(r Rate) func(time.Time) float64 {
	return func(time.Time) float64 { return r.BytesPerSecond() }
}

func TestEverySecondIsUnderTheCapAndUsesIt(t *testing.T) {
	for _, r := range []Rate{MinCap, 1e6, 5e6, 20e6, 100e6, 1e9, 10e9} {
		w := newWorld(Policy{Cap: r})
		w.load("a", 1, 60<<10)
		w.load("b", 1, 1<<20)
		w.load("c", 2, 5000)
		for range 4 {
			w.run(700 * time.Millisecond)
			w.charge(r.Quantum() / 50) // a heartbeat
		}
		if over := w.worst(always(r)); over > 0.03 {
			t.Errorf("%s: a second holds %.2f %% too much", r, 100*over)
		}
		if use := w.use(r, 2800*time.Millisecond); use < 0.97 {
			t.Errorf("%s: %.2f %% is used", r, 100*use)
		}
	}
}

func TestCapHoldsWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rate(rapid.Int64Range(1e6, 200e6).Draw(t, "cap"))
		w := newWorld(Policy{Cap: r, Priorities: map[string]Priority{"g0": High, "g1": Low}})
		lates := rapid.SliceOfN(rapid.Int64Range(0, int64(300*time.Millisecond)), 1, 8).Draw(t, "late")
		n := 0
		w.late = func() time.Duration { n++; return time.Duration(lates[n%len(lates)]) }
		for i := range rapid.IntRange(1, 5).Draw(t, "groups") {
			w.load(fmt.Sprint("g", i), rapid.Uint64Range(1, 3).Draw(t, "conn"), rapid.Int64Range(500, 1<<20).Draw(t, "size"))
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			l := w.loads[rapid.IntRange(0, len(w.loads)-1).Draw(t, "which")]
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0: // its session ends
				w.Withdraw(w.now, l.group)
				l.stopped = true
			case 1:
				w.start(l)
			case 2:
				w.charge(rapid.Int64Range(0, r.Quantum()/4).Draw(t, "charge"))
			case 3: // silence
				w.now = w.now.Add(time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "silence")))
			}
			w.run(time.Duration(rapid.Int64Range(0, int64(600*time.Millisecond)).Draw(t, "run")))
		}
		if over := w.worst(always(r)); over > 0.03 {
			t.Fatalf("a second holds %.2f %% too much", 100*over)
		}
	})
}

func TestNoBurstIsLongerThanAQuantum(t *testing.T) {
	w := newWorld(Policy{Cap: 5e6})
	w.run(time.Hour)
	w.load("a", 1, 1<<20)
	burst, last := int64(0), w.now
	w.run(3 * time.Second)
	for _, s := range w.sent {
		if !s.at.Equal(last) {
			burst, last = 0, s.at
		}
		if burst += s.bytes; burst > Rate(5e6).Quantum() || burst > 12500 {
			t.Fatalf("%d bytes at once", burst)
		}
	}
}

// Whoever wakes late sends later what it could not send in time, and no second is fuller
// for it: neither the ones after one long pause nor those of a machine that pauses all the time.
func TestLateComersUseTheCap(t *testing.T) {
	for _, c := range []struct {
		every, pause time.Duration
		least        float64
	}{
		{20 * time.Millisecond, 14 * time.Millisecond, 0.97},
		{100 * time.Millisecond, 45 * time.Millisecond, 0.97},
		{333 * time.Millisecond, 120 * time.Millisecond, 0.97},
		{3 * time.Second, 250 * time.Millisecond, 0.97},
		{8 * time.Second, time.Second, 0.87}, // 250 ms of that are made up for
	} {
		for _, r := range []Rate{5e6, 20e6, 100e6} {
			w := newWorld(Policy{Cap: r})
			w.late = func() time.Duration {
				if into := w.now.Sub(begin) % c.every; into < c.pause {
					return c.pause - into
				}
				return 0
			}
			w.load("a", 1, 250<<10)
			const all = 24 * time.Second
			w.run(all)
			if over := w.worst(always(r)); over > 0.025 {
				t.Errorf("%s away in %s, %s: a second holds %.2f %% too much", c.pause, c.every, r, 100*over)
			}
			if use := w.use(r, all); use < c.least {
				t.Errorf("%s away in %s, %s: %.1f %% is used", c.pause, c.every, r, 100*use)
			}
		}
	}
}

// What a stalled connection kept in the kernel leaves when it goes on, and what follows
// makes room for it.
func TestWhatTheKernelKeptCountsWhenItLeaves(t *testing.T) {
	const r = Rate(5e6)
	w := newWorld(Policy{Cap: r})
	w.load("a", 1, 60<<10)
	w.load("b", 2, 60<<10)
	w.run(2 * time.Second)
	kept, buffer := int64(0), int64(r.BytesPerSecond()/10)
	for end := w.now.Add(600 * time.Millisecond); w.now.Before(end) && kept < buffer; {
		g, wake, ok := w.Next(w.now)
		if !ok {
			w.now = wake
			continue
		}
		l := w.of(g.Group)
		l.left -= g.Bytes
		kept += g.Bytes
		if l.left == 0 {
			l.left = l.size()
		}
		w.Done(w.now, g.Group, l.left, 0)
	}
	w.now = w.now.Add(600 * time.Millisecond)
	w.sent = append(w.sent, sent{w.now, kept})
	w.Left(w.now, 0)
	w.run(3 * time.Second)
	if over := w.worst(always(r)); over > 0.025 {
		t.Errorf("a second holds %.2f %% too much", 100*over)
	}
}

// What is made up for leaves little faster than the cap.
func TestCatchingUpIsNoBurst(t *testing.T) {
	const r = Rate(20e6)
	w := newWorld(Policy{Cap: r})
	w.load("a", 1, 250<<10)
	w.run(2 * time.Second)
	w.sent = nil
	w.now = w.now.Add(200 * time.Millisecond)
	w.run(100 * time.Millisecond)
	sum := int64(0)
	for _, s := range w.sent {
		sum += s.bytes
	}
	if most := r.BytesPerSecond()*0.1*CatchUp + float64(r.Quantum()); float64(sum) > most {
		t.Errorf("%d bytes in 100 ms after a pause, want at most %.0f", sum, most)
	}
	if least := r.BytesPerSecond() * 0.19; float64(sum) < least {
		t.Errorf("%d bytes in 100 ms after a pause, want at least %.0f", sum, least)
	}
}

func TestShares(t *testing.T) {
	priorities := map[string]Priority{"high": High, "medium": Medium, "low": Low}
	f := func(name string, r Rate, conns [3]uint64, sizes [3]int64) {
		t.Helper()
		w := newWorld(Policy{Cap: r, Priorities: priorities})
		for i, g := range []string{"low", "medium", "high"} {
			w.load(g, conns[i], sizes[i])
		}
		w.run(20 * time.Second)
		sum := float64(w.total["high"] + w.total["medium"] + w.total["low"])
		high, low := float64(w.total["high"])/sum, float64(w.total["low"])/sum
		if high < 0.60 || low < 0.05 {
			t.Errorf("%s: high has %.1f %%, low %.1f %%", name, 100*high, 100*low)
		}
	}
	f("one connection", 5e6, [3]uint64{1, 1, 1}, [3]int64{60 << 10, 60 << 10, 60 << 10})
	f("a connection each", 5e6, [3]uint64{1, 2, 3}, [3]int64{60 << 10, 60 << 10, 60 << 10})
	f("low with large records", 20e6, [3]uint64{1, 1, 1}, [3]int64{1 << 20, 60 << 10, 4 << 10})
	f("high with large records", 20e6, [3]uint64{1, 1, 2}, [3]int64{4 << 10, 60 << 10, 1 << 20})
	f("no cap, the link is full", 0, [3]uint64{1, 1, 1}, [3]int64{60 << 10, 60 << 10, 60 << 10})
}

func TestNobodyStarves(t *testing.T) {
	p := Policy{Cap: 20e6, Priorities: map[string]Priority{"low": Low}}
	w := newWorld(p)
	w.load("low", 1, 60<<10)
	for i := range 20 {
		name := fmt.Sprint("high", i)
		p.Priorities[name] = High
		w.Change(w.now, p, time.UTC)
		w.load(name, uint64(i%3), 60<<10)
	}
	w.run(20 * time.Second)
	sum := int64(0)
	for _, n := range w.total {
		sum += n
	}
	if low := float64(w.total["low"]) / float64(sum); low < 0.05 {
		t.Errorf("low has %.2f %% beside twenty of high", 100*low)
	}
}

func TestGroupsOfOnePriorityShareAlike(t *testing.T) {
	w := newWorld(Policy{Cap: 20e6})
	for i, size := range []int64{2 << 10, 60 << 10, 250 << 10, 1 << 20} {
		w.load(fmt.Sprint("g", i), uint64(i/2), size)
	}
	w.run(30 * time.Second)
	for name, n := range w.total {
		if share := float64(n) / (Rate(20e6).BytesPerSecond() * 30); math.Abs(share-0.25) > 0.03 {
			t.Errorf("%s has %.1f %%", name, 100*share)
		}
	}
}

func TestIdleTimeGivesNoClaim(t *testing.T) {
	w := newWorld(Policy{Cap: 20e6, Priorities: map[string]Priority{"sleeper": High, "c": High}})
	sleeper := w.load("sleeper", 1, 60<<10)
	w.run(time.Second)
	sleeper.stopped = true
	w.load("b", 1, 60<<10)
	w.load("c", 1, 60<<10)
	w.run(time.Minute)
	b, c, s := w.total["b"], w.total["c"], w.total["sleeper"]
	w.start(sleeper)
	w.run(10 * time.Second)
	b, c, s = w.total["b"]-b, w.total["c"]-c, w.total["sleeper"]-s
	if sum := float64(b + c + s); float64(b)/sum < 0.2 || float64(c)/sum < 0.3 || float64(s)/sum < 0.3 {
		t.Errorf("after a minute of sleep: medium %d, high %d, and the sleeper, high too, %d", b, c, s)
	}
}

// A record of low under way must not hold up high on its connection for as long as low's share alone would take.
func TestRecordUnderWayInheritsTheClaim(t *testing.T) {
	w := newWorld(Policy{Cap: 5e6, Priorities: map[string]Priority{"high": High, "low": Low, "other": High}})
	w.load("other", 2, 60<<10)
	low := w.load("low", 1, 60<<10)
	w.run(100 * time.Millisecond)
	for !w.order.groups["low"].began {
		w.run(10 * time.Millisecond)
	}
	low.stopped = true
	w.load("high", 1, 60<<10)
	from := w.now
	for w.total["high"] == 0 {
		w.run(10 * time.Millisecond)
	}
	if took := w.now.Sub(from); took > 400*time.Millisecond {
		t.Errorf("high waited %s behind a record of low", took)
	}
}

func TestCapChanges(t *testing.T) {
	f := func(from, to Rate) {
		t.Helper()
		w := newWorld(Policy{Cap: from})
		w.load("a", 1, 60<<10)
		w.run(3 * time.Second)
		change := w.now
		w.Change(w.now, Policy{Cap: to}, time.UTC)
		before := len(w.sent)
		w.run(3 * time.Second)
		over := w.worst(func(at time.Time) float64 {
			old := max(0, min(1, change.Sub(at).Seconds()))
			sum := from.BytesPerSecond()*old + to.BytesPerSecond()*(1-old)
			if old > 0 { // a quantum of that cap may have left in its last moment
				sum += float64(from.Quantum())
			}
			return sum
		})
		if over > 0.03 {
			t.Errorf("%s to %s: a second holds %.2f %% too much", from, to, 100*over)
		}
		w.sent = w.sent[before:]
		if use := w.use(to, 3*time.Second); use < 0.97 {
			t.Errorf("%s to %s: %.1f %% used afterwards", from, to, 100*use)
		}
	}
	f(5e6, 100e6)
	f(100e6, 5e6)
	f(20e6, 1e9)
}

func TestNoCapAndBack(t *testing.T) {
	w := newWorld(Policy{})
	w.load("a", 1, 60<<10)
	w.run(time.Second)
	if n := len(w.sent); n < 900 {
		t.Fatalf("%d records in a second without a cap", n)
	}
	w.Change(w.now, Policy{Cap: 5e6}, time.UTC)
	w.sent = nil
	w.run(2 * time.Second)
	if over := w.worst(always(5e6)); over > 0.03 {
		t.Errorf("a second holds %.2f %% too much", 100*over)
	}
}

// What TCP sends again is paid for by what comes after; what was charged in vain is given back.
func TestRetransmissionsArePaidFor(t *testing.T) {
	const again = 100e3
	w := newWorld(Policy{Cap: 5e6})
	w.load("a", 1, 60<<10)
	w.run(5 * time.Second)
	w.Charge(w.now, again)
	w.run(5 * time.Second)
	want := 10*Rate(5e6).BytesPerSecond() - again
	if got := float64(w.total["a"]); math.Abs(got-want) > 15e3 {
		t.Errorf("%.0f bytes granted in 10 s beside %.0f sent again, want %.0f", got, again, want)
	}
	w.Charge(w.now, -50e3)
	if w.burst > float64(Rate(5e6).Quantum()) {
		t.Errorf("giving back makes a burst of %.0f", w.burst)
	}
	w.Charge(w.now, 1<<40)
	_, wake, _ := w.Next(w.now)
	if wait := wake.Sub(w.now); wait > 1100*time.Millisecond {
		t.Errorf("a mad charge stops groups for %s", wait)
	}
}

func TestWindowsChangeTheCapAsTimePasses(t *testing.T) {
	night, _ := ParseWindow("daily 12:01-12:02 20Mbit")
	w := newWorld(Policy{Cap: 5e6, Windows: []Window{night}})
	w.load("a", 1, 60<<10)
	perMinute := func(want Rate) {
		t.Helper()
		before := w.total["a"]
		w.run(time.Minute)
		if got := Rate(float64(w.total["a"]-before) * 8 / 60); float64(got) < 0.98*float64(want) || float64(got) > 1.02*float64(want) {
			t.Errorf("%s until %s, want %s", got, w.now.Format(time.TimeOnly), want)
		}
	}
	perMinute(5e6)
	perMinute(20e6)
	perMinute(5e6)
}

func TestHeldIsTimeWaitedForTheCapOnly(t *testing.T) {
	w := newWorld(Policy{Cap: 5e6})
	w.load("a", 1, 60<<10)
	w.run(10 * time.Second)
	if held := w.Held(w.now, "a"); held < 9500*time.Millisecond || held > 10*time.Second {
		t.Errorf("held %s of 10 s of backlog", held)
	}
	w.load("a", 1, 60<<10)
	if _, _, ok := w.Next(w.now); ok {
		t.Fatal("a grant right after one")
	}
	w.now = w.now.Add(10 * time.Millisecond)
	if _, _, ok := w.Next(w.now); !ok {
		t.Fatal("no grant")
	}
	held := w.Held(w.now, "a")
	w.now = w.now.Add(time.Minute) // the socket does not take it
	if w.Held(w.now, "a") != held {
		t.Error("waiting for the socket counts as waiting for the cap")
	}
	if w.Held(w.now, "nobody") != 0 {
		t.Error("a group that never offered was held")
	}
}

func TestWithdrawnMidRecordFreesTheConnection(t *testing.T) {
	w := newWorld(Policy{Cap: 5e6})
	w.load("a", 1, 60<<10)
	g, _, _ := w.Next(w.now)
	w.load("b", 1, 60<<10)
	w.Withdraw(w.now, g.Group)
	w.Done(w.now, g.Group, 50<<10, 0) // comes late, and changes nothing
	w.now = w.now.Add(time.Second)
	if g, _, ok := w.Next(w.now); !ok || g.Group != "b" {
		t.Errorf("next is %+v, %v", g, ok)
	}
}

func TestNextAllocatesNothing(t *testing.T) {
	w := newWorld(Policy{Cap: 5e6})
	w.load("a", 1, 1<<30)
	w.load("b", 1, 1<<30)
	if n := testing.AllocsPerRun(100, func() {
		g, _, ok := w.Next(w.now)
		if ok {
			w.Done(w.now, g.Group, 1<<30, 0)
		}
		w.now = w.now.Add(5 * time.Millisecond)
	}); n > 0 {
		t.Errorf("%v allocations a grant", n)
	}
}

package breadth

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_000_000_000, 0)

// link is a model of a way to a target: what each connection carries, and all together,
// in bytes a second.
type link struct {
	b        *Breadth
	rng      *rand.Rand
	each     float64
	all      float64
	noise    float64 // part by which a second differs from another
	demand   float64 // 0: more than the link carries
	busy     bool
	mostUp   int // connections that can be had; 0 is all
	now      time.Time
	s        Sample
	seconds  map[int]int // with so many connections
	changes  int
	lastWant int
}

func newLink(seed uint64, each, all, noise float64) *link {
	l := &link{b: New(start, 0), rng: rand.New(rand.NewPCG(seed, 1)), each: each, all: all, noise: noise, now: start, lastWant: 1}
	l.s.Up = 1
	l.b.Step(l.now, l.s)
	return l
}

func (l *link) capacity(n int) float64 { return min(float64(n)*l.each, l.all) }

// run lets seconds pass.
func (l *link) run(seconds int) {
	l.seconds, l.changes = map[int]int{}, 0
	for range seconds {
		l.now = l.now.Add(time.Second)
		rate, waited := l.capacity(l.s.Up)*(1+l.noise*(2*l.rng.Float64()-1)), 0.95
		if l.demand > 0 && l.demand < rate {
			waited = 0.4 * l.demand / rate
			if l.demand < rate/10 {
				waited = 0
			}
			rate = l.demand
		}
		l.s.Bytes += uint64(rate)
		l.s.Waited += time.Duration(waited * float64(time.Second))
		if l.busy {
			l.s.Held += 900 * time.Millisecond
		}
		want := l.b.Step(l.now, l.s)
		if want != l.lastWant {
			l.changes++
			l.lastWant = want
		}
		l.s.Up, l.s.Refused = want, false
		if l.mostUp > 0 && want > l.mostUp {
			l.s.Up, l.s.Refused = l.mostUp, true
		}
		l.seconds[want]++
	}
}

// mostly is how many connections there were for most of the last run.
func (l *link) mostly() (n int) {
	for k, s := range l.seconds {
		if s > l.seconds[n] {
			n = k
		}
	}
	return n
}

func TestBreadthFollowsTheLink(t *testing.T) {
	f := func(name string, each, all float64, want ...int) {
		t.Helper()
		for seed := range uint64(20) {
			l := newLink(seed, each, all, 0.05)
			l.run(600)
			l.run(1800)
			got, ok := l.mostly(), false
			for _, w := range want {
				ok = ok || got == w
			}
			if !ok || l.changes > 24 {
				t.Errorf("%s, seed %d: mostly %d connections in %v, %d changes, want %v", name, seed, got, l.seconds, l.changes, want)
			}
		}
	}
	f("one does all", 100e6, 100e6, 1)
	f("the line is full with two", 50e6, 100e6, 2)
	f("a window too small", 1.6e6, 1e9, 8)
	f("full with three", 40e6, 110e6, 3)
	f("full with five", 20e6, 100e6, 6)
}

func TestBreadthIsNotMovedBy(t *testing.T) {
	f := func(name string, change func(*link)) {
		t.Helper()
		l := newLink(1, 1e6, 1e9, 0.02)
		change(l)
		l.run(3600)
		if l.mostly() != 1 || l.changes > 0 {
			t.Errorf("%s: %v", name, l.seconds)
		}
	}
	f("little to send", func(l *link) { l.demand = 0.5e6 })
	f("a target that is busy", func(l *link) { l.busy = true })
	one := newLink(1, 1e6, 1e9, 0)
	one.b = New(start, 5)
	one.run(100)
	if one.seconds[5] != 100 {
		t.Errorf("fixed at 5: %v", one.seconds)
	}
}

// Nothing but noise makes it try again and again only at first, and it always goes back.
func TestNoiseIsNoGain(t *testing.T) {
	for seed := range uint64(20) {
		l := newLink(seed, 100e6, 100e6, 0.3)
		l.run(6 * 3600)
		// A trial lasts 8 s; they come after 30 s, 60 s, and at last every half hour. One in
		// a thousand is taken for a gain, and looked at again after a quarter of an hour.
		if more := 6*3600 - l.seconds[1]; more > 2500 || l.seconds[4]+l.seconds[6]+l.seconds[8] > 0 {
			t.Errorf("seed %d: %v", seed, l.seconds)
		}
	}
}

func TestNothingIsDecidedFromOneSample(t *testing.T) {
	l := newLink(1, 1e6, 1e9, 0)
	for range 4 * (Samples - 1) {
		l.demand = 0
		l.run(Samples - 1)
		l.demand = 0.1e6
		l.run(1)
	}
	if l.lastWant != 1 || l.changes != 0 {
		t.Errorf("%d connections after bursts of %d samples", l.lastWant, Samples-1)
	}
	l.demand = 0
	l.run(Samples)
	if l.lastWant != 2 {
		t.Errorf("%d connections after %d full samples in a row", l.lastWant, Samples)
	}
}

func TestBreadthGoesDown(t *testing.T) {
	l := newLink(1, 10e6, 1e9, 0.02)
	l.run(300)
	if l.lastWant != Max {
		t.Fatalf("%d connections", l.lastWant)
	}
	l.all = 10e6 // the line is another one
	l.run(4 * 3600)
	if l.mostly() > 3 || l.lastWant != 1 {
		t.Errorf("four hours after one connection does all: %v, now %d", l.seconds, l.lastWant)
	}
	l = newLink(1, 10e6, 1e9, 0.02)
	l.run(300)
	l.demand = 1
	l.run(3600)
	if l.lastWant != 1 {
		t.Errorf("idle for an hour: %d connections", l.lastWant)
	}
}

func TestMoreCannotBeHad(t *testing.T) {
	l := newLink(1, 10e6, 1e9, 0.02)
	l.mostUp = 3
	l.run(2 * 3600)
	if l.seconds[3] < 6000 {
		t.Errorf("with three connections at most: %v", l.seconds)
	}
}

// Whatever the link: what it settles on carries nearly what the link carries, it is no
// more than a step beyond what is needed, and it comes to rest.
func TestBreadthOnAnyLink(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		each := rapid.Float64Range(0.1e6, 1e9).Draw(t, "each")
		all := each * rapid.Float64Range(1, 12).Draw(t, "times")
		noise := rapid.Float64Range(0, 0.08).Draw(t, "noise")
		l := newLink(rapid.Uint64().Draw(t, "seed"), each, all, noise)
		l.run(900)
		l.run(1800)
		n := l.mostly()
		if got, best := l.capacity(n), l.capacity(Max); got < best*0.8 {
			t.Fatalf("%d connections carry %.3g of %.3g: %v", n, got, best, l.seconds)
		}
		for i := 1; i < len(steps); i++ {
			if n >= steps[i] && l.capacity(steps[i-1]) >= l.capacity(Max) {
				t.Fatalf("%d connections where %d do: %v", n, steps[i-1], l.seconds)
			}
		}
		if l.changes > 30 {
			t.Fatalf("%d changes in half an hour", l.changes)
		}
	})
}

package faultlink

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A pump that always has something to send, and whose timers are late, still gets
// the rate to the bit.
func TestPacerIsExactThoughTimersAreLate(t *testing.T) {
	for _, bits := range []int64{5e6, 50e6, 1e9} {
		rng := rand.New(rand.NewPCG(1, uint64(bits)))
		start := time.Unix(0, 0)
		p := &pacer{}
		p.set(bits, start)
		now, sent := start, int64(0)
		for now.Sub(start) < 20*time.Second {
			n := p.quantum()
			due := p.reserve(now, n, false)
			sent += int64(n)
			if due.After(now) {
				now = due.Add(time.Duration(rng.ExpFloat64() * float64(3*time.Millisecond)))
			}
		}
		got := float64(sent*8) / now.Sub(start).Seconds()
		if off := got/float64(bits) - 1; off > 0.001 || off < -0.005 {
			t.Errorf("%d bit/s: carried %+.2f %% of it", bits, 100*off)
		}
	}
}

func TestPacerSavesNothingUp(t *testing.T) {
	start := time.Unix(0, 0)
	p := &pacer{}
	p.set(8000, start) // a byte a millisecond
	later := start.Add(time.Hour)
	if due := p.reserve(later, 1000, true); due.Sub(later) < 990*time.Millisecond {
		t.Errorf("after an idle hour a second's worth is through in %v", due.Sub(later))
	}
}

func TestTwoSharesOfOneLink(t *testing.T) {
	start := time.Unix(0, 0)
	p := &pacer{}
	p.set(8_000_000, start)
	a := p.reserve(start, 1000, false)
	b := p.reserve(start, 1000, false)
	if a.Sub(start) > 2*time.Millisecond || b.Sub(a) != time.Millisecond {
		t.Errorf("two quanta are through after %v and %v", a.Sub(start), b.Sub(start))
	}
}

// What a connection waits for another is the time of its quantum.
func TestQuantumIsShort(t *testing.T) {
	f := func(bits int64, want int) {
		t.Helper()
		p := &pacer{}
		p.set(bits, time.Unix(0, 0))
		if got := p.quantum(); got != want {
			t.Errorf("%d bit/s goes by %d bytes, want %d", bits, got, want)
		}
	}
	f(100e3, 512)
	f(5e6, 1250)
	f(50e6, 12500)
	f(10e9, 16<<10)
	f(0, maxQuantum)
}

package journal

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// Promotion is paced by what comes in, or what it needs, and by nothing while nothing does.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		var p pacer
		var b bucket
		p.init()
		takes := func(bytes int64, need float64, ahead time.Duration) time.Duration {
			began := time.Now()
			ok(t, b.wait(t.Context(), began, bytes, p.target(began, need), ahead))
			return time.Since(began)
		}
		if d := takes(1<<30, 0, paceAhead); d != 0 {
			t.Errorf("an idle store waits %s", d)
		}
		comes := func(rate int64) {
			for range 20 {
				time.Sleep(time.Second)
				p.took(rate)
				p.rate(time.Now())
			}
		}
		rate := func(need float64) (mibs float64) {
			comes(100 * mib)
			began, longest := time.Now(), time.Duration(0)
			for range 16000 {
				d := takes(mib/16, need*mib, paceEven)
				longest = max(longest, d)
				p.took(int64(d.Seconds() * 100 * mib))
			}
			if longest > 2*time.Millisecond { // a sixteenth of a MiB at that rate takes less
				t.Errorf("a small piece waits %s", longest)
			}
			return 1000 / time.Since(began).Seconds()
		}
		if r := rate(0); r < 195 || r > 230 {
			t.Errorf("%.0f MiB/s beside an intake of 100", r)
		}
		if r := rate(500); r < 480 || r > 520 {
			t.Errorf("%.0f MiB/s where 500 are needed", r)
		}
		for range 60 {
			time.Sleep(time.Second)
			p.rate(time.Now())
		}
		if d := takes(10*mib, 0, paceAhead); d != 0 {
			t.Errorf("after the intake ended it waits %s", d)
		}
	})
}

// A pass means to be through before the room is used up; where it is slower, the room
// lasts until then at the rate that intake is left, which does not change until then.
func TestPassage(t *testing.T) {
	const mib = 1 << 20
	now := time.Unix(0, 0)
	var p passage
	if n, a := p.need(now, 1, 1e9), p.allows(1, 100); n != 0 || !math.IsInf(a, 1) {
		t.Errorf("without a pass %f are needed, %f allowed", n, a)
	}
	p.plan(1000 * mib)
	if n := p.need(now, 500*mib, 100*mib); n < 249*mib || n > 251*mib { // 1000 within 4 s
		t.Errorf("%.0f MiB/s are needed", n/mib)
	}
	if a := p.allows(1, 100); !math.IsInf(a, 1) {
		t.Errorf("%f are allowed before it is known how fast the pass is", a)
	}
	p.hold(now)
	if n := p.need(now.Add(passHurry-1), 500*mib, 100*mib); !math.IsInf(n, 1) {
		t.Errorf("%.0f MiB/s are needed while records are held up", n/mib)
	}
	if n := p.need(now.Add(passHurry), 500*mib, 100*mib); math.IsInf(n, 1) {
		t.Error("the pass still hurries")
	}
	room := 500.0 * mib
	least, most := math.Inf(1), 0.0
	for p.left > 0 { // at 100 MiB/s, ten seconds
		now = now.Add(10 * time.Millisecond)
		p.step(now, mib)
		if p.speed == 0 || p.left == 0 {
			continue
		}
		a := p.allows(int64(room), 600*mib)
		least, most = min(least, a), max(most, a)
		room -= a / 100
	}
	if least < 49*mib || most > 54*mib || room < 0 || room > 20*mib {
		t.Errorf("between %.1f and %.1f MiB/s are allowed, and %.0f MiB are left at the end", least/mib, most/mib, room/mib)
	}
	p.plan(1000 * mib)
	if a := p.allows(0, 600*mib); a < 49*mib || a > 51*mib {
		t.Errorf("%.1f MiB/s are allowed without room", a/mib)
	}
	if a := p.allows(600*mib, 600*mib); !math.IsInf(a, 1) {
		t.Errorf("%.1f MiB/s are allowed with much room", a/mib)
	}
	p.end()
	if n, a := p.need(now, 1, 1e9), p.allows(1, 100); n != 0 || !math.IsInf(a, 1) {
		t.Errorf("after the pass %f are needed, %f allowed", n, a)
	}
}

// As few writes are under way as bring the speed that is aimed at, and all where nobody is in the way.
func TestDepth(t *testing.T) {
	var p passage
	asked := func(times int) (last int) {
		for range times {
			last = p.depth()
		}
		return last
	}
	if n := asked(1); n != deepest {
		t.Errorf("%d where nothing is aimed at", n)
	}
	p.speed = 100
	p.aim(100)
	if n := asked(100); n != shallowest {
		t.Errorf("%d where the speed is reached", n)
	}
	p.aim(110)
	if n := asked(2); n != shallowest+4 {
		t.Errorf("%d a little after more is aimed at", n)
	}
	if n := asked(100); n != deepest {
		t.Errorf("%d where the speed is not reached", n)
	}
	p.aim(100)
	if n := asked(3); n != deepest-3 {
		t.Errorf("%d a little after it is reached", n)
	}
	p.aim(math.Inf(1))
	if n := asked(1); n != deepest {
		t.Errorf("%d where nothing comes in", n)
	}
}

// A pass goes as fast as it can while nothing comes in, also because there is no room.
func TestPassWithoutRoom(t *testing.T) {
	var r retention
	var p pacer
	p.init()
	p.took(100)
	r.room.set(100, 0, 0)
	if n := r.passPace(time.Now(), &p); math.IsInf(n, 1) {
		t.Error("it is not paced beside an intake")
	}
	r.passage.speed = 1e12
	if n := r.passage.depth(); n != shallowest {
		t.Errorf("%d writes under way where one would do", n)
	}
	r.room.take(100)
	if n := r.passPace(time.Now(), &p); !math.IsInf(n, 1) {
		t.Errorf("it goes at %f bytes a second while nothing is taken", n)
	}
	if n := r.passage.depth(); n != deepest {
		t.Errorf("%d writes under way while nothing is taken", n)
	}
}

// Who brings records faster than the room lasts waits for each a little.
func TestBrake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		var r retention
		r.room.set(1000*mib, 900*mib, 200*mib)
		r.passage.left, r.passage.speed = 200*mib, 100*mib // for two seconds: 50 MiB/s
		began, longest := time.Now(), time.Duration(0)
		for range 50 {
			one := time.Now()
			ok(t, r.brake(t.Context(), mib))
			longest = max(longest, time.Since(one))
		}
		if n := r.passage.need(time.Now(), 1, 1); !math.IsInf(n, 1) {
			t.Errorf("the pass is to write %f bytes a second while records are held up", n)
		}
		if d := time.Since(began); d < 950*time.Millisecond || d > 1050*time.Millisecond || longest > 21*time.Millisecond {
			t.Errorf("50 MiB take %s, and one of them %s", d, longest)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := r.brake(ctx, 10*mib); !errors.Is(err, ErrLimit) {
			t.Errorf("given up: %v", err)
		}
		r.passage.end()
		began = time.Now()
		ok(t, r.brake(t.Context(), 100*mib))
		if d := time.Since(began); d != 0 {
			t.Errorf("without a pass it waits %s", d)
		}
	})
}

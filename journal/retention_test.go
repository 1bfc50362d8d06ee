package journal

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

// clocks are those of a machine whose wall clock somebody may set.
type clocks struct {
	began time.Time
	boot  byte
	jump  atomic.Int64 // ns
}

func (c *clocks) now() retain.Instant {
	return retain.Instant{Boot: [16]byte{c.boot}, Mono: time.Since(c.began), Wall: time.Now().UnixNano() + c.jump.Load()}
}

// step makes one more checkpoint, some minutes after the last.
func (t *target) step(s *source, minutes int) error {
	time.Sleep(time.Duration(minutes) * time.Minute)
	for range 3 {
		s.write(6)
	}
	s.limit = s.checkpoint()
	return t.feed(s, 3)
}

// offTheTicks puts a test between two looks of the retainer: what sleeps whole seconds from
// then on never wakes in the same instant as it.
func offTheTicks() { time.Sleep(planEvery/2 + 500*time.Millisecond) }

func (t *target) oldest() uint64 { return t.group.Retention().Oldest }

// History is as long as the policy says and not much longer, over openings, whatever
// the wall clock does meanwhile (I13).
func TestHistoryByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clocks{began: time.Now(), boot: 1}
		disk := faultdisk.New(512)
		cfg := smallSegments(disk)
		cfg.Clock, cfg.Retention = c.now, retain.Policy{History: retain.MinHistory, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		offTheTicks()
		s := newSource(1)
		s.open(true)
		s.write(6)
		s.close()
		at := map[uint64]time.Time{}
		for i := range 60 {
			ok(t, w.step(s, 5))
			at[s.cut] = time.Now()
			switch i {
			case 20:
				c.jump.Store(int64(1000 * time.Hour))
			case 30:
				c.jump.Store(-int64(1000 * time.Hour))
			case 40:
				ok(t, w.store.Close())
				w, err = openWith(cfg)
				ok(t, err)
				offTheTicks()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			oldest := w.oldest()
			if oldest > 1 {
				if age := time.Since(at[oldest]); age < time.Hour {
					t.Fatalf("step %d: the oldest checkpoint left is %d, of %s", i, oldest, age)
				}
			}
			if age := time.Since(at[oldest]); age > 80*time.Minute {
				t.Fatalf("step %d: checkpoint %d of %s is still there", i, oldest, age)
			}
		}
		if w.oldest() < 40 {
			t.Errorf("the oldest is %d", w.oldest())
		}
		if r := w.group.Retention(); r.Level != retain.Plenty || r.Held < time.Hour || r.Held > 2*time.Hour || r.Promoted == 0 {
			t.Errorf("%+v", r)
		}
		ok(t, w.holdsOldest(s))
		ok(t, w.store.Close())
	})
}

// After another boot the time between counts for nothing: nobody knows how much it was.
func TestAnotherBootExpiresNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clocks{began: time.Now(), boot: 1}
		disk := faultdisk.New(512)
		cfg := smallSegments(disk)
		cfg.Clock, cfg.Retention = c.now, retain.Policy{History: retain.MinHistory, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		offTheTicks()
		s := newSource(1)
		s.open(true)
		s.write(6)
		s.close()
		for range 6 {
			ok(t, w.step(s, 5))
		}
		ok(t, w.store.Close())
		c.boot++
		time.Sleep(1000 * time.Hour)
		w, err = openWith(cfg)
		ok(t, err)
		offTheTicks()
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		ok(t, w.holds(s, 1))
		time.Sleep(40 * time.Minute)
		synctest.Wait()
		if w.oldest() < 2 {
			t.Error("time that did pass does not count")
		}
		ok(t, w.holdsOldest(s))
		ok(t, w.store.Close())
	})
}

// At the limit test views give way, then history gets shorter, down to what is pinned;
// then intake stops and says so, and goes on when the pin is gone (I12).
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 200 << 10
		cfg := smallSegments(faultdisk.New(512))
		cfg.Retention = retain.Policy{History: 10 * time.Hour, Limit: limit, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		offTheTicks()
		s := newSource(1)
		s.open(true)
		s.write(6)
		s.close()
		view := uint64(0)
		warned, shortened := false, false
		for i := range 120 {
			err := w.step(s, 1)
			for again := 0; errors.Is(err, ErrLimit) && again < 3; again++ { // an index that merges takes its space twice for a moment
				time.Sleep(time.Minute)
				synctest.Wait()
				err = w.feed(s, 3)
			}
			if err != nil {
				t.Fatalf("step %d: %v with %+v", i, err, w.group.Retention())
			}
			time.Sleep(30 * time.Second)
			synctest.Wait()
			r := w.group.Retention()
			warned = warned || r.Level == retain.Warning
			shortened = shortened || r.Oldest > 1
			if used := r.Usage.Log; used > limit {
				t.Fatalf("step %d: %d bytes with a limit of %d", i, used, limit)
			}
			if i == 10 {
				view = r.Oldest
				_, err := w.group.OpenView(view, ViewOptions{})
				ok(t, err)
			}
			if n, open := w.group.ViewsHold(); open && n < r.Oldest {
				t.Fatalf("step %d: a view stands at %d, the oldest is %d", i, n, r.Oldest)
			}
		}
		if _, open := w.group.ViewsHold(); view == 0 || open || !warned || !shortened {
			t.Errorf("view still open %v, warned %v, shortened %v", open, warned, shortened)
		}
		ok(t, w.holdsOldest(s))

		pinned := w.oldest()
		ok(t, w.group.manifest.put(true, entry{kind: entryPin, number: pinned, pinned: true}))
		stopped := false
		for range 60 {
			if err := w.step(s, 1); err != nil && !errors.Is(err, ErrLimit) {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if stopped = w.group.Retention().Level == retain.Stopped; stopped {
				break
			}
		}
		r := w.group.Retention()
		if !stopped || r.Level != retain.Stopped || r.Oldest != pinned || !errors.Is(w.group.State().Err, ErrLimit) {
			t.Fatalf("with checkpoint %d pinned intake goes on: %+v", pinned, r)
		}
		if used := r.Usage.Log; used > limit+32<<10 { // what was queued when it was reached
			t.Errorf("%d bytes with a limit of %d", used, limit)
		}
		ok(t, w.group.manifest.put(true, entry{kind: entryPin, number: pinned}))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if r := w.group.Retention(); r.Level == retain.Stopped {
			t.Fatalf("intake stays stopped: %+v", r)
		}
		err = w.feed(s, 3)
		for again := 0; errors.Is(err, ErrLimit) && again < 3; again++ {
			time.Sleep(time.Minute)
			synctest.Wait()
			err = w.feed(s, 3)
		}
		ok(t, err)
		ok(t, w.holdsOldest(s))
		ok(t, w.store.Close())
	})
}

// holdsOldest is holds for the oldest checkpoint, once the pass is over that the last of what came in may have begun: it
// may give up the oldest.
func (t *target) holdsOldest(s *source) error {
	time.Sleep(time.Second)
	synctest.Wait()
	return t.holds(s, t.oldest())
}

// moment makes one more checkpoint, and some time passes; then the process is killed and
// started again.
func (t *target) moment(s *source, cfg *Config, up, down time.Duration) (*target, error) {
	for range 3 {
		s.write(6)
	}
	s.limit = s.checkpoint()
	if err := t.feed(s, 3); err != nil && !errors.Is(err, ErrLimit) {
		return t, err
	}
	time.Sleep(up)
	synctest.Wait()
	killed := cfg.FS.(*faultdisk.Disk).Kill()
	if err := t.store.Close(); err != nil {
		return t, err
	}
	time.Sleep(down)
	cfg.FS = killed
	return openWith(*cfg)
}

// A target that restarts all the time keeps within its limit, and says at once how it stands.
func TestLimitOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 200 << 10
		cfg := smallSegments(faultdisk.New(512))
		cfg.Retention = retain.Policy{History: 10 * time.Hour, Limit: limit, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		s := newSource(1)
		s.open(true)
		s.write(6)
		s.close()
		for i := range 60 {
			w, err = w.moment(s, &cfg, 500*time.Millisecond, 0)
			ok(t, err)
			r := w.group.Retention()
			if used := r.Usage.Journal(); used > limit+32<<10 || used > limit*3/4 && r.Level == retain.Plenty {
				t.Fatalf("start %d: %d bytes with a limit of %d: %s %q", i, used, limit, r.Level, r.Reason)
			}
		}
		if w.oldest() < 2 {
			t.Error("nothing was given up")
		}
		err = w.feed(s, 3)
		for again := 0; errors.Is(err, ErrLimit) && again < 3; again++ {
			time.Sleep(time.Minute)
			synctest.Wait()
			err = w.feed(s, 3)
		}
		ok(t, err)
		ok(t, w.holdsOldest(s))
		ok(t, w.store.Close())
	})
}

// Checkpoints grow old while the target restarts all the time, and none too early (I13).
func TestAgesOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &clocks{began: time.Now(), boot: 1}
		cfg := smallSegments(faultdisk.New(512))
		cfg.Clock, cfg.Retention = c.now, retain.Policy{History: retain.MinHistory, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		s := newSource(1)
		s.open(true)
		s.write(6)
		s.close()
		at := map[uint64]time.Time{}
		for i := range 30 {
			at[s.cut+1] = time.Now()
			w, err = w.moment(s, &cfg, 5*time.Second, 5*time.Minute)
			ok(t, err)
			if oldest := w.oldest(); oldest > 1 && time.Since(at[oldest]) < time.Hour {
				t.Fatalf("start %d: the oldest checkpoint left is %d, of %s", i, oldest, time.Since(at[oldest]))
			}
		}
		if oldest := w.oldest(); time.Since(at[oldest]) > 90*time.Minute {
			t.Errorf("checkpoint %d of %s is still there", oldest, time.Since(at[oldest]))
		}
		ok(t, w.holdsOldest(s))
		ok(t, w.store.Close())
	})
}

// A view in use is no test view: it stays, and intake stops instead.
func TestLiveViewNeverGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := smallSegments(faultdisk.New(512))
		cfg.Retention = retain.Policy{History: 10 * time.Hour, Limit: 120 << 10, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		offTheTicks()
		s := newSource(2)
		s.open(true)
		s.write(6)
		s.close()
		ok(t, w.step(s, 1))
		v, err := w.group.OpenView(1, ViewOptions{Live: true})
		ok(t, err)
		for range 60 {
			if err = w.step(s, 1); err != nil {
				break
			}
			time.Sleep(30 * time.Second)
			synctest.Wait()
		}
		if !errors.Is(err, ErrLimit) || w.oldest() != 1 {
			t.Errorf("oldest %d: %v", w.oldest(), err)
		}
		d, _ := v.Device(1)
		ok(t, d.ReadAt(make([]byte, 100), 0))
		ok(t, v.Close())
		ok(t, w.store.Close())
	})
}

// At the limit no cut arrives that would say what is listed everywhere: the source says so
// itself, and then there is room.
func TestListedEverywhereMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := smallSegments(faultdisk.New(512))
		cfg.Retention = retain.Policy{History: 10 * time.Hour, Limit: 120 << 10, WarnPercent: 75}
		w, err := openWith(cfg)
		ok(t, err)
		offTheTicks()
		s := newSource(4)
		s.open(true)
		s.write(6)
		s.close()
		for range 60 {
			for range 3 {
				s.write(6)
			}
			s.checkpoint() // of which the source never heard that it is listed
			if err = w.feed(s, 3); err != nil {
				break
			}
			time.Sleep(30 * time.Second)
			synctest.Wait()
		}
		if !errors.Is(err, ErrLimit) || w.oldest() != 1 {
			t.Fatalf("oldest %d: %v", w.oldest(), err)
		}
		w.group.ListedEverywhere(1 << 40) // more than there is
		synctest.Wait()                   // pass follows on pass, as many as it takes, and none waits for the next tick
		if why := w.group.retention.room.none(); why != nil {
			t.Errorf("there is no room yet: %v", why)
		}
		ok(t, w.feed(s, 3))
		if oldest := w.oldest(); oldest < 2 {
			t.Errorf("checkpoint %d is still there", oldest)
		}
		ok(t, w.holdsOldest(s))
		ok(t, w.store.Close())
	})
}

// What is appended is counted at once: intake stops at the limit, not at the next plan.
func TestRoom(t *testing.T) {
	var r room
	f := func(bytes int64, plan, stop bool) {
		t.Helper()
		if got := r.take(bytes); got != plan || (r.none() != nil) != stop {
			t.Errorf("%d bytes: plan %v, stop %v", bytes, got, r.none())
		}
	}
	r.set(0, 1<<40, 0)
	f(1<<50, false, false)
	r.set(100, 50, 20)
	f(29, false, false)
	f(1, true, false)
	f(10, false, false)
	f(10, true, true)
	f(10, false, true)
	r.stop(nil, false)
	f(1, false, true) // no plan has found room yet
	r.set(100, 50, 20)
	r.stop(nil, false)
	f(1, false, false)
}

// TestConfiguredRetentionChanges: groups without a policy of their own follow what is configured, also one that comes later; what
// cannot be is refused, and changes nothing.
func TestConfiguredRetentionChanges(t *testing.T) {
	w, err := openWith(smallSegments(faultdisk.New(512)))
	ok(t, err)
	defer func() { ok(t, w.store.Close()) }()
	is := func(own bool, history time.Duration) {
		t.Helper()
		if r := w.group.Retention(); r.Own != own || r.Policy.History != history {
			t.Errorf("own %v, %v of history; want %v, %v", r.Own, r.Policy.History, own, history)
		}
	}
	p := retain.Policy{History: 3 * time.Hour, WarnPercent: 75}
	ok(t, w.store.SetDefaultRetention(p))
	is(false, 3*time.Hour)
	ok(t, w.group.SetRetention(retain.Policy{History: 5 * time.Hour, WarnPercent: 75}))
	p.History = 4 * time.Hour
	ok(t, w.store.SetDefaultRetention(p))
	is(true, 5*time.Hour)
	if err := w.store.SetDefaultRetention(retain.Policy{History: time.Second}); err == nil {
		t.Error("a second of history is no policy")
	}
	ok(t, w.group.ClearRetention())
	is(false, 4*time.Hour)
}

package capture

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A hold holds a write's answer back until it ends, and is broken past its deadline.
func TestHoldWaitsAndBreaks(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	h := tap.BeginHold()
	write(t, r.vol(0), 0, fill(512, 1))
	if now := time.Duration(tap.clock.now()); now < h.Began+HoldMost {
		t.Errorf("answered %v before the deadline", h.Began+HoldMost-now)
	}
	if _, intact := tap.EndHold(h); intact || tap.page.broken.Load() != h.number {
		t.Errorf("a write was answered past the deadline: intact is %v, broken %d of %d", intact, tap.page.broken.Load(), h.number)
	}
	ws := next(t, tap, 2)
	if ws[0].Kind != Mark || ws[0].Ticket != h.Ticket || ws[1].Ticket <= h.Ticket {
		t.Errorf("the tap gave %+v", ws)
	}
	// The next one is not taken for broken, and one that nobody met holds whenever it ends.
	if h2 := tap.BeginHold(); h2.number <= h.number {
		t.Errorf("hold %d after %d", h2.number, h.number)
	} else if _, intact := tap.EndHold(h2); !intact {
		t.Error("a hold is broken by the one before")
	}
	h = tap.BeginHold()
	tap.page.lost.Add(1)
	if _, intact := tap.EndHold(h); intact {
		t.Error("a write was dropped under a hold that held")
	}
}

// TestHoldKeepsTheOrder has writers race holds: where a hold held, no write after its ticket was answered before it ended.
func TestHoldKeepsTheOrder(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap, v := r.covered(), r.vol(0)
	type answer struct {
		ticket record.Ticket
		at     time.Duration
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	answers := make([][]answer, 2)
	for i := range answers {
		wg.Go(func() {
			for !stop.Load() {
				ticket := v.page.take()
				v.waitHold()
				answers[i] = append(answers[i], answer{ticket, time.Duration(v.clock.now())})
			}
		})
	}
	type stood struct {
		ticket record.Ticket
		ended  time.Duration
	}
	var held []stood
	broken := 0
	for round := range 400 {
		h := tap.BeginHold()
		for round%16 == 0 && time.Duration(tap.clock.now()) < h.Began+HoldMost { // over the deadline, or about there
			runtime.Gosched()
		}
		for round%64 == 0 && tap.page.broken.Load() < h.number && time.Duration(tap.clock.now()) < h.Began+time.Second { // until a writer has met it
			runtime.Gosched()
		}
		if ended, intact := tap.EndHold(h); intact {
			held = append(held, stood{h.Ticket, ended})
		} else {
			broken++
		}
	}
	stop.Store(true)
	wg.Wait()
	if len(held) < 100 || broken == 0 {
		t.Errorf("%d holds held, %d were broken", len(held), broken)
	}
	wrong := 0
	for _, list := range answers { // tickets and times rise within each
		at := 0
		for _, h := range held {
			for at < len(list) && list[at].ticket <= h.ticket {
				at++
			}
			if at < len(list) && list[at].at < h.ended {
				wrong++
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d times a write after a cut was answered before the hold, which held, ended", wrong)
	}
}

// A filter that was stopped within breaking a hold does not take back what another says of a later one.
func TestBrokenRises(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	first := tap.BeginHold()
	tap.page.breakHold(first.number) // one filter; another is stopped just before
	tap.EndHold(first)
	second := tap.BeginHold()
	tap.page.breakHold(second.number)
	tap.page.breakHold(first.number) // goes on now
	if _, intact := tap.EndHold(second); intact {
		t.Error("a late filter hides that a hold was broken")
	}
}

// What a dead VRA left set costs nobody anything once the next one runs.
func TestLeftHoldIsCleared(t *testing.T) {
	r := newRig(t, 512, 4*mib, mib, 1).open()
	tap := r.covered()
	tap.BeginHold()
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if tap := r.openTap(); tap.page.hold.Load() != 0 {
		t.Error("the hold stands still")
	}
}

// TestLaneHoldsAnswersOnly has a queue's loop go on while an answer is held back.
func TestLaneHoldsAnswersOnly(t *testing.T) {
	r := laneRig(t, 64<<10, 16<<20)
	tap, v := r.covered(), r.vol(0)
	lane, err := v.Lane(4)
	if err != nil {
		t.Fatal(err)
	}
	defer lane.Close()
	turned := 0
	for range 50 {
		w, err := v.BeginWrite(0, 4096)
		if err != nil {
			t.Fatal(err)
		}
		copy(w.Buffers()[0], fill(4096, 7))
		var answered atomic.Bool
		captured := v.pool.captured.Load()
		h := tap.BeginHold()
		lane.Write(w, func(err error) {
			if err != nil {
				t.Error(err)
			}
			answered.Store(true)
			lane.Loop().Wake()
		})
		for v.pool.captured.Load() == captured {
			turnLoop(t, lane.Loop())
		}
		if !answered.Load() {
			turned++
		}
		tap.EndHold(h)
		for !answered.Load() {
			turnLoop(t, lane.Loop())
		}
	}
	if turned == 0 {
		t.Error("the loop stands still while an answer is held back")
	}
}

// turnLoop waits for what ends next, and takes it in.
func turnLoop(t *testing.T, l *ioengine.Loop) {
	t.Helper()
	if err := l.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Step(); err != nil {
		t.Fatal(err)
	}
}

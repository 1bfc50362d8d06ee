package cut

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// retryAfter is when a void cut is tried again, at the earliest; a few ms more, other ones
	// at each leader and time, keep two leaders out of each other's way.
	retryAfter  = 50 * time.Millisecond
	retrySpread = 16 // ms
	// heldMost is how long a leader waits for Held: guests do not wait any more.
	heldMost = time.Second
)

// Stage is how far a leader has come with a cut.
type Stage uint8

// The stages of a leader.
const (
	Resting   Stage = iota // none is under way
	Awaiting               // placed with all; Placed is waited for
	Releasing              // Held is
)

func (s Stage) String() string { return [...]string{"resting", "awaiting", "releasing"}[s] }

// LeaderConfig says what a leader leads.
type LeaderConfig struct {
	Group    record.GroupID
	Me       record.StreamID
	Members  []record.StreamID // Me among them
	Term     uint64            // of no earlier life of this leader; not 0
	Interval time.Duration     // between cuts
	// Auto has it cut once an interval; else it does when it is Wanted.
	Auto bool
}

// Leader leads the cuts of a group. Step is not for concurrent use.
type Leader struct {
	c     LeaderConfig
	up    map[record.StreamID]bool
	floor uint64

	stage  Stage
	id     cutword.ID
	began  time.Time // the stage
	placed time.Time // the cut
	heard  map[record.StreamID]bool

	wanted  bool
	tag     string
	retry   time.Time
	tries   uint64
	trouble string // why the last one came to nothing; empty after one that is confirmed

	grid   time.Time // when the present interval began; zero before the first
	served bool      // a cut of it is confirmed
	mine   [2]uint64 // numbers that are confirmed for the present interval and the one before; 0 for none
	stats  LeaderStats
}

// LeaderStats are counts since the leader began.
type LeaderStats struct {
	Intervals uint64 // that are over
	Listed    uint64 // intervals whose checkpoint was listed
	Confirmed uint64 // cuts
	Void      uint64 // cuts that came to nothing
}

// LeaderEvent is something that happened to a leader.
type LeaderEvent interface{ leaderEvent() }

// The events of a leader.
type (
	// Up says that a member can be told things.
	Up struct{ Member record.StreamID }
	// Down says that it cannot.
	Down struct{ Member record.StreamID }
	// Heard says that a member answered.
	Heard struct {
		Member record.StreamID
		Word   cutword.Word
	}
	// Wanted says whether somebody waits for a checkpoint, and how it is to be tagged.
	Wanted struct {
		Any bool
		Tag string
	}
	// Listed says that the target listed a checkpoint.
	Listed struct{ Number uint64 }
	// Tick is time that passes.
	Tick struct{}
)

func (Up) leaderEvent()     {}
func (Down) leaderEvent()   {}
func (Heard) leaderEvent()  {}
func (Wanted) leaderEvent() {}
func (Listed) leaderEvent() {}
func (Tick) leaderEvent()   {}

// Say is what a leader does: it sends a word to a member.
type Say struct {
	To   record.StreamID
	Word cutword.Word
}

// NewLeader returns a leader that knows of no member yet.
func NewLeader(c LeaderConfig) *Leader {
	c.Members = slices.Clone(c.Members)
	return &Leader{c: c, up: map[record.StreamID]bool{}, heard: map[record.StreamID]bool{}}
}

// Stage is how far it is with a cut.
func (l *Leader) Stage() Stage { return l.stage }

// Stats are the counts so far.
func (l *Leader) Stats() LeaderStats { return l.stats }

// Trouble is why the last cut came to nothing; empty if none did, or one was confirmed since.
func (l *Leader) Trouble() string { return l.trouble }

// Until is when Tick is to come at the latest; zero where only something else can move it.
func (l *Leader) Until() time.Time {
	switch l.stage {
	case Awaiting:
		return l.began.Add(HoldMost)
	case Releasing:
		return l.began.Add(heldMost)
	}
	if l.wanted || l.c.Auto && !l.served {
		return l.retry
	}
	if l.c.Auto {
		return l.grid.Add(l.c.Interval)
	}
	return time.Time{}
}

// Step takes what happened at now and returns what to say, in order. wall is now as a label, ns since 1970.
func (l *Leader) Step(now time.Time, wall int64, e LeaderEvent) []Say {
	said := l.step(now, e)
	l.turn(now)
	return append(said, l.begin(now, wall)...)
}

func (l *Leader) step(now time.Time, e LeaderEvent) []Say {
	switch e := e.(type) {
	case Up:
		l.up[e.Member] = true
	case Down:
		delete(l.up, e.Member)
		if l.stage != Resting {
			return l.giveUp(now, fmt.Sprintf("the VRA of stream %s is not connected any more", e.Member))
		}
	case Wanted:
		l.wanted, l.tag = e.Any, e.Tag
	case Listed:
		l.listed(e.Number)
	case Heard:
		return l.answered(now, e)
	case Tick:
		switch {
		case l.stage == Awaiting && now.Sub(l.began) >= HoldMost:
			return l.giveUp(now, "not all VRAs had placed the cut within the hold's time: "+l.missing())
		case l.stage == Releasing && now.Sub(l.began) >= heldMost:
			return l.giveUp(now, "not all VRAs told whether their guests were held: "+l.missing())
		}
	}
	return nil
}

// missing names the members that have not answered.
func (l *Leader) missing() string {
	text := "stream"
	for _, m := range l.c.Members {
		if !l.heard[m] {
			text += " " + m.String()
		}
	}
	return text
}

// listed takes in that a checkpoint is listed, which may be another leader's.
func (l *Leader) listed(number uint64) {
	if number > l.floor { // nobody's here: the interval has its checkpoint all the same
		if l.c.Auto && !l.served && l.stage == Resting && !l.grid.IsZero() {
			l.served, l.mine[0] = true, number
		}
		l.floor = number
	}
	for i, n := range l.mine {
		if n == number {
			l.stats.Listed++
			l.mine[i] = 0
		}
	}
}

func (l *Leader) answered(now time.Time, e Heard) []Say {
	if e.Word.Kind == cutword.Refused {
		l.floor = max(l.floor, e.Word.Floor)
	}
	if l.stage == Resting || e.Word.ID != l.id || !slices.Contains(l.c.Members, e.Member) {
		return nil
	}
	switch {
	case e.Word.Kind == cutword.Refused:
		return l.giveUp(now, fmt.Sprintf("the VRA of stream %s: %s", e.Member, e.Word.Why))
	case e.Word.Kind == cutword.Placed && l.stage == Awaiting, e.Word.Kind == cutword.Held && l.stage == Releasing:
		l.heard[e.Member] = true
	default:
		return nil
	}
	all := len(l.heard) == len(l.c.Members)
	switch {
	case l.stage == Awaiting && (all || invariant.Planted("cut/release-early")):
		l.stage, l.began = Releasing, now
		clear(l.heard)
		said := l.sayAll(cutword.Word{Kind: cutword.Release})
		if invariant.Planted("cut/confirm-without-held") {
			said = append(said, l.sayAll(cutword.Word{Kind: cutword.Confirm})...)
		}
		return said
	case l.stage == Releasing && all:
		l.rest(now)
		l.stage, l.trouble = Resting, ""
		l.stats.Confirmed++
		if l.c.Auto && !l.served {
			l.served, l.mine[0] = true, l.id.Number
		}
		return l.sayAll(cutword.Word{Kind: cutword.Confirm})
	}
	return nil
}

// giveUp voids the cut under way.
func (l *Leader) giveUp(now time.Time, why string) []Say {
	l.rest(now)
	l.stage, l.trouble = Resting, why
	l.stats.Void++
	return l.sayAll(cutword.Word{Kind: cutword.Void})
}

// rest sets when the next cut may begin: the members were held since it was placed, or as long as they can be.
func (l *Leader) rest(now time.Time) {
	l.tries++
	spread := time.Duration((uint64(l.c.Me)+l.tries)*0x9e3779b97f4a7c15>>40%retrySpread) * time.Millisecond
	l.retry = now.Add(max(retryAfter+spread, restFor*min(now.Sub(l.placed), HoldMost)))
}

func (l *Leader) sayAll(w cutword.Word) (said []Say) {
	w.Group, w.ID = l.c.Group, l.id
	for _, m := range l.c.Members {
		if l.up[m] {
			said = append(said, Say{m, w})
		}
	}
	return said
}

// turn goes on to the next interval. One that nobody could look at, since the process was stopped, counts once.
func (l *Leader) turn(now time.Time) {
	switch {
	case !l.c.Auto:
	case l.grid.IsZero():
		l.grid = now
	case now.Sub(l.grid) >= l.c.Interval:
		if l.grid = l.grid.Add(l.c.Interval); now.Sub(l.grid) >= l.c.Interval {
			l.grid = now
		}
		l.stats.Intervals++
		l.served = false
		l.mine[0], l.mine[1] = 0, l.mine[0]
	}
}

// begin places a cut if one is due and can be.
func (l *Leader) begin(now time.Time, wall int64) []Say {
	if l.stage != Resting || !l.wanted && !(l.c.Auto && !l.served) || now.Before(l.retry) {
		return nil
	}
	for _, m := range l.c.Members {
		if !l.up[m] {
			l.trouble = fmt.Sprintf("the VRA of stream %s is not connected", m)
			l.retry = now.Add(retryAfter)
			return nil
		}
	}
	l.floor++
	l.id = cutword.ID{Leader: l.c.Me, Term: l.c.Term, Number: l.floor}
	l.stage, l.began, l.placed = Awaiting, now, now
	clear(l.heard)
	tag := ""
	if l.wanted {
		tag = l.tag
	}
	return l.sayAll(cutword.Word{Kind: cutword.Place, Members: cutword.Membership(l.c.Members), Wall: wall, Tag: tag})
}

package retain

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Checkpoints is what a plan asks of the list of checkpoints.
type Checkpoints interface {
	// Newest returns the newest checkpoint at or below number, and the newest good one;
	// 0: none.
	Newest(number uint64) (any, good uint64)
	// Next returns the first checkpoint above number, and the first good one; 0: none.
	Next(number uint64) (any, good uint64)
}

// State is how things stand with a group.
type State struct {
	Policy Policy
	Used   int64 // bytes of log, index and scratch
	Slack  int64 // bytes that may come in before the next plan is carried out
	// Short says that the store's disk, whatever the limit, has no space to spare and that
	// this group is to give some; Full, that there is none at all.
	Short, Full bool
	// Free is how much the disk has, and Wanted how much it should; 0: not known.
	Free, Wanted int64

	Now         time.Duration // of the group's Clock
	Ages        *Ages
	Checkpoints Checkpoints

	Gone     uint64 // every checkpoint below is gone
	Base     uint64 // the replica holds this checkpoint; 0: what came before all of them
	Listed   uint64 // the promotion limit
	Pinned   uint64 // the oldest pinned checkpoint; 0: none is
	TestView uint64 // the oldest checkpoint that a test view stands at; 0: there is none
	LiveView uint64 // and the oldest that any other view stands at
	Unread   string // a view of which nobody knows where it stands, and what to do; empty: none
	Held     string // why nothing more of the history may go; empty: it may
	Resync   bool   // one is open: nothing new is listed
	Stuck    string // why the last pass failed and no other is tried; empty: it is
}

// Decision is what is to be done. Its zero value is nothing.
type Decision struct {
	// Promote says to which checkpoint the replica is brought; every one below is to go.
	// 0: none.
	Promote uint64
	// Yield says that test views must end.
	Yield bool
	// Stop says that no data may be taken.
	Stop bool

	Level  Level
	Reason string // of any level but Plenty: what is the matter and what holds the space
}

// Level says how a group stands with its space.
type Level uint8

// The levels, each worse than the one before.
const (
	Plenty    Level = iota
	Warning         // more than the policy's part of the limit is taken
	Shortened       // the history is shorter than the policy asks, for want of space
	Stopped         // no data is taken
)

var levelNames = [...]string{"plenty", "warning", "shortened", "stopped"}

func (l Level) String() string { return levelNames[min(int(l), len(levelNames)-1)] }

// step is the part of the history that goes at once when space is short.
const step = 16

// Plan decides what is to be done about the group's history now.
func Plan(s State) (d Decision) {
	base := max(s.Base, s.Gone)
	ceiling, holder := s.ceiling()
	expired := s.best(min(s.Ages.Listed(s.Now-s.Policy.History), ceiling))
	if s.Now < s.Policy.History {
		expired = 0
	}
	if invariant.Planted("journal/retain/past-pin") {
		expired = s.best(s.Ages.Listed(s.Now - s.Policy.History))
	}
	tight := s.tight()
	switch {
	case s.Stuck != "":
	case s.Gone > s.Base: // a pass that was begun is finished
		d.Promote = s.Gone
		if s.Held == "" {
			d.Promote = max(s.Gone, expired)
		}
	case s.Held != "" && !invariant.Planted("journal/retain/held-goes"):
		d.Yield = tight && s.TestView != 0
	case expired > base && (tight || s.due(base)):
		d.Promote = expired
	case tight && s.TestView != 0 && !invariant.Planted("journal/retain/views-stay"):
		d.Yield = true
	case tight:
		d.Promote = s.shorter(base, ceiling)
	}
	s.judge(&d, tight, holder)
	return d
}

// due says whether enough of the history is over age for a pass: a pass writes a block
// once however often it was overwritten, so few long ones cost less than many short.
func (s *State) due(base uint64) bool {
	oldest, _ := s.Checkpoints.Next(max(base, 1) - 1)
	from, ok := s.Ages.Date(oldest)
	return ok && s.Now-from >= s.Policy.History+Lateness(s.Policy.History)
}

// Lateness is how much longer than the policy says a checkpoint may be kept.
func Lateness(history time.Duration) time.Duration {
	return max(time.Minute, min(history/64, 30*time.Minute))
}

// tight says whether something must give way before more comes in.
func (s *State) tight() bool {
	l := s.Policy.Limit
	return s.Full || s.Short || l > 0 && s.Used+min(s.Slack, l/4) >= l
}

// stopped says whether there is no room for anything more.
func (s *State) stopped() bool {
	l := s.Policy.Limit
	return s.Full || l > 0 && s.Used >= l
}

// ceiling is the checkpoint that no plan passes, and what holds it there.
func (s *State) ceiling() (number uint64, holder string) {
	_, number = s.Checkpoints.Newest(^uint64(0))
	holder = fmt.Sprintf("checkpoint %d is the last good one", number)
	if s.Resync {
		holder += " and a resync is open"
	}
	lower := func(n uint64, why string, args ...any) {
		if n < number {
			number, holder = n, fmt.Sprintf(why, args...)
		}
	}
	if m := s.Policy.Minimum; m > 0 && !invariant.Planted("journal/retain/no-minimum") {
		var floor uint64
		if s.Now >= m {
			floor = s.best(s.Ages.Listed(s.Now - m))
		}
		lower(floor, "a minimum of %s is kept", FormatDuration(m))
	}
	lower(s.Listed, "checkpoint %d is the newest that is known to be listed on every target", s.Listed)
	if s.Pinned != 0 {
		lower(s.Pinned, "checkpoint %d is pinned", s.Pinned)
	}
	if s.TestView != 0 {
		lower(s.TestView, "a test view stands at checkpoint %d", s.TestView)
	}
	if s.LiveView != 0 {
		lower(s.LiveView, "a view in use stands at checkpoint %d", s.LiveView)
	}
	if s.Unread != "" && !invariant.Planted("journal/retain/unread-passed") {
		number, holder = 0, s.Unread
	}
	return number, holder
}

// best is the newest good checkpoint at or below number; where none of them is good,
// the newest of them all: then no good one is lost.
func (s *State) best(number uint64) uint64 {
	any, good := s.Checkpoints.Newest(number)
	if good != 0 {
		return good
	}
	return any
}

// shorter is the checkpoint at which the history may begin to be shorter by a step: by
// at least one checkpoint, and at most to the ceiling; 0: it cannot.
func (s *State) shorter(base, ceiling uint64) uint64 {
	oldest, _ := s.Checkpoints.Next(base)
	if from, ok := s.Ages.Date(max(base, 1)); ok {
		held := s.Now - from
		newest, _ := s.Checkpoints.Newest(^uint64(0))
		first := max(base, oldest)
		to := s.Ages.Listed(from + held/step)
		if all := newest - min(first, newest); to > first+all/2 { // ages are not known well: by numbers
			to = first + all/step
		}
		if p := s.best(min(to, ceiling)); p > base {
			return p
		}
	}
	_, next := s.Checkpoints.Next(base)
	if next == 0 || next > ceiling { // no good one to begin at
		next = oldest
		if _, good := s.Checkpoints.Newest(ceiling); good != 0 {
			return 0
		}
	}
	if next != 0 && next <= ceiling {
		return next
	}
	return 0
}

// judge says how the group stands.
func (s *State) judge(d *Decision, tight bool, holder string) {
	p := s.Policy
	d.Stop = s.stopped()
	if d.Stop && invariant.Planted("journal/retain/no-stop") {
		d.Stop = false
	}
	space := fmt.Sprintf("%s of %s are taken", size(s.Used), size(p.Limit))
	if p.Limit == 0 || s.Full || s.Short && s.Used+s.Slack < p.Limit {
		space = "the disk is full"
		if !s.Full {
			space = "the disk is almost full"
		}
		if s.Wanted > 0 {
			space += fmt.Sprintf(": %s are free, %s are wanted", size(s.Free), size(s.Wanted))
		}
	}
	what := "history is being shortened"
	switch {
	case s.Stuck != "":
		what = s.Stuck
	case d.Yield:
		what = "test views give way"
	case s.Held != "" && d.Promote == 0:
		what = "nothing more can be given up: " + s.Held
	case d.Promote == 0:
		what = "nothing more can be given up: " + holder
	}
	switch {
	case d.Stop:
		d.Level, d.Reason = Stopped, fmt.Sprintf("no data is taken: %s; %s", space, what)
	case tight:
		d.Level, d.Reason = Shortened, space+"; "+what
	case s.Stuck != "":
		d.Level, d.Reason = Warning, s.Stuck
	case s.Unread != "":
		d.Level, d.Reason = Warning, "history is not shortened: "+s.Unread
	case p.Limit > 0 && s.Used >= p.Limit/100*int64(p.WarnPercent):
		d.Level, d.Reason = Warning, space
	}
}

// FormatSize writes bytes for people, without a fraction where there is none: 100 MiB.
func FormatSize(n int64) string { return strings.Replace(size(n), ".0 ", " ", 1) }

// size writes bytes for people.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i, f := 0, float64(n)
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

package scrub

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Kind says what a unit is.
type Kind uint8

// The kinds of units.
const (
	Segment Kind = iota + 1 // a closed segment of a log; ID.Number is its number, ID.Life its life
	Replica                 // a part of a replica; ID.Number is volume<<32 | part, ID.Life the group's lineage
)

// ID names something that is read as a whole.
type ID struct {
	Group  uint64
	Kind   Kind
	Number uint64
	Life   uint64
}

// Unit is something to be read.
type Unit struct {
	ID
	Bytes int64
}

// Policy says how soon and how fast. The zero Policy is the default.
type Policy struct {
	// Every is within what time everything is read; 0: 14 days, negative: nothing is.
	Every time.Duration
	// Most is how many bytes are read in a second at most; 0: 64 MiB.
	Most int64
}

const (
	defaultEvery = 14 * 24 * time.Hour
	defaultMost  = 64 << 20
	// least is the rate below which nothing is read: it ends sooner, and then rests.
	least = 1 << 20
	// retry is how long after a try that came to nothing another is made.
	retry = time.Hour
)

// Filled is p with its defaults.
func (p Policy) Filled() Policy {
	if p.Every == 0 {
		p.Every = defaultEvery
	}
	if p.Most <= 0 {
		p.Most = defaultMost
	}
	return p
}

// Step is what to do now.
type Step struct {
	Unit  int           // index of what to read; -1: nothing now
	Rate  int64         // bytes a second
	Wait  time.Duration // until something is due, when nothing is now; 0: not known
	Left  int64         // bytes of all that is to be read now, this one among it
	Units int           // and how many they are
}

// Plan chooses what is read next. asked, when not nil, says whether a unit is to be read at
// once because somebody wants it, and it was not read since: the book cannot tell, since
// what it says may be of an earlier run, whose clock was ahead of this one's.
func Plan(units []Unit, b *Book, p Policy, asked func(ID) bool, now time.Duration) Step {
	p = p.Filled()
	s := Step{Unit: -1}
	if p.Every < 0 {
		p.Every = 0 // only what is asked for
	}
	type due struct {
		unit  int
		at    time.Duration
		first bool // never read
		asked bool
	}
	var dues []due
	for i, u := range units {
		e, known := b.Get(u.ID, now)
		d := due{unit: i, at: e.At, first: !known || e.At == Never}
		d.asked = asked != nil && asked(u.ID)
		var wait time.Duration
		switch {
		case d.asked:
		case p.Every == 0:
			continue
		case !d.first:
			wait = max(e.At+p.Every/2, e.Tried+retry) - now
		case known:
			wait = e.Tried + retry - now
		}
		if wait > 0 && !d.asked {
			if s.Wait == 0 || wait < s.Wait {
				s.Wait = wait
			}
			continue
		}
		dues = append(dues, d)
		s.Left += u.Bytes
		s.Units++
	}
	if len(dues) == 0 {
		return s
	}
	s.Wait = 0
	slices.SortFunc(dues, func(a, b due) int {
		x, y := &units[a.unit], &units[b.unit]
		newest := cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(y.Number, x.Number))
		if invariant.Planted("journal/scrub/oldest-first") {
			newest = -newest
		}
		return cmp.Or(trueFirst(a.asked, b.asked), trueFirst(a.first, b.first), cmp.Compare(a.at, b.at), newest, cmp.Compare(x.Group, y.Group))
	})
	s.Unit = dues[0].unit
	sum := int64(0)
	for _, d := range dues {
		sum += units[d.unit].Bytes
		left := p.Every / 4
		if !d.first {
			left = d.at + p.Every*3/4 - now
		}
		if d.asked {
			left = 0
		}
		rate := float64(sum) / max(left, time.Minute).Seconds()
		if d.asked || rate >= float64(p.Most) {
			s.Rate = p.Most
			return s
		}
		s.Rate = max(s.Rate, int64(rate))
	}
	if invariant.Planted("journal/scrub/no-cap") {
		return s
	}
	s.Rate = min(max(s.Rate, least), p.Most)
	return s
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

package cut

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/cutword"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// HoldMost is how long a hold lasts, at most: filters keep to that by themselves.
	HoldMost = 2 * time.Millisecond
	// restFor is how many times its length a hold is followed by rest.
	restFor = 99
)

// Phase is where a member is in the cut that it has open.
type Phase uint8

// The phases of a member.
const (
	Idle     Phase = iota // none is open
	Placing               // told to take the ticket; Took follows
	Standing              // placed, its hold stands
	Ending                // the hold is being ended; Ended follows
	Holding               // held; Confirm may follow
)

func (p Phase) String() string {
	return [...]string{"idle", "placing", "standing", "ending", "holding"}[p]
}

// Link names whom a word came from, and goes to.
type Link uint64

// Member is one VRA's part in the cuts of a group. Step is not for concurrent use.
type Member struct {
	group   record.GroupID
	members uint64 // what cutword.Membership makes of them

	phase Phase
	from  Link
	id    cutword.ID
	until time.Time // Standing: when the hold is over by itself
	void  string    // Placing and Ending: why the cut is given up; empty while it is not

	floor uint64    // the highest number that was taken, or is listed
	rest  time.Time // no hold begins before
}

// MemberEvent is something that happened to a member.
type MemberEvent interface{ memberEvent() }

// The events of a member.
type (
	// Said says that a leader's word came over a link.
	Said struct {
		From Link
		Word cutword.Word
	}
	// Gone says that a link is no more.
	Gone struct{ From Link }
	// Took answers Take: Why the cut does not stand in the stream, empty if it does. If it does
	// not, no hold stands, and Held is for how long one did.
	Took struct {
		Why  string
		Held time.Duration
	}
	// Ended answers End: whether the hold held, to its end, and how long it lasted.
	Ended struct {
		Intact bool
		Held   time.Duration
	}
	// Broke says that the stream begins anew, or a resync opens: what is open will never be listed.
	Broke struct{ Why string }
	// Floor says that a number at or below it will not do.
	Floor struct{ Number uint64 }
	// Passed is time that passes; it comes at Until.
	Passed struct{}
)

func (Said) memberEvent()   {}
func (Gone) memberEvent()   {}
func (Took) memberEvent()   {}
func (Ended) memberEvent()  {}
func (Broke) memberEvent()  {}
func (Floor) memberEvent()  {}
func (Passed) memberEvent() {}

// MemberAction is something for a member's VRA to do, before the next.
type MemberAction interface{ memberAction() }

// The actions of a member.
type (
	// Take sets the hold word, then takes the cut's ticket and puts the cut into the stream, if
	// the group can be cut. Then Took.
	Take struct {
		ID   cutword.ID
		Wall int64
		Tag  string
	}
	// End clears the hold word, then reads broken and lost. Then Ended.
	End struct{}
	// Answer sends a word.
	Answer struct {
		To   Link
		Word cutword.Word
	}
	// Write puts the confirm into the stream.
	Write struct{ Number uint64 }
	// Drop says that the cut will never be confirmed here.
	Drop struct{ Number uint64 }
)

func (Take) memberAction()   {}
func (End) memberAction()    {}
func (Answer) memberAction() {}
func (Write) memberAction()  {}
func (Drop) memberAction()   {}

// NewMember returns a member of a group that has the given streams.
func NewMember(group record.GroupID, streams []record.StreamID) *Member {
	return &Member{group: group, members: cutword.Membership(streams)}
}

// Phase is where the member is now.
func (m *Member) Phase() Phase { return m.phase }

// Until is when Passed is to come; zero for not at all.
func (m *Member) Until() time.Time {
	if m.phase == Standing {
		return m.until
	}
	return time.Time{}
}

// Step takes what happened at now and returns what to do, in order. An action that has an
// answer is the last one.
func (m *Member) Step(now time.Time, e MemberEvent) []MemberAction {
	switch e := e.(type) {
	case Said:
		return m.said(now, e)
	case Took:
		return m.took(now, e)
	case Ended:
		return m.ended(now, e)
	case Gone:
		if e.From == m.from {
			return m.giveUp("the connection to the leader ended")
		}
	case Broke:
		return m.giveUp(e.Why)
	case Floor:
		m.floor = max(m.floor, e.Number)
	case Passed:
		if m.phase == Standing && !now.Before(m.until) {
			return m.giveUp("the hold's time was over before all had placed the cut")
		}
	}
	return nil
}

func (m *Member) said(now time.Time, e Said) []MemberAction {
	w := e.Word
	mine := m.phase != Idle && w.ID == m.id && e.From == m.from
	switch w.Kind {
	case cutword.Place:
		return m.place(now, e)
	case cutword.Release:
		if !mine || m.phase != Standing {
			return []MemberAction{m.refuse(e.From, w.ID, "no such cut is placed")}
		}
		m.phase = Ending
		return []MemberAction{End{}}
	case cutword.Confirm:
		if mine && m.phase == Holding || w.ID == m.id && invariant.Planted("cut/confirm-without-held") {
			m.phase = Idle
			return []MemberAction{Write{w.ID.Number}}
		}
	case cutword.Void:
		if mine {
			return m.giveUp("its leader gave the cut up")
		}
	}
	return nil
}

// place opens a cut, if it may. One that held and was never confirmed makes way.
func (m *Member) place(now time.Time, e Said) (as []MemberAction) {
	w, why := e.Word, ""
	switch {
	case w.Members != m.members:
		why = "the leader has other members: the file of one of the VRAs names others"
	case m.phase != Idle && m.phase != Holding:
		why = "another cut is open"
	case w.ID.Number <= m.floor && !invariant.Planted("cut/any-number"):
		why = "the number was used before"
	case now.Before(m.rest) && !invariant.Planted("cut/no-rest"):
		why = "guests were held a moment ago"
	}
	if why != "" {
		return []MemberAction{m.refuse(e.From, w.ID, why)}
	}
	if m.phase == Holding {
		as = m.giveUp("")
	}
	m.phase, m.from, m.id, m.void = Placing, e.From, w.ID, ""
	m.floor = max(m.floor, w.ID.Number)
	m.until = now.Add(HoldMost)
	return append(as, Take{ID: w.ID, Wall: w.Wall, Tag: w.Tag})
}

func (m *Member) took(now time.Time, e Took) []MemberAction {
	if m.phase != Placing {
		return nil
	}
	if e.Why != "" {
		m.phase = Idle
		m.held(now, e.Held)
		return []MemberAction{m.refuse(m.from, m.id, e.Why)}
	}
	if m.void != "" {
		m.phase = Ending
		return []MemberAction{End{}}
	}
	m.phase = Standing
	return []MemberAction{m.answer(cutword.Placed)}
}

func (m *Member) ended(now time.Time, e Ended) []MemberAction {
	if m.phase != Ending {
		return nil
	}
	m.held(now, e.Held)
	why := m.void
	if why == "" && !e.Intact && !invariant.Planted("cut/held-broken") {
		why = "a write was answered or dropped before all had placed the cut"
	}
	if why != "" {
		m.phase = Idle
		return []MemberAction{Drop{m.id.Number}, m.refuse(m.from, m.id, why)}
	}
	m.phase = Holding
	return []MemberAction{m.answer(cutword.Held)}
}

// giveUp ends what is open; a hold that stands is ended first.
func (m *Member) giveUp(why string) []MemberAction {
	switch m.phase {
	case Placing, Ending:
		if m.void == "" {
			m.void = why
		}
	case Standing:
		m.phase, m.void = Ending, why
		return []MemberAction{End{}}
	case Holding:
		m.phase = Idle
		return []MemberAction{Drop{m.id.Number}}
	}
	return nil
}

// held notes that a hold lasted so long, until now.
func (m *Member) held(now time.Time, d time.Duration) {
	m.rest = now.Add(restFor * min(d, HoldMost))
}

func (m *Member) answer(k cutword.Kind) Answer {
	return Answer{m.from, cutword.Word{Kind: k, Group: m.group, ID: m.id}}
}

func (m *Member) refuse(to Link, id cutword.ID, why string) Answer {
	return Answer{to, cutword.Word{Kind: cutword.Refused, Group: m.group, ID: id, Floor: m.floor, Why: why}}
}

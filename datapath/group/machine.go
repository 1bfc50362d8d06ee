package group

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// phase is where the group is in its life.
type phase uint8

const (
	idle      phase = iota // an incarnation is drawn and nothing of it placed
	beginning              // one is being begun
	syncing                // the opening boundary stands, what is dirty is read
	live                   // ordered capture alone
)

// Machine is one group at its source. Step and Status are not for concurrent use.
type Machine struct {
	interval time.Duration

	phase   phase
	life    uint64             // counts incarnations begun by this process
	opensAt record.Seq         // of the opening boundary
	mine    record.Incarnation // of this life
	covered uint64             // the count of lost that the last closed resync covered
	initial bool
	why     string // of the resync
	gave    bool   // the life before gave way
	spoiled string // why what the life before had on disk is lost; empty: it had not, or it is said

	link  link
	sense Sense

	taking  Boundary // a ticket is asked for or its boundary not placed; 0 for none
	tag     ask      // the wish that the cut being taken serves
	lastCut time.Time
	asked   []ask
	placed  map[uint64]ask // checkpoints placed for a wish, not yet listed
	listed  uint64         // highest checkpoint listed
	firstOK uint64         // first checkpoint of this protection; 0 until it is placed
	shared  bool           // several source VRAs have the group: none cuts by itself
	number  uint64         // of the shared cut being taken
	void    bool           // it will never be confirmed
	walkBad string         // why the last pass could not go on

	status Status
	calm   bool // the lag has come down since the state was last behind

	standby string // why the target takes nothing until its failover is over; empty: it is in none
	fenced  bool   // it was so since the last life began

	outdrawn bool // a higher incarnation than ours was let in at the target
	drawnOut bool // it was so since the last life began
	adopted  bool // since the last life began

	kept  bool // the life is that of a process that ended, and the target was not heard since
	short bool // the target stood where that life does not, so it was given up

	paused bool // nothing is sent
	rested bool // it was paused since the last life began
	retell bool // the target is to be told anew which volumes there are
	forced bool // what is marked, a user has asked to be sent again
}

type ask struct {
	id     uint64
	tag    string
	freeze record.Freeze
}

// link is the way to the target.
type link struct {
	session bool
	stood   bool
	asking  bool      // the target was asked where it stands, and has not answered
	reason  string    // why it does not stand
	doubt   string    // of the last refusal, until something is acknowledged
	refused bool      // the reason is the target's refusal
	retry   time.Time // when to ask again after a refusal
	next    time.Time // when a session is tried for again; zero before the first one failed
	lost    uint64    // what lost was when it ceased to stand
}

// New returns a machine that cuts every interval. drawn is the incarnation that
// this process drew: above every one that it knows of.
func New(interval time.Duration, drawn record.Incarnation, now time.Time) *Machine {
	m := &Machine{interval: interval, mine: drawn, placed: map[uint64]ask{}, calm: true}
	m.link.reason = "no session with the target yet"
	m.judge(now)
	return m
}

// Life is the present life; answers to actions of others are ignored.
func (m *Machine) Life() uint64 { return m.life }

// Whole says that ordered capture alone carries the group: what is captured is all
// that the target lacks, as long as nothing is lost.
func (m *Machine) Whole() bool { return m.phase == live }

// Idle says that nothing is sent and all that is marked will be: a Begin comes before anything else.
func (m *Machine) Idle() bool { return m.phase == idle }

// Syncing says that a resync is under way: from its beginning until a checkpoint
// after its end is listed.
func (m *Machine) Syncing() bool { return m.phase != idle && !m.Safe() }

// Safe says that a checkpoint was listed since the last resync closed.
func (m *Machine) Safe() bool { return m.phase == live && m.firstOK != 0 && m.listed >= m.firstOK }

// Step takes what happened at now and returns what to do, in order.
func (m *Machine) Step(now time.Time, e Event) []Action {
	as := m.step(now, e)
	as = append(as, m.next(now)...)
	m.judge(now)
	return as
}

func (m *Machine) step(now time.Time, e Event) []Action {
	switch e := e.(type) {
	case SessionUp:
		m.link.session, m.link.next = true, time.Time{}
		m.link.reason = "connected; the target is asked where it stands"
		return m.ask()
	case Drawn:
		if e.Life == m.life && m.phase == idle {
			m.mine = e.Incarnation
			if m.standby != "" {
				return nil // it asks now and then
			}
			return m.ask()
		}
	case SessionDown:
		m.unlink(e.Reason)
		m.link.next = now.Add(e.Next)
	case Kept:
		m.keep(e)
	case Refused:
		m.unlink("the target refuses: " + e.Text)
		m.link.session, m.link.refused, m.link.retry = true, true, now.Add(e.Retry)
		m.link.doubt = m.link.reason
		if e.Fenced { // which the target takes back by itself
			m.standby, m.fenced, m.link.doubt = e.Text, true, ""
		}
		if m.outdrawn = e.Outdrawn; m.outdrawn { // which it gets over by itself
			m.link.doubt = ""
		}
	case Adopted:
		m.link.doubt = ""
		if m.adopted = true; m.phase != idle && !m.link.asking {
			return m.giveUp()
		}
		return m.ask()
	case Granted:
		return m.granted()
	case Acked:
		m.link.doubt = ""
	case Stood:
		return m.stood(now, e)
	case Begun:
		if e.Life == m.life && m.phase == beginning {
			m.phase = syncing
			return []Action{Walk{Life: m.life}}
		}
	case Walked:
		return m.walked(e)
	case Taken:
		return m.taken(now, e)
	case Shared:
		return m.share(now, e)
	case SharedVoid:
		m.wasVoid(e.Number)
	case Placed:
		return m.wasPlaced(e)
	case Listed:
		return m.wasListed(e.Number)
	case CutAsked:
		m.asked = append(m.asked, ask{e.Ask, e.Tag, e.Freeze})
	case CutDropped:
		m.asked = slices.DeleteFunc(m.asked, func(a ask) bool { return a.id == e.Ask })
	case CutThawed:
		m.thawed(e.Ask)
	case GiveWay:
		return m.giveWay()
	case SpillLost:
		return m.spillLost(e.Reason)
	case Pause:
		m.paused = true
	case Unpause:
		if m.paused {
			m.paused = false
			return m.ask()
		}
	case Forced:
		m.forced = true
	case Retell:
		m.retell = true
	case Tick:
		m.sense = e.Sense
	}
	return nil
}

// keep goes on with the life of a process that ended. What it had placed and nobody was told of is nobody's wish any more.
func (m *Machine) keep(e Kept) {
	m.life++
	m.phase, m.opensAt, m.covered, m.kept = live, e.OpensAt, e.Covered, true
	m.initial, m.firstOK, m.listed = e.Initial, uint64(e.Since), e.Listed // a cut behind it has a higher number
	m.sense.Lost = e.Lost
	m.link.lost = e.Lost
}

// granted begins anew in the new epoch: nothing that was sealed is of it.
func (m *Machine) granted() []Action {
	m.standby, m.fenced = "", true
	m.link = link{session: m.link.session, reason: "the target is asked where it stands", lost: m.sense.Lost}
	if m.phase != idle {
		return m.giveUp()
	}
	return m.ask()
}

// giveWay ends the present life, as if the process had been restarted: the marks know all
// that its records held. One that has nothing in its window has nothing to give; while the
// target is asked where it stands, an answer for this life is under way.
func (m *Machine) giveWay() []Action {
	if m.phase != syncing && m.phase != live || m.link.asking {
		return nil
	}
	m.gave = !invariant.Planted("group/gives-way-in-silence")
	return m.giveUp()
}

// spillLost ends the present life as giveWay does: a stream without the records that are lost would have a gap.
func (m *Machine) spillLost(reason string) []Action {
	if m.phase == idle || m.link.asking {
		return nil
	}
	m.spoiled = reason
	return m.giveUp()
}

// giveUp ends the present life, and asks for a new one. Not while the target is asked where it
// stands: that would be answered for this life.
func (m *Machine) giveUp() []Action {
	m.reborn()
	if m.link.stood {
		m.link = link{session: true, reason: "the target is asked where it stands", doubt: m.link.doubt, lost: m.sense.Lost}
	}
	return []Action{Draw{Life: m.life}}
}

// ask asks the target where it stands, unless there is no session, nothing is to be sent, or
// it was asked.
func (m *Machine) ask() []Action {
	if !m.link.session || m.link.asking || m.paused {
		return nil
	}
	m.link.asking, m.retell = true, false
	return []Action{OpenStream{m.mine}}
}

// rest gives up what is under way once the group is paused.
func (m *Machine) rest() []Action {
	if m.phase == idle || m.link.asking {
		return nil
	}
	m.rested = true
	return append([]Action{CloseStream{}}, m.giveUp()...)
}

// unlink notes that the target cannot be sent to, and how lost stood then.
func (m *Machine) unlink(reason string) {
	if m.link.stood || m.link.reason == "" {
		m.link.lost = m.sense.Lost
	}
	m.link = link{reason: reason, lost: m.link.lost, doubt: m.link.doubt}
}

// stood decides from where the target stands: go on, begin what is drawn, or draw anew.
func (m *Machine) stood(now time.Time, e Stood) []Action {
	m.standby = ""
	if m.link.asking = false; m.paused && m.phase == idle {
		return []Action{CloseStream{}}
	}
	if e.Foreign {
		return m.step(now, Refused{Retry: 10 * time.Second, Text: "another VRA has sent this group, or this one did and has forgotten it: it is a clone, was restored from an older state, " +
			"or lost its data directory. Stop it where the other one is to go on; where that is gone for good, holdfast group adopt takes the group on again"})
	}
	if m.adopted && m.phase != idle { // it was asked for the life before
		return m.giveUp()
	}
	fresh := e.Durable == 0 && e.Incarnation == 0
	lost := e.Durable < e.Acked && !invariant.Planted("group/trust-a-target-that-lost")
	if m.phase != idle {
		switch {
		case lost || e.Durable+1 < m.opensAt: // what it lacks is gone here too
			m.reborn()
			m.link = link{session: true, reason: "the target has lost records that it had acknowledged", lost: m.sense.Lost}
			return []Action{Draw{Life: m.life}}
		case e.Durable+1 == m.opensAt && e.Incarnation != m.mine: // nothing of this life has arrived
		case e.Durable+1 > m.opensAt && e.Incarnation == m.mine && e.Durable <= e.Sealed:
		case m.kept: // its end did not come over the death of its process
			m.short = true
			return m.giveUp()
		default:
			return m.step(now, Refused{Text: "another source has written this stream; two must not", Retry: 10 * time.Second})
		}
		m.kept = false
		m.standing()
		return []Action{Resume{From: e.Durable + 1}}
	}
	b := Begin{Next: e.Durable + 1, Incarnation: m.mine, Initial: fresh || e.Unfinished, MarkAll: true}
	switch {
	case fresh && e.Acked > 0:
		b.Reason = "the target has lost everything"
	case fresh:
		b.Reason = "first synchronisation"
	case lost:
		b.Reason = "the target has lost records that it had acknowledged"
	case m.adopted && !e.Unfinished:
		b.Reason = "it was adopted: all of it is compared with what the target holds"
	case e.MarksNew:
		b.MarkAll, b.MarkUnknown = false, !invariant.Planted("group/host-crash-trusted")
		b.Reason = "the host restarted: what may have changed is compared"
	case m.fenced && !e.Unfinished:
		b.MarkAll, b.Reason = false, "a failover of it was rolled back, and what had changed is read again"
	case m.drawnOut && !e.Unfinished:
		b.MarkAll, b.Reason = false, "a later incarnation was let in at the target, and what had changed is read again"
	case m.gave:
		b.MarkAll, b.Reason = false, "its memory was needed by groups of higher priority, so what had changed is read again"
	case m.spoiled != "":
		b.MarkAll, b.Reason = false, "what waited on the spill disk could not be read back ("+m.spoiled+"), so what had changed is read again"
	case m.rested && !e.Unfinished:
		b.MarkAll, b.Reason = false, "it was paused, and what had changed is read again"
	case m.short && !e.Unfinished:
		b.MarkAll, b.Reason = false, "the source restarted, and what it kept ends before what the target has"
	case e.Unfinished:
		b.MarkAll, b.Reason = false, "first synchronisation, gone on with after a restart"
	default:
		b.MarkAll, b.Reason = false, "the source restarted"
	}
	m.reborn()
	m.gave, m.spoiled, m.rested, m.fenced, m.drawnOut, m.adopted, m.short = false, "", false, false, false, false, false
	m.standing()
	b.Life = m.life
	m.phase, m.initial, m.why, m.opensAt = beginning, b.Initial, b.Reason, b.Next
	return []Action{b, Resume{From: b.Next}}
}

func (m *Machine) standing() { m.link = link{session: true, stood: true, doubt: m.link.doubt} }

// reborn ends the present life: what was placed may not have arrived, so wishes are served again.
func (m *Machine) reborn() {
	m.life++
	m.phase, m.listed, m.firstOK, m.walkBad, m.kept = idle, 0, 0, "", false
	m.asked = append(m.askOf(), m.asked...)
	for _, a := range m.placed {
		m.asked = append(m.asked, a)
	}
	clear(m.placed)
	slices.SortFunc(m.asked, func(a, b ask) int { return cmp.Compare(a.id, b.id) })
	m.taking = 0
}

// walked closes the resync when nothing is left, and walks again when something is.
func (m *Machine) walked(e Walked) []Action {
	if e.Life != m.life || m.phase != syncing {
		return nil
	}
	m.taking, m.walkBad = 0, e.Trouble
	switch {
	case e.Trouble != "":
		return []Action{Walk{Life: m.life, After: time.Second}}
	case e.Left > 0:
		return []Action{Walk{Life: m.life}}
	}
	m.taking = Close
	return []Action{Take{Life: m.life, Kind: Close}}
}

// taken decides whether the boundary whose ticket was taken stands.
func (m *Machine) taken(now time.Time, e Taken) []Action {
	if e.Life != m.life || e.Kind != m.taking {
		return []Action{Void{e.Kind}}
	}
	m.sense.Lost = max(m.sense.Lost, e.Lost) // the last tick's is older
	p := Place{Life: m.life, Kind: e.Kind}
	switch e.Kind {
	case Open:
		p.Reason = m.why
	case Close:
		if (e.Lost != e.Before || e.Left > 0) && !invariant.Planted("group/close-over-loss") {
			m.taking = 0
			return []Action{Void{Close}, Walk{Life: m.life}}
		}
		p.Cover = e.Before
	case Cut:
		if e.Lost != m.covered && !invariant.Planted("group/cut-over-loss") {
			m.taking = 0
			m.asked = append(m.askOf(), m.asked...)
			return []Action{Void{Cut}} // next opens the resync
		}
		m.lastCut = now
		p.Ask, p.Tag, p.Freeze = m.tag.id, m.tag.tag, m.tag.freeze
		m.tag.freeze = ended(m.tag.freeze) // another one for the same wish comes after the thaw
	}
	if p.Kind == Close {
		m.covered = p.Cover
	}
	return []Action{p}
}

// thawed has a wish be served by a cut that says that the freeze failed.
func (m *Machine) thawed(id uint64) {
	if m.tag.id == id {
		m.tag.freeze = ended(m.tag.freeze)
	}
	for i := range m.asked {
		if m.asked[i].id == id {
			m.asked[i].freeze = ended(m.asked[i].freeze)
		}
	}
}

// ended is a freeze that is over before the cut.
func ended(f record.Freeze) record.Freeze {
	if f == record.Frozen && !invariant.Planted("group/frozen-for-ever") {
		return record.FreezeFailed
	}
	return f
}

// askOf is the wish that the cut being taken serves, if any, taken back.
func (m *Machine) askOf() []ask {
	a := m.tag
	m.tag = ask{}
	if a.id == 0 {
		return nil
	}
	return []ask{a}
}

func (m *Machine) wasPlaced(e Placed) []Action {
	if e.Life != m.life || e.Kind != m.taking {
		return nil
	}
	m.taking = 0
	switch e.Kind {
	case Open:
		m.phase = syncing
		return []Action{Walk{Life: m.life}}
	case Close:
		m.phase, m.firstOK, m.forced = live, 0, false
		m.lastCut = time.Time{} // cut at once
	case Cut:
		if m.firstOK == 0 {
			m.firstOK = e.Number
		}
		if m.tag.id != 0 {
			m.placed[e.Number] = m.tag
			m.tag = ask{}
		}
		if m.void {
			m.wasVoid(e.Number)
		}
	}
	return nil
}

// wasListed answers who asked for that checkpoint. Who asked for an older one that nobody
// was told of gets another: a target is silent about those that are bad.
func (m *Machine) wasListed(number uint64) []Action {
	m.listed = max(m.listed, number)
	var as []Action
	for n, a := range m.placed {
		switch {
		case n == number || n < number && invariant.Planted("group/older-is-listed"):
			as = append(as, Answer{Ask: a.id, Number: n})
		case n < number: // a target lists in order: it is bad there, or word of it was lost
			m.asked = append(m.asked, a)
		default:
			continue
		}
		delete(m.placed, n)
	}
	slices.SortFunc(m.asked, func(a, b ask) int { return cmp.Compare(a.id, b.id) })
	slices.SortFunc(as, func(a, b Action) int { return cmp.Compare(a.(Answer).Number, b.(Answer).Number) })
	return as
}

// next is what is due by itself: a resync when something was lost, a cut when it
// is time, the question again after a refusal.
func (m *Machine) next(now time.Time) []Action {
	var as []Action
	if m.link.refused && !m.link.retry.IsZero() && !now.Before(m.link.retry) {
		m.link.retry = time.Time{}
		if m.outdrawn && !m.paused && !invariant.Planted("group/locked-out") {
			m.outdrawn, m.drawnOut = false, true
			m.reborn()
			return append(as, Draw{Life: m.life, Beyond: true})
		}
		as = append(as, m.ask()...)
	}
	if m.paused && !invariant.Planted("group/pause-forgotten") {
		return append(as, m.rest()...)
	}
	if m.standby != "" && m.phase != idle && !m.link.asking && !invariant.Planted("group/standby-goes-on") {
		return append(as, m.giveUp()...)
	}
	if m.retell && m.link.stood {
		as = append(as, m.ask()...)
	}
	if m.phase != live || m.taking != 0 {
		return as
	}
	if m.sense.Lost != m.covered && !invariant.Planted("group/cut-over-loss") {
		m.initial = m.initial && !m.Safe() // a first sync is over when something can be restored
		m.why = m.marked()
		m.taking = Open
		return append(as, Take{Life: m.life, Kind: Open})
	}
	if m.shared {
		return as
	}
	if len(m.asked) > 0 {
		m.tag, m.asked = m.asked[0], m.asked[1:]
	} else if now.Sub(m.lastCut) < m.interval {
		return as
	}
	m.taking = Cut
	return append(as, Take{Life: m.life, Kind: Cut})
}

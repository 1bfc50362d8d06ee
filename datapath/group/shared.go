package group

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Share says that several source VRAs have the group: cuts come from outside, as Shared. It
// is called once, before the first Step.
func (m *Machine) Share() { m.shared = true }

// CanCut says why no ticket of a shared cut may be taken now; empty if one may.
func (m *Machine) CanCut() string {
	switch {
	case m.paused:
		return "the group is paused here"
	case m.phase != live, m.taking == Open:
		return "a resync is open here"
	case m.taking != 0:
		return "what was cut before is not in the stream yet"
	case !m.link.stood:
		return "the target is not reached from here"
	case m.sense.Lost != m.covered:
		return "changes were marked and not captured here"
	}
	return ""
}

// Wanted tells of the first who waits for a checkpoint that is not cut yet, if there is one.
func (m *Machine) Wanted() (tag string, any bool) {
	if len(m.asked) == 0 {
		return "", false
	}
	return m.asked[0].tag, true
}

// OpensAt is the seq of the record with which the present life began; 0 before the first.
func (m *Machine) OpensAt() record.Seq { return m.opensAt }

// share decides whether the shared cut whose ticket was taken stands.
func (m *Machine) share(now time.Time, e Shared) []Action {
	m.sense.Lost = max(m.sense.Lost, e.Lost)
	if m.CanCut() != "" && !invariant.Planted("group/shared-over-loss") {
		return []Action{Void{Cut}} // next opens the resync
	}
	m.taking, m.number, m.void, m.lastCut = Cut, e.Number, false, now
	if tag, any := m.Wanted(); e.Mine && any && tag == e.Tag {
		m.tag, m.asked = m.asked[0], m.asked[1:]
	}
	return []Action{Place{Life: m.life, Kind: Cut, Number: e.Number, Wall: e.Wall, Ask: m.tag.id, Tag: e.Tag}}
}

// wasVoid serves again whoever the cut was to serve.
func (m *Machine) wasVoid(number uint64) {
	if a, placed := m.placed[number]; placed {
		delete(m.placed, number)
		m.asked = append(m.asked, a)
		slices.SortFunc(m.asked, func(a, b ask) int { return cmp.Compare(a.id, b.id) })
		return
	}
	m.void = m.taking == Cut && m.number == number
}

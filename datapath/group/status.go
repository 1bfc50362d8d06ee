package group

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// State is the word that a user reads.
type State string

// The states that a group at its source can be in for now.
const (
	InitialSync  State = "initial-sync"
	Protected    State = "protected"
	Behind       State = "behind"
	Spilling     State = "spilling"
	MarksOnly    State = "marks-only"
	Resync       State = "resync"
	Disconnected State = "disconnected"
	Paused       State = "paused"
	Standby      State = "standby"
	Error        State = "error"
)

// Status is a state with its reason, a sentence for an operator, and since when it is so.
type Status struct {
	State  State
	Reason string
	Since  time.Time
}

// Status is how the group stood after the last Step.
func (m *Machine) Status() Status { return m.status }

// judge says what state the group is in; the worst that is true is said.
func (m *Machine) judge(now time.Time) {
	state, reason := m.state(now)
	if state != m.status.State {
		m.status.Since = now
	}
	m.status.State, m.status.Reason = state, reason
}

func (m *Machine) state(now time.Time) (State, string) {
	switch {
	case m.paused:
		return Paused, "somebody asked for it; changes are only marked, and no checkpoint is made until it is resumed"
	case m.standby != "":
		return Standby, "changes are only marked, and nothing is sent: " + m.standby
	case m.link.refused:
		return Error, m.link.reason
	case m.sense.Trouble != "":
		return Error, m.sense.Trouble
	case m.link.stood && m.link.doubt != "":
		return Error, m.link.doubt
	case !m.link.stood && m.phase != idle && m.sense.Lost != m.link.lost:
		return MarksOnly, "changes are only marked, they are sent when the target is back: " + m.unlinked(now) + m.noSpill()
	case m.gave && m.phase == idle:
		return MarksOnly, "changes are only marked, its memory is needed by groups of higher priority: " + m.unlinked(now)
	case m.spoiled != "" && m.phase == idle:
		return MarksOnly, "changes are only marked, what waited on the spill disk cannot be read back (" + m.spoiled + "): " + m.unlinked(now)
	case !m.link.stood && m.spills():
		return Spilling, m.onDisk() + ": " + m.unlinked(now)
	case !m.link.stood:
		return Disconnected, m.unlinked(now)
	case m.phase == idle || m.phase == beginning || m.phase == syncing:
		why := m.why + m.hindrance()
		if m.spills() {
			why += "; " + m.onDisk()
		}
		return m.sync(), why
	case !m.Safe():
		return m.sync(), "everything was read; a checkpoint is listed once the target has it all" + m.uncut()
	case m.sense.Lost != m.covered:
		return Resync, m.marked() + m.noSpill()
	case m.spills():
		m.calm = false // what is left when the disk is, is behind
		return Spilling, fmt.Sprintf("%s: the oldest write not yet safe is %.1f s old", m.onDisk(), m.sense.Lag.Seconds())
	case m.behind():
		why := fmt.Sprintf("the oldest write not yet safe is %.1f s old, cuts are made every %s", m.sense.Lag.Seconds(), m.interval)
		if m.sense.Full {
			why += "; the memory it may use is full, soon changes are only marked" + m.noSpill()
		}
		return Behind, why
	case m.sense.NoCut != "" && !invariant.Planted("group/uncut-unsaid"):
		return Behind, "no checkpoint came about for longer than two intervals: " + m.sense.NoCut
	}
	return Protected, ""
}

// spills says that records of this life wait on disk.
func (m *Machine) spills() bool {
	return m.sense.OnDisk > 0 && m.phase != idle && !invariant.Planted("group/spills-in-silence")
}

// onDisk says how much waits there.
func (m *Machine) onDisk() string {
	return fmt.Sprintf("%d MiB of what waits are kept on disk, since the memory for them is used up", (m.sense.OnDisk+1<<20-1)>>20) + m.noSpill()
}

// noSpill says why no more goes there.
func (m *Machine) noSpill() string {
	if m.sense.NoSpill == "" {
		return ""
	}
	return "; the spill takes no more: " + m.sense.NoSpill
}

// unlinked says why the target cannot be sent to, and what is done about it. The error
// may be older than what is wrong now: an attempt that is under way says nothing yet.
func (m *Machine) unlinked(now time.Time) string {
	switch wait := m.link.next.Sub(now); {
	case m.link.next.IsZero():
		return m.link.reason
	case wait > 0:
		return fmt.Sprintf("reconnecting, next try in %d s; the last one ended with: %s", (wait+time.Second-1)/time.Second, m.link.reason)
	}
	return "connecting; the last try ended with: " + m.link.reason
}

// marked says why something is marked and not captured.
func (m *Machine) marked() string {
	if m.forced {
		return "somebody asked for all of it to be sent again"
	}
	return "changes were marked and not captured: the buffers were full, or a disk has grown"
}

func (m *Machine) sync() State {
	if m.initial {
		return InitialSync
	}
	return Resync
}

func (m *Machine) hindrance() string {
	if m.walkBad == "" {
		return ""
	}
	return "; it waits: " + m.walkBad
}

func (m *Machine) uncut() string {
	if m.sense.NoCut == "" {
		return ""
	}
	return "; none comes about: " + m.sense.NoCut
}

// behind is entered at two intervals of lag and left at one, so that it does not flap.
func (m *Machine) behind() bool {
	switch {
	case m.sense.Lag > 2*m.interval:
		m.calm = false
	case m.sense.Lag <= m.interval && !m.sense.Full:
		m.calm = true
	}
	return !m.calm || m.sense.Full
}

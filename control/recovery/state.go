package recovery

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Phase of a job.
type Phase string

// The phases.
const (
	Starting Phase = "starting"
	Running  Phase = "running"
	Ending   Phase = "ending"
	Over     Phase = "over"
)

// Verdict on a job.
type Verdict string

// The verdicts.
const (
	NoVerdict  Verdict = ""
	Passed     Verdict = "passed"
	Failed     Verdict = "failed"
	Cancelled  Verdict = "cancelled"
	Committed  Verdict = "committed"
	RolledBack Verdict = "rolled-back"
)

// State of a job. The zero state is not valid: see Fresh.
type State struct {
	Phase   Phase   `json:"phase"`
	At      int     `json:"at"`      // the next step of the phase
	Reached int     `json:"reached"` // the last step of the way up that was begun
	End     End     `json:"end,omitempty"`
	Verdict Verdict `json:"verdict,omitempty"` // also while it is ending: what it will be
	Amiss   bool    `json:"amiss,omitempty"`   // something failed that a live failover goes on without
	Halted  bool    `json:"halted,omitempty"`  // a step to the end failed, and waits for somebody to try again
}

// Fresh is the state of a job of which nothing was done.
func Fresh() State { return State{Phase: Starting} }

// Event is what may happen to a job.
type Event string

// The events.
const (
	Did     Event = "did"    // the next step
	Failing Event = "failed" // the next step
	Resume  Event = "resume" // somebody carries the job on
	Cancel  Event = "cancel" // while it is starting
	Halt    Event = "stop"   // a test
	Reject  Event = "fail"   // a test: it is stopped, and what runs on the machines was not as it should be
	Final   Event = "commit"
	Undo    Event = "rollback"
)

// Met says whether a job that ended so is what a user's word asks for.
func (e Event) Met(v Verdict) bool {
	switch e {
	case Final:
		return v == Committed
	case Undo:
		return v == RolledBack || v == Cancelled
	case Reject:
		return v == Failed
	}
	return v == Passed || v == Cancelled
}

// Next is the step to carry out; there is none while a job waits for somebody's word, and when it is over.
func (p *Plan) Next(s State) (Step, bool) {
	var steps []Step
	switch {
	case s.Halted:
	case s.Phase == Starting:
		steps = p.Up()
	case s.Phase == Ending:
		steps = p.down(s)
	}
	if s.At < len(steps) {
		return steps[s.At], true
	}
	return Step{}, false
}

// soft says whether a live failover goes on without the step: its machines run, and that counts. No job fails for a picture.
func soft(v Verb) bool { return v == Wait || v == Picture || v == After }

// Refused says why an event is not for a job in this state.
type Refused struct {
	Event Event
	State State
	Next  string // what would be
}

func (r *Refused) Error() string {
	text := fmt.Sprintf("it is %s", r.State.Phase)
	if r.State.Phase == Over {
		text = "it is over: " + string(r.State.Verdict)
	}
	if r.Next != "" {
		text += ": " + r.Next
	}
	return text
}

// Step is the state after an event, or a *Refused and the same state.
func (p *Plan) Step(s State, e Event) (State, error) {
	refuse := func(next string) (State, error) { return s, &Refused{e, s, next} }
	if e == Resume { // of anything
		s.Halted = false
		return s, nil
	}
	switch s.Phase {
	case Starting:
		return p.starting(s, e, refuse)
	case Running:
		switch {
		case e == Halt && !p.Kind.Fences():
			return p.ending(s, Rollback, Passed), nil
		case e == Reject && !p.Kind.Fences():
			return p.ending(s, Rollback, Failed), nil
		case e == Final && p.Kind.Fences():
			return p.ending(s, Commit, Committed), nil
		case e == Undo && p.Kind.Fences():
			return p.ending(s, Rollback, RolledBack), nil
		case p.Kind.Fences():
			return refuse("commit it or roll it back")
		}
		return refuse("stop it")
	case Ending:
		return p.moving(s, e, refuse)
	}
	return refuse("")
}

func (p *Plan) starting(s State, e Event, refuse func(string) (State, error)) (State, error) {
	step, ok := p.Next(s)
	if !ok && !s.Halted {
		panic("BUG: starting, and nothing is left to do")
	}
	if p.Kind.OneWay() {
		return p.oneWay(s, e, refuse)
	}
	switch e {
	case Did:
		return p.forward(s), nil
	case Failing:
		if step.Do == Picture || p.Kind.Fences() && soft(step.Do) {
			s.Amiss = true
			return p.forward(s), nil
		}
		return p.ending(s, Rollback, Failed), nil
	case Cancel, Undo, Halt:
		return p.ending(s, Rollback, Cancelled), nil
	case Reject:
		if !p.Kind.Fences() {
			return p.ending(s, Rollback, Failed), nil
		}
	}
	return refuse("wait until its machines run")
}

// oneWay is a job on its way that has no way back, and needs none: at each step of a reversal both sites have what they had, or more, and
// machines that move onto plain disks find the same on both.
// What fails, or is interrupted, waits for somebody to carry it on.
func (p *Plan) oneWay(s State, e Event, refuse func(string) (State, error)) (State, error) {
	switch e {
	case Did:
		if s.Halted {
			return refuse("resume it")
		}
		return p.forward(s), nil
	case Failing, Cancel:
		s.Halted = true
		return s, nil
	}
	if p.Kind == Plain {
		return refuse("machines do not move back: carry it on with failover resume")
	}
	return refuse("a reversal is not taken back: carry it on with failover resume; a move, and another reversal, bring the group back")
}

// forward is the state after the next step of the way up.
func (p *Plan) forward(s State) State {
	s.At++
	if n := len(p.Up()); s.At < n {
		s.Reached = s.At
		return s
	}
	if p.Kind.OneWay() {
		s.Phase, s.At, s.Verdict = Over, 0, Passed
		return s
	}
	if p.Kind == Proof {
		return p.ending(s, Rollback, Passed)
	}
	s.Phase, s.At = Running, 0
	return s
}

// ending is the state in which it goes to that end; over at once where nothing was begun that
// must be undone.
func (p *Plan) ending(s State, end End, v Verdict) State {
	if s.Phase == Running || s.At >= len(p.Up()) {
		s.Reached = len(p.Up()) - 1
	}
	s.Phase, s.At, s.End, s.Verdict = Ending, 0, end, v
	if invariant.Planted("recovery/forget-last") {
		s.Reached--
	}
	if len(p.down(s)) == 0 {
		s.Phase = Over
	}
	return s
}

// moving is a job on its way to its end.
func (p *Plan) moving(s State, e Event, refuse func(string) (State, error)) (State, error) {
	switch e {
	case Did:
		if s.Halted {
			return refuse("resume it")
		}
		if s.At++; s.At >= len(p.down(s)) {
			s.Phase, s.At = Over, 0
		}
		return s, nil
	case Failing:
		if step, ok := p.Next(s); ok && step.Do == Picture {
			return p.moving(s, Did, refuse) // what shows nothing is stopped all the same
		}
		s.Halted = !invariant.Planted("recovery/never-halts")
		if !s.Halted { // as if it had been done
			return p.moving(s, Did, refuse)
		}
		return s, nil
	case Cancel, Halt, Undo:
		if s.End == Rollback {
			return s, nil // it does so already
		}
		if s.Halted && e == Undo { // it does not go: its timer may have been quicker
			s.Halted = false
			return p.ending(s, Rollback, RolledBack), nil
		}
		return refuse("it is being committed")
	case Reject:
		if p.Kind.Fences() {
			return refuse("it is no test")
		}
		s.Verdict = Failed
		return s, nil
	case Final:
		if s.End == Commit {
			return s, nil
		}
		return refuse("it is being taken back")
	}
	return refuse("")
}

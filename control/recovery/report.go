package recovery

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Entry is a line of a job's file.
type Entry struct {
	Time time.Time `json:"time"`
	// Plan stands in the first entry, alone.
	Plan *Plan `json:"plan,omitempty"`
	// Began is the step that is carried out from now on.
	Began *Step `json:"began,omitempty"`
	// Event is what happened; Did and Failing are of Step.
	Event Event  `json:"event,omitempty"`
	Step  *Step  `json:"step,omitempty"`
	Who   string `json:"who,omitempty"`
	// Asked is of a Cancel: a user wanted it; else whoever carried the job out was ended, or had been killed.
	Asked bool `json:"asked,omitempty"`
	// Text is what it found or said, or why it failed.
	Text string `json:"text,omitempty"`
	Note string `json:"note,omitempty"`
	// Checkpoint that a last cut made, or that was opened.
	Checkpoint string `json:"checkpoint,omitempty"`
	// View is the target's name of the disks that were opened.
	View string `json:"view,omitempty"`
	// File beside the job's, of a picture.
	File string `json:"file,omitempty"`
}

// Replay is the state that entries lead to, and what was found out on the way.
func Replay(entries []Entry) (*Plan, State, error) {
	if len(entries) == 0 || entries[0].Plan == nil {
		return nil, State{}, errors.New("the job has no plan")
	}
	p, s := entries[0].Plan, Fresh()
	if len(p.Machines) == 0 && p.Reversal == nil {
		return nil, s, errors.New("the job's plan has no machines")
	}
	for i, e := range entries[1:] {
		if e.Event == "" {
			continue
		}
		if e.Step != nil {
			if next, ok := p.Next(s); !ok || next != *e.Step {
				return p, s, fmt.Errorf("entry %d is of %s %s, which is not its turn", i+2, e.Step.Do, e.Step.Machine)
			}
		}
		var err error
		if s, err = p.Step(s, e.Event); err != nil {
			return p, s, fmt.Errorf("entry %d: %w", i+2, err)
		}
	}
	return p, s, nil
}

// TakenBack says of a job that was cancelled when a user had it taken back; false: none had.
func TakenBack(entries []Entry) (at time.Time, asked bool) {
	if _, s, err := Replay(entries); err != nil || s.Verdict != Cancelled {
		return at, false
	}
	for _, e := range entries[1:] {
		switch e.Event {
		case Cancel:
			return e.Time, e.Asked
		case Undo, Halt:
			return e.Time, true
		}
	}
	return at, false
}

// Report is what is told of a job; its JSON is kept for ever.
type Report struct {
	ID         string   `json:"id"`
	Kind       Kind     `json:"kind"`
	Group      string   `json:"group"`
	Checkpoint string   `json:"checkpoint"`
	State      string   `json:"state"` // starting, running, ending, halted, over
	Verdict    *Verdict `json:"verdict"`
	Reason     *string  `json:"reason"` // why it failed or halted
	Who        string   `json:"who"`
	Began      string   `json:"began"`
	Ended      *string  `json:"ended"`
	Seconds    float64  `json:"seconds"` // from its begin to its end, or to now
	// Ready is how long it took until all machines were up; null when they were not.
	Ready    *float64     `json:"ready_seconds"`
	View     *string      `json:"view"`
	Override *string      `json:"override"` // why the source was not stopped: two copies may live
	Note     *string      `json:"note"`
	Machines []string     `json:"machines"`
	Steps    []ReportStep `json:"steps"`
	Words    []ReportWord `json:"words"` // what users said
	Files    []string     `json:"files"` // pictures, beside the report
	// SourceOff are the source's machines that a job turned off which was taken back: nobody starts them again. Of SourceUnsure
	// nobody knows: their stop was begun, and did not end well.
	SourceOff    []string `json:"source_off"`
	SourceUnsure []string `json:"source_unsure"`
}

// ReportStep is a step that was carried out.
type ReportStep struct {
	Do      Verb    `json:"do"`
	Machine *string `json:"machine"`
	Began   string  `json:"began"`
	Seconds float64 `json:"seconds"`
	Result  string  `json:"result"` // done, failed, or unknown: whoever carried it out was killed
	Text    *string `json:"text"`
}

// ReportWord is something that a user asked of the job.
type ReportWord struct {
	Time string  `json:"time"`
	Who  string  `json:"who"`
	Word Event   `json:"word"`
	Note *string `json:"note"`
}

const timeFormat = "2006-01-02T15:04:05.000Z"

func stamp(t time.Time) string { return t.UTC().Format(timeFormat) }

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// NewReport tells of a job as it stands now.
func NewReport(entries []Entry, now time.Time) (*Report, error) {
	p, s, err := Replay(entries)
	if err != nil {
		return nil, err
	}
	first := entries[0].Time
	r := &Report{ID: p.ID, Kind: p.Kind, Group: p.Group, Checkpoint: p.Checkpoint, State: string(s.Phase), Who: p.Who, Began: stamp(first),
		Override: orNil(p.Override), Note: orNil(p.Note), Machines: []string{}, Steps: []ReportStep{}, Words: []ReportWord{}, Files: []string{}, SourceOff: []string{}, SourceUnsure: []string{}}
	for _, m := range p.Machines {
		r.Machines = append(r.Machines, m.Name)
	}
	if s.Halted {
		r.State = "halted"
	}
	r.Seconds = now.Sub(first).Seconds()
	if s.Verdict != NoVerdict {
		r.Verdict = &s.Verdict
	}
	defer func() {
		if p.Kind.OneWay() && s.Phase == Over {
			r.Reason = nil // what failed was done later
		}
	}()
	if s.Verdict == Failed || s.Verdict == Cancelled || s.Verdict == RolledBack {
		r.SourceOff, r.SourceUnsure = stopped(entries)
	}
	state := Fresh()
	for i, e := range entries[1:] {
		if e.Event != "" {
			before := state.Phase
			if state, err = p.Step(state, e.Event); err != nil {
				return nil, err
			}
			if before == Starting && (state.Phase == Running || state.Phase == Ending && state.Verdict == Passed) {
				ready := e.Time.Sub(first).Seconds()
				r.Ready = &ready
			}
			if state.Phase == Over && (before != Over || invariant.Planted("recovery/ends-again")) { // words after that are no end
				r.Ended, r.Seconds = orNil(stamp(e.Time)), e.Time.Sub(first).Seconds()
			}
		}
		r.tell(entries[1:], i, now)
	}
	return r, nil
}

// WasOff is what a StopSource says that found its machine off, and turned nothing off.
const WasOff = "it was off already"

// stopped are the source's machines that were turned off, and those of which that is not known, in the order in which it was begun. One that
// was off before is none of them, unless an earlier try may have turned it off.
func stopped(entries []Entry) (off, unsure []string) {
	off, unsure = []string{}, []string{}
	tries := map[string]int{}
	for _, e := range entries[1:] {
		switch {
		case e.Began != nil && e.Began.Do == StopSource:
			name := e.Began.Machine
			if tries[name]++; tries[name] == 1 {
				unsure = append(unsure, name)
			}
		case e.Event == Did && e.Step.Do == StopSource:
			name := e.Step.Machine
			if e.Text != WasOff || tries[name] > 1 {
				off = append(off, name)
			}
			unsure = slices.DeleteFunc(unsure, func(other string) bool { return other == name })
		}
	}
	return off, unsure
}

const unlessElse = "unless another failover of the group runs its machines (see holdfast failover list)"

// Source says what a user has to do about the source's machines of a job that was taken back; empty: nothing.
func (r *Report) Source() string {
	var parts []string
	if len(r.SourceOff) > 0 {
		parts = append(parts, fmt.Sprintf("the source's machines %s are off: start them there, "+unlessElse, strings.Join(r.SourceOff, " ")))
	}
	if len(r.SourceUnsure) > 0 {
		parts = append(parts, fmt.Sprintf("whether the source's machines %s are off is not known: look, and start them there, "+unlessElse, strings.Join(r.SourceUnsure, " ")))
	}
	return strings.Join(parts, "; ")
}

// tell adds what entry i says.
func (r *Report) tell(entries []Entry, i int, now time.Time) {
	e := entries[i]
	switch {
	case e.Began != nil:
		end, done, text := now, "unknown", ""
		if i+1 < len(entries) {
			next := entries[i+1]
			end = next.Time
			switch next.Event {
			case Did:
				done, text = "done", next.Text
			case Failing:
				done, text = "failed", next.Text
			}
		}
		r.Steps = append(r.Steps, ReportStep{e.Began.Do, orNil(e.Began.Machine), stamp(e.Time), end.Sub(e.Time).Seconds(), done, orNil(text)})
	case e.Event != Did && e.Event != Failing:
		r.Words = append(r.Words, ReportWord{stamp(e.Time), e.Who, e.Event, orNil(e.Note)})
		if e.Event == Reject {
			r.Reason = orNil(cmp.Or(e.Note, e.Who+" said that it failed"))
		}
	case e.Event == Failing && (r.Reason == nil || i == len(entries)-1): // what it stands at now goes first
		r.Reason = orNil(strings.TrimRight(string(e.Step.Do)+" "+e.Step.Machine, " ") + ": " + e.Text)
	}
	if e.Checkpoint != "" {
		r.Checkpoint = e.Checkpoint
	}
	if e.View != "" {
		r.View = orNil(e.View)
	}
	if e.File != "" {
		r.Files = append(r.Files, e.File)
	}
	if e.Note != "" {
		r.Note = orNil(e.Note)
	}
}

// Text is the report for people.
func (r *Report) Text() string {
	var b strings.Builder
	row := func(name string, value *string) {
		if value != nil {
			fmt.Fprintf(&b, "%-12s %s\n", name, strings.ReplaceAll(*value, "\n", "; "))
		}
	}
	verdict := r.State
	if r.Verdict != nil {
		verdict = string(*r.Verdict)
		if r.State != string(Over) {
			verdict += " (" + r.State + ")"
		}
	}
	text := func(s string) *string { return &s }
	row("job", text(fmt.Sprintf("%s, %s of group %s at checkpoint %s", r.ID, r.Kind, r.Group, r.Checkpoint)))
	row("verdict", text(verdict))
	row("reason", r.Reason)
	row("by", &r.Who)
	row("began", &r.Began)
	row("ended", r.Ended)
	if r.Ready != nil {
		row("ready after", text(fmt.Sprintf("%.3f s", *r.Ready)))
	}
	row("took", text(fmt.Sprintf("%.3f s", r.Seconds)))
	row("machines", text(strings.Join(r.Machines, " ")))
	if r.Override != nil {
		row("override", text(*r.Override+" (the source was not stopped: two copies may live)"))
	}
	row("source", orNil(r.Source()))
	row("note", r.Note)
	for _, f := range r.Files {
		row("picture", &f)
	}
	fmt.Fprintf(&b, "\n%-24s  %-12s  %-16s  %9s  %s\n", "BEGAN", "STEP", "MACHINE", "SECONDS", "RESULT")
	for _, s := range r.Steps {
		machine, what := "-", s.Result
		if s.Machine != nil {
			machine = *s.Machine
		}
		if s.Text != nil {
			what += ": " + strings.ReplaceAll(*s.Text, "\n", "; ")
		}
		fmt.Fprintf(&b, "%-24s  %-12s  %-16s  %9.3f  %s\n", s.Began, s.Do, machine, s.Seconds, what)
	}
	for _, w := range r.Words {
		fmt.Fprintf(&b, "%s  %s, by %s", w.Time, w.Word, w.Who)
		if w.Note != nil {
			b.WriteString(": " + strings.ReplaceAll(*w.Note, "\n", "; "))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

package recovery

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files anew")

func named(name string, boot int) Machine {
	return Machine{Machine: hypervisor.Machine{Name: name}, Boot: boot, WaitTime: time.Minute, Source: Source{QMP: "/run/" + name, Time: time.Minute}}
}

// plans are one of each kind: two machines, all that a machine may have.
func plans() []*Plan {
	db, web := named("db", 1), named("web", 2)
	db.Wait, db.Picture = config.Wait{Kind: config.WaitSerial, What: "login:"}, true
	web.Delay, web.Before, web.After = 10*time.Second, Script{[]string{"/bin/before"}, time.Second}, Script{[]string{"/bin/after"}, time.Second}
	machines := []Machine{db, web}
	over := []Machine{named("web", 2)}
	return []*Plan{
		{Kind: Test, Machines: machines}, {Kind: Proof, Machines: machines}, {Kind: Live, Machines: machines},
		{Kind: Live, Machines: over, Override: "the site burnt"}, {Kind: Move, Machines: over},
		{Kind: Reverse, Reversal: &Reversal{}}, {Kind: Plain, Machines: machines, Onto: &Onto{}},
	}
}

var events = []Event{Did, Failing, Resume, Cancel, Halt, Reject, Final, Undo}

// visit calls do for each state that the plan may get into, and each event.
func visit(p *Plan, do func(s State, e Event, next State, err error)) {
	seen, todo := map[State]bool{Fresh(): true}, []State{Fresh()}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		for _, e := range events {
			if _, ok := p.Next(s); !ok && (e == Did || e == Failing) {
				continue // there is nothing that could have been done
			}
			next, err := p.Step(s, e)
			do(s, e, next, err)
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
	}
}

func (s State) text(p *Plan) string {
	text := string(s.Phase)
	if step, ok := p.Next(s); ok {
		text += strings.TrimRight(fmt.Sprintf(" %d %s %s", s.At, step.Do, step.Machine), " ")
	}
	if s.Halted {
		text += fmt.Sprintf(" halted at %d", s.At)
	}
	if s.End != "" {
		text += fmt.Sprintf(" to %s, %s from %d", s.End, s.Verdict, s.Reached)
	}
	if s.Amiss {
		text += ", amiss"
	}
	return text
}

// TestTable writes down what each event leads to in each state of each kind of job.
func TestTable(t *testing.T) {
	var b strings.Builder
	for i, p := range plans() {
		p.Machines = p.Machines[max(0, len(p.Machines)-1):]
		fmt.Fprintf(&b, "plan %d: %s\n", i, p.Kind)
		for _, s := range p.Up() {
			fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("  up %s %s", s.Do, s.Machine), " "))
		}
		visit(p, func(s State, e Event, next State, err error) {
			switch {
			case s.Phase == Over:
				if next != s || (err == nil) != (e == Resume) {
					t.Errorf("%s: %s leads to %s, %v", s.text(p), e, next.text(p), err)
				}
				return
			case e == Resume && next == s:
				return // of any that is not halted
			}
			line := fmt.Sprintf("%-50s %-8s ", s.text(p), e)
			if err != nil {
				line += "refused: " + err.Error()
			} else {
				line += next.text(p)
			}
			fmt.Fprintln(&b, line)
		})
	}
	const golden = "testdata/table.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || b.String() != string(want) {
		t.Errorf("the table differs from %s (%v): look at what -update makes of it", golden, err)
	}
}

// world is what steps did.
type world struct {
	fenced, view, defined, running bool // of any machine

	adopted, handed, served, synced bool // of a reversal
	attached                        int

	passes, gone bool // of a move onto plain disks
	onto         int
}

func (w *world) do(t *testing.T, p *Plan, s Step) {
	t.Helper()
	bad := func(when bool, text string) {
		if when {
			t.Errorf("%s: %s %s: %s", p.Kind, s.Do, s.Machine, text)
		}
	}
	switch s.Do {
	case StopSource:
		bad(!p.Kind.Fences(), "a test touches the source")
	case Begin:
		bad(!p.Kind.Fences(), "a test fences the source")
		w.fenced, w.view = true, true
	case Open:
		w.view = true
	case Define:
		bad(!w.view, "there are no disks")
		w.defined = true
	case Start:
		bad(!w.view || !w.defined, "there is no machine")
		bad(p.Kind.Fences() && !w.fenced, "the source is not fenced")
		w.running = true
	case Stop:
		w.running = false
	case Undefine:
		bad(w.running, "it runs")
		w.defined = false
	case Close, TakeBack:
		bad(w.running || w.defined, "machines stand on it")
		w.view, w.fenced = false, false
	case Adopt:
		bad(w.handed, "the machines' disks went first")
		w.adopted = true
	case HandOver:
		bad(!w.adopted, "nobody would take what is sent")
		w.handed = true
	case Serve:
		bad(!w.handed, "the target serves them")
		w.served = true
	case Attach:
		bad(!w.served, "there is no filter")
		w.attached++
	case Sync:
		bad(!w.served, "nobody reads the disks")
		bad(w.attached < len(p.Machines), "a machine writes past the filter")
		w.synced = true
	case Settle:
		w.passes = true
	case Onward:
		bad(!w.passes, "the disks are not what it sees")
		bad(w.gone, "its view is gone")
		w.onto++
	case LetGo:
		bad(w.onto < len(p.Machines), "a machine is still on the view")
		w.gone = true
	case Keep:
		bad(!w.running || !w.fenced, "nothing runs that could be kept")
	}
}

// TestEachWayEnds carries jobs out with a failure, or a user's word, before or after each step, and
// with each step done twice, as one that was killed would: they end with nothing left behind, or committed.
func TestEachWayEnds(t *testing.T) {
	for _, p := range plans() {
		if p.Kind.OneWay() {
			continue // see testOneWay
		}
		for _, e := range []Event{Did, Failing, Cancel, Halt, Reject, Final, Undo} {
			for _, half := range []bool{false, true} { // what failed had been done
				for at := range len(p.Up()) + 1 {
					s, w := Fresh(), &world{}
					done := 0
					for range 100 {
						step, ok := p.Next(s)
						if !ok && s.Phase != Running {
							break
						}
						event := Did
						switch {
						case s.Phase == Running && (e == Halt || e == Reject || e == Final || e == Undo):
							event = e
						case s.Phase == Running && p.Kind.Fences():
							event = Undo
						case s.Phase == Running:
							event = Halt
						case done == at && s.Phase == Starting:
							event = e
						}
						if ok && (event == Did || half) {
							w.do(t, p, step)
							w.do(t, p, step)
						}
						next, err := p.Step(s, event)
						if _, refused := errors.AsType[*Refused](err); refused {
							if e = Did; s.Phase == Running {
								e = Undo
								if !p.Kind.Fences() {
									e = Halt
								}
							}
							continue
						}
						s = next
						done++
					}
					kept := *w == world{fenced: true, view: true, defined: true, running: true} && s.Verdict == Committed
					if s.Phase != Over || !kept && *w != (world{}) {
						t.Errorf("%s, %s at %d (done %v): %s leaves %+v", p.Kind, e, at, half, s.text(p), *w)
					}
				}
			}
		}
	}
}

// TestFailuresOnTheWayToTheEnd halt the job, which goes on with the same step when it is resumed.
func TestFailuresOnTheWayToTheEnd(t *testing.T) {
	for _, p := range plans() {
		visit(p, func(s State, e Event, next State, err error) {
			if s.Phase != Ending || s.Halted || e != Failing {
				return
			}
			want := s
			want.Halted = true
			again, rerr := p.Step(next, Resume)
			if err != nil || rerr != nil || next != want || again != s {
				t.Errorf("%s: %s leads to %s, and resumed to %s (%v, %v)", p.Kind, s.text(p), next.text(p), again.text(p), err, rerr)
			}
			if _, ok := p.Next(next); ok {
				t.Errorf("%s: %s goes on by itself", p.Kind, next.text(p))
			}
		})
	}
}

func TestOrder(t *testing.T) {
	list := []Machine{named("c", 2), named("a", 1), named("d", 2), named("b", 1)}
	Order(list)
	p := Plan{Kind: Test, Machines: list}
	var got []string
	for _, s := range p.Up() {
		if s.Do == Start {
			got = append(got, s.Machine)
		}
	}
	if !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("started in the order %q", got)
	}
}

// TestReplay: a job's file leads to the state that its events led to; what does not fit is refused.
func TestReplay(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tick := func() time.Time { now = now.Add(250 * time.Millisecond); return now }
	p := plans()[0]
	p.ID, p.Group, p.Checkpoint, p.Who = "r7", "erp", "42", "root@east"
	s := Fresh()
	entries := []Entry{{Time: now, Plan: p}}
	add := func(e Entry) { e.Time = tick(); entries = append(entries, e) }
	for {
		step, ok := p.Next(s)
		if !ok {
			break
		}
		add(Entry{Began: &step})
		e := Entry{Event: Did, Step: &step}
		switch step.Do {
		case Open:
			e.Text, e.View, e.Checkpoint = "view v3", "v3", "42"
		case Picture:
			e.File = "db.png"
		case Delay: // its command was killed
			add(Entry{Event: Resume, Who: "root@east"})
			add(Entry{Began: &step})
		case After:
			e.Event, e.Text = Failing, "exit status 3\nno such customer"
		}
		add(e)
		var err error
		if s, err = p.Step(s, e.Event); err != nil {
			t.Fatal(err)
		}
	}
	_, got, err := Replay(entries)
	if err != nil || got != s || s.Phase != Over || s.Verdict != Failed {
		t.Fatalf("%+v, %v, want %+v", got, err, s)
	}
	r, err := NewReport(entries, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"testdata/report.txt": r.Text(), "testdata/report.json": indented(t, r)} {
		if *update {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(name); err != nil || text != string(want) {
			t.Errorf("%s:\n%s\nwant (%v)\n%s", name, text, err, want)
		}
	}
	f := func(want string, change func([]Entry) []Entry) {
		t.Helper()
		if _, _, err := Replay(change(slices.Clone(entries))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f("no plan", func(e []Entry) []Entry { return nil })
	f("no plan", func(e []Entry) []Entry { return e[1:] })
	f("no machines", func(e []Entry) []Entry { e[0].Plan = &Plan{Kind: Test}; return e })
	f("entry 3 is of close", func(e []Entry) []Entry { e[2].Step = &Step{Do: Close}; return e })
	f("it is over", func(e []Entry) []Entry { return append(e, Entry{Event: Cancel}) })
}

// carried are the entries of a job of which each step does well, but for one, and that then hears a word where it waits for one.
func carried(t *testing.T, p *Plan, fail Verb, word Event) (entries []Entry) {
	t.Helper()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	add := func(e Entry) { now = now.Add(time.Second); e.Time = now; entries = append(entries, e) }
	add(Entry{Plan: p})
	for s := Fresh(); s.Phase != Over; {
		e := Entry{Event: word}
		if step, ok := p.Next(s); ok {
			add(Entry{Began: &step})
			if e = (Entry{Event: Did, Step: &step}); step.Do == fail {
				e.Event = Failing
			}
		}
		add(e)
		var err error
		if s, err = p.Step(s, e.Event); err != nil {
			t.Fatal(err)
		}
	}
	return entries
}

// TestEndIsTheFirst: what is said to a job that is over moves neither its end nor how long it took.
func TestEndIsTheFirst(t *testing.T) {
	entries := carried(t, plans()[0], "", Halt)
	last := entries[len(entries)-1].Time
	entries = append(entries, Entry{Time: last.Add(time.Hour), Event: Resume, Who: "root@east"})
	r, err := NewReport(entries, last.Add(2*time.Hour))
	if err != nil || *orNil(stamp(last)) != *r.Ended || r.Seconds != last.Sub(entries[0].Time).Seconds() || !strings.Contains(r.Text(), "resume, by root@east") {
		t.Errorf("%v: ended %v after %v s, want %s\n%s", err, *r.Ended, r.Seconds, stamp(last), r.Text())
	}
}

// TestSourceTold: a job that was taken back says which of the source's machines it left off.
func TestSourceTold(t *testing.T) {
	p := plans()[2]
	f := func(fail Verb, word Event, want string, off, unsure int) {
		t.Helper()
		r, err := NewReport(carried(t, p, fail, word), time.Now())
		if err != nil || r.Source() != want || len(r.SourceOff) != off || len(r.SourceUnsure) != unsure || strings.Contains(r.Text(), "start them") != (want != "") {
			t.Errorf("%s, %s: %v: %q, %q, %q; want %q", fail, word, err, r.Source(), r.SourceOff, r.SourceUnsure, want)
		}
	}
	const off = "the source's machines web db are off: start them there, " + unlessElse
	f("", Final, "", 0, 0)
	f("", Undo, off, 2, 0)
	f(Begin, Undo, off, 2, 0)
	f(Define, Undo, off, 2, 0)
	f(StopSource, Undo, "whether the source's machines web are off is not known: look, and start them there, "+unlessElse, 0, 1)
}

// TestSourceWasOff: nobody is told to start what the job did not turn off; what an earlier try may have turned off it is told of.
func TestSourceWasOff(t *testing.T) {
	f := func(killed bool, want string) {
		t.Helper()
		entries := carried(t, plans()[2], "", Undo)
		at := slices.IndexFunc(entries, func(e Entry) bool { return e.Event == Did && e.Step.Do == StopSource })
		entries[at].Text = WasOff
		if killed {
			entries = slices.Insert(entries, at-1, entries[at-1])
		}
		r, err := NewReport(entries, time.Now())
		if got := strings.Join(r.SourceOff, " "); err != nil || got != want || len(r.SourceUnsure) > 0 {
			t.Errorf("killed before: %v: %v: %q, %q; want %q", killed, err, got, r.SourceUnsure, want)
		}
	}
	f(false, "db")
	f(true, "web db")
}

// TestLastLook: a proof that fails takes pictures of the machines that were started, before any is stopped; none keeps it from its end.
func TestLastLook(t *testing.T) {
	p := plans()[1]
	p.LastLook, p.Machines[1].Picture = true, true
	f := func(fail Verb, want string) {
		t.Helper()
		entries := carried(t, p, fail, Halt)
		var did []string
		for _, e := range entries {
			if e.Began != nil && (e.Began.Do == Picture || e.Began.Do == Stop || e.Began.Do == Wait) {
				did = append(did, string(e.Began.Do)+" "+e.Began.Machine)
			}
		}
		if got := strings.Join(did, ", "); got != want {
			t.Errorf("%s fails: %s; want %s", fail, got, want)
		}
		if r, err := NewReport(entries, time.Now()); err != nil || r.State != string(Over) || (*r.Verdict == Failed) != (fail != "" && fail != Picture) {
			t.Errorf("%s fails: %v, %+v", fail, err, r)
		}
	}
	f("", "wait db, picture db, picture web, stop web, stop db")
	f(Picture, "wait db, picture db, picture web, stop web, stop db")
	f(Wait, "wait db, picture db, stop web, stop db")
	f(After, "wait db, picture db, picture web, stop web, stop db")
	f(Define, "stop db")
	s := State{Phase: Ending, End: Rollback, Verdict: Failed, Reached: slices.IndexFunc(p.Up(), func(s Step) bool { return s.Do == Wait })}
	if next, err := p.Step(s, Failing); err != nil || next.Halted || next.At != 1 {
		t.Errorf("a last picture that fails leads to %s, %v", next.text(p), err)
	}
	p.LastLook = false // a job of an earlier release
	f(Wait, "wait db, stop web, stop db")
}

func indented(t *testing.T, v any) string {
	t.Helper()
	p, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(p) + "\n"
}

// TestRejected: a test that is stopped as failed has the note for its reason, also when it was on its way to its end already.
func TestRejected(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := func(reason, state string, words ...Entry) {
		t.Helper()
		p, s := plans()[0], Fresh()
		entries := []Entry{{Time: now, Plan: p}}
		add := func(e Entry) {
			e.Time = now
			var err error
			if s, err = p.Step(s, e.Event); err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		for step, ok := p.Next(s); ok; step, ok = p.Next(s) {
			add(Entry{Event: Did, Step: &step})
		}
		for _, e := range words {
			if e.Event == Failing {
				step, _ := p.Next(s)
				e.Step = &step
			}
			add(e)
		}
		r, err := NewReport(entries, now)
		if err != nil || *r.Verdict != Failed || *r.Reason != reason || r.State != state || !strings.Contains(r.Text(), "fail, by eve") {
			t.Errorf("%+v, %v, want %s with %q", r, err, state, reason)
		}
	}
	said := Entry{Event: Reject, Who: "eve", Note: "orders are missing"}
	f("orders are missing", "ending", said)
	f("eve said that it failed", "ending", Entry{Event: Reject, Who: "eve"})
	f("orders are missing", "ending", Entry{Event: Halt, Who: "adam"}, said)
	f("stop web: no answer", "halted", said, Entry{Event: Failing, Text: "no answer"})
	f("orders are missing", "ending", said, Entry{Event: Failing, Text: "no answer"}, Entry{Event: Resume, Who: "eve"})
}

// TestReversal has a reversal fail, or be interrupted, at each step, before or after that was done: it halts, is carried on
// and ends with all done; nothing takes it back.
func TestReversal(t *testing.T) {
	testOneWay(t, &Plan{Kind: Reverse, Reversal: &Reversal{}}, func(w *world) bool { return w.synced })
	p := &Plan{Kind: Reverse, Reversal: &Reversal{}, Machines: []Machine{named("db", 1), named("web", 2)}, Onto: &Onto{}}
	testOneWay(t, p, func(w *world) bool { return w.synced && w.attached >= 2 })
}

// TestOntoPlainDisks does the same with machines that move onto plain disks.
func TestOntoPlainDisks(t *testing.T) {
	p := &Plan{Kind: Plain, Machines: []Machine{named("db", 1), named("web", 2)}, Onto: &Onto{}}
	testOneWay(t, p, func(w *world) bool { return w.gone && w.onto >= 2 })
}

func testOneWay(t *testing.T, p *Plan, done func(*world) bool) {
	for at := range p.Up() {
		for _, e := range []Event{Failing, Cancel} {
			for _, half := range []bool{false, true} {
				s, w := Fresh(), &world{}
				for i := range p.Up() {
					step, ok := p.Next(s)
					if !ok {
						t.Fatalf("step %d: none in %s", i, s.text(p))
					}
					if i == at {
						if half {
							w.do(t, p, step)
						}
						s, _ = p.Step(s, e)
						if _, ok := p.Next(s); ok || !s.Halted {
							t.Fatalf("%s at step %d leads to %s", e, i, s.text(p))
						}
						for _, word := range []Event{Halt, Final, Undo, Did} {
							if next, err := p.Step(s, word); err == nil || next != s {
								t.Errorf("%s of %s leads to %s, %v", word, s.text(p), next.text(p), err)
							}
						}
						s, _ = p.Step(s, Resume)
					}
					w.do(t, p, step)
					s, _ = p.Step(s, Did)
				}
				if s.Phase != Over || s.Verdict != Passed || !done(w) {
					t.Errorf("%s at step %d: it ends %s", e, at, s.text(p))
				}
			}
		}
	}
}

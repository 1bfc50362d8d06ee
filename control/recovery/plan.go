package recovery

import (
	"cmp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Kind of a job.
type Kind string

// The kinds.
const (
	Test  Kind = "test"   // machines on scratch, isolated, until they are stopped
	Proof Kind = "verify" // the same, and it ends by itself once they are up
	Live  Kind = "live"   // the source is fenced, and machines take over
	Move  Kind = "move"   // the same without loss: the source is stopped first, and its last write is brought over

	Reverse Kind = "reverse" // after a commit: the two sites swap their parts, and machines run on
	Plain   Kind = "plain"   // after a commit: machines that run move onto plain disks, and the target has done its part
)

// OneWay says that the job has no way back: at each of its steps all stands as well as before.
func (k Kind) OneWay() bool { return k == Reverse || k == Plain }

// Fences says whether the source's epoch is taken away.
func (k Kind) Fences() bool { return k == Live || k == Move }

// Plan is what a job does. It does not change.
type Plan struct {
	ID         string `json:"id"`  // among the jobs of a folder
	Key        string `json:"key"` // among all jobs: views and failovers of the target carry it
	Kind       Kind   `json:"kind"`
	Group      string `json:"group"`
	Checkpoint string `json:"checkpoint"` // its id; empty: the last cut, of a move
	Who        string `json:"who"`
	Note       string `json:"note,omitempty"`
	Scheduled  bool   `json:"scheduled,omitempty"` // nobody asked for it but a schedule
	// LastLook has machines whose picture is wanted pictured before they are stopped, too, when the job fails.
	LastLook bool      `json:"last_look,omitempty"`
	Machines []Machine `json:"machines"` // in the order in which they are started
	// Hypervisor starts them.
	Hypervisor config.Hypervisor `json:"hypervisor,omitzero"`

	// Override is why the source's machines are not stopped by a live failover; two copies may live then.
	Override string `json:"override,omitempty"`
	// How the source's machines are stopped otherwise.
	SourceHow hypervisor.How `json:"source_how,omitempty"`
	// Timer ends a live failover by itself after so long, by what Then says; zero: nothing does.
	Timer time.Duration `json:"timer,omitempty"`
	Then  End           `json:"then,omitempty"`

	// Reversal is what a reversal is about; it has machines only where they are on plain disks, and come back from these.
	Reversal *Reversal `json:"reversal,omitempty"`

	// Onto says whose machines move onto plain disks, or, in a reversal, are on these.
	Onto *Onto `json:"onto,omitempty"`
}

// Reversal says how the two sites of a committed failover swap their parts.
type Reversal struct {
	Failover string        `json:"failover"` // its id
	ID       string        `json:"id"`       // of the group as it is protected then, 16 hexadecimal digits
	Stream   string        `json:"stream"`
	Lineage  string        `json:"lineage"`
	Control  string        `json:"control"` // where the old source's vra takes records from then on, host:port
	Data     string        `json:"data"`
	Interval time.Duration `json:"interval"` // between checkpoints
	Filter   string        `json:"filter"`   // the file of the vra-filter that serves the disks then
	Disks    []ReverseDisk `json:"disks"`
	OnDisks  bool          `json:"on_disks,omitempty"` // machines are on the disks themselves, and write past the filter until they are attached
}

// Onto is a committed failover: its id at the target, and the job whose machines run on its disks.
type Onto struct {
	Failover string `json:"failover"`
	Job      string `json:"job"`
}

// ReverseDisk is a volume, and the disk of the old source that is to be its replica.
type ReverseDisk struct {
	Volume string `json:"volume"`
	ID     uint32 `json:"id"`
	Bytes  uint64 `json:"bytes"`
	Path   string `json:"path,omitempty"` // at the old source; empty: its vra knows
}

// Machine is a machine, and how it is brought up.
type Machine struct {
	hypervisor.Machine
	Boot     int           `json:"boot"`
	Delay    time.Duration `json:"delay,omitempty"`
	Before   Script        `json:"before,omitzero"`
	After    Script        `json:"after,omitzero"`
	Wait     config.Wait   `json:"wait,omitzero"`
	WaitTime time.Duration `json:"wait_time,omitempty"`
	Picture  bool          `json:"picture,omitempty"`
	// OverNBD is why its disks are over NBD, though nobody asked for that.
	OverNBD string `json:"over_nbd,omitempty"`
	Source  Source `json:"source,omitzero"`
}

// Script is a program and its arguments, and how long it may take.
type Script struct {
	Command []string      `json:"command,omitempty"`
	Time    time.Duration `json:"time,omitempty"`
}

// Source is the protected machine: where it is reached, and how long it may take to shut down.
type Source struct {
	QMP     string            `json:"qmp,omitempty"` // its monitor
	Libvirt config.Hypervisor `json:"libvirt,omitzero"`
	Domain  string            `json:"domain,omitempty"` // of that libvirt
	Time    time.Duration     `json:"time,omitempty"`
}

// End is how a live failover ends.
type End string

// The ends.
const (
	Commit   End = "commit"
	Rollback End = "rollback"
)

// Verb is what a step does.
type Verb string

// On the way up.
const (
	StopSource Verb = "stop-source" // the protected machine
	LastCut    Verb = "last-cut"    // a checkpoint of all that the source wrote
	Open       Verb = "open"        // the group's disks at the checkpoint
	Begin      Verb = "begin"       // the source is fenced, and the disks opened
	Define     Verb = "define"
	Delay      Verb = "delay"
	Before     Verb = "before" // the script
	Start      Verb = "start"
	Wait       Verb = "wait"
	Picture    Verb = "picture"
	After      Verb = "after"
)

// Of a reversal.
const (
	Adopt    Verb = "adopt"     // the old source's disks become replicas
	HandOver Verb = "hand-over" // the disks that machines run on become a source's
	Serve    Verb = "serve"     // by a filter
	Attach   Verb = "attach"    // a machine that is on plain disks moves onto the filter
	Sync     Verb = "sync"      // what differs is sent, until a checkpoint is listed
)

// Of machines that move onto plain disks.
const (
	Settle Verb = "settle" // the disks hold all that the machines see, and the view passes to them
	Onward Verb = "onto"   // a machine moves onto its disks
	LetGo  Verb = "let-go" // the target writes to them no more
)

// On the way to the end.
const (
	Stop     Verb = "stop"
	Undefine Verb = "undefine"
	Close    Verb = "close"    // the disks, and what was written to them
	TakeBack Verb = "rollback" // the failover: the source may go on
	Keep     Verb = "commit"   // the failover: the source may not
)

// Step is one thing to do. Each may be done again after it was done, or half done.
type Step struct {
	Do      Verb          `json:"do"`
	Machine string        `json:"machine,omitempty"`
	Limit   time.Duration `json:"limit"` // what takes longer has failed
}

// CutLimit is how long all that waits at the source may take to come over.
const CutLimit = 10 * time.Minute

// Limits of steps that the plan does not give any.
const (
	targetLimit = time.Minute // what is asked of the target's vra
	defineLimit = 30 * time.Second
	startLimit  = 2 * time.Minute

	adoptLimit = 24 * time.Hour // each disk is read once
	turnLimit  = 10 * time.Minute
	syncLimit  = 30 * 24 * time.Hour // as the link is

	settleLimit = 30 * 24 * time.Hour // as the disks are, beside what machines do
	ontoLimit   = 5 * time.Minute     // what a machine has under way ends first
)

// Up lists the steps until the machines run.
func (p *Plan) Up() (steps []Step) {
	add := func(do Verb, m string, limit time.Duration) { steps = append(steps, Step{do, m, limit}) }
	if p.Kind == Reverse {
		add(Adopt, "", adoptLimit) // first: until that is done the machines run as they did
		add(HandOver, "", turnLimit)
		add(Serve, "", targetLimit)
		for _, m := range p.Machines {
			add(Attach, m.Name, ontoLimit)
		}
		add(Sync, "", syncLimit)
		if invariant.Planted("recovery/hands-over-first") {
			steps[0], steps[1] = steps[1], steps[0]
		}
		return steps
	}
	if p.Kind == Plain {
		add(Settle, "", settleLimit)
		for _, m := range p.Machines {
			add(Onward, m.Name, ontoLimit)
		}
		add(LetGo, "", targetLimit)
		if invariant.Planted("recovery/lets-go-first") {
			slices.Reverse(steps)
		}
		return steps
	}
	if p.Kind.Fences() && p.Override == "" {
		for _, m := range slices.Backward(p.Machines) { // what was started last depends on the others
			if m.Source.QMP != "" || m.Source.Domain != "" {
				add(StopSource, m.Name, m.Source.Time)
			}
		}
	}
	switch {
	case p.Kind == Move:
		add(LastCut, "", CutLimit)
		add(Begin, "", targetLimit)
	case p.Kind == Live:
		add(Begin, "", targetLimit)
	default:
		add(Open, "", targetLimit)
	}
	for _, m := range p.Machines {
		add(Define, m.Name, defineLimit)
	}
	for _, rank := range p.ranks() {
		for _, m := range rank {
			if m.Delay > 0 {
				add(Delay, m.Name, m.Delay+defineLimit)
			}
			if len(m.Before.Command) > 0 {
				add(Before, m.Name, m.Before.Time)
			}
			add(Start, m.Name, startLimit)
		}
		for _, m := range rank {
			if m.Wait.Kind != config.WaitNothing {
				add(Wait, m.Name, m.WaitTime)
			}
			if m.Picture {
				add(Picture, m.Name, defineLimit)
			}
			if len(m.After.Command) > 0 {
				add(After, m.Name, m.After.Time)
			}
		}
	}
	if invariant.Planted("recovery/start-before-fence") {
		slices.SortStableFunc(steps, func(a, b Step) int { return -cmp.Compare(string(a.Do), string(b.Do)) })
	}
	return steps
}

// ranks are the machines that are started together, in order.
func (p *Plan) ranks() (ranks [][]Machine) {
	for i, m := range p.Machines {
		if i == 0 || m.Boot != p.Machines[i-1].Boot {
			ranks = append(ranks, nil)
		}
		ranks[len(ranks)-1] = append(ranks[len(ranks)-1], m)
	}
	return ranks
}

// Order brings machines into the order in which they are started.
func Order(machines []Machine) {
	slices.SortStableFunc(machines, func(a, b Machine) int { return cmp.Compare(a.Boot, b.Boot) })
}

// Machine finds a machine of the plan.
func (p *Plan) Machine(name string) *Machine {
	for i := range p.Machines {
		if p.Machines[i].Name == name {
			return &p.Machines[i]
		}
	}
	return nil
}

// down lists the steps from what was reached on the way up to the end. The last of the way up that
// was begun counts as done: nobody knows.
func (p *Plan) down(s State) (steps []Step) {
	add := func(do Verb, m string, limit time.Duration) { steps = append(steps, Step{do, m, limit}) }
	if s.End == Commit {
		add(Keep, "", targetLimit)
		return steps
	}
	up := p.Up()
	reached := up[:min(s.Reached+1, len(up))]
	began := func(do Verb, m Machine) bool {
		return slices.ContainsFunc(reached, func(s Step) bool { return s.Do == do && s.Machine == m.Name })
	}
	for _, m := range p.Machines {
		if p.LastLook && s.Verdict == Failed && m.Picture && began(Start, m) && !began(Picture, m) {
			add(Picture, m.Name, defineLimit)
		}
	}
	for _, m := range slices.Backward(p.Machines) {
		if began(Define, m) {
			add(Stop, m.Name, defineLimit)
		}
	}
	for _, m := range slices.Backward(p.Machines) {
		if began(Define, m) {
			add(Undefine, m.Name, defineLimit)
		}
	}
	for _, s := range reached {
		switch s.Do {
		case Open:
			add(Close, "", targetLimit)
		case Begin:
			add(TakeBack, "", targetLimit)
		}
	}
	return steps
}

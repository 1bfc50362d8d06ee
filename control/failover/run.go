package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Runner carries jobs out.
type Runner struct {
	// Target is the group's target vra; Source its source vra, which is asked for a last cut and may be nil.
	Target, Source *api.Client
	// Hypervisor makes the driver of the machines that a job has in a folder.
	Hypervisor func(where config.Hypervisor, dir string) (hypervisor.Hypervisor, error)
	// Who carries it out, for the report.
	Who string
	Now func() time.Time
	// Tell is called before and after each step.
	Tell func(s recovery.Step, ended bool, text string, err error)
	// Progress, where it is not nil, is told now and then how far a step has come that takes long.
	Progress func(text string)
	// FilterBinary is the vra-filter that a reversal starts.
	FilterBinary string
	// Filter finds a volume of the filter with that file.
	Filter func(file, volume string) (kvm.Filter, error)
}

// MachinesDir is the hypervisor's folder of a job.
func (j *Job) MachinesDir() string { return machinesDir(filepath.Dir(j.Dir), j.Plan) }

// machinesDir is the hypervisor's folder of a plan, in a folder of jobs. A job that moves machines has those of another.
func machinesDir(folder string, p *recovery.Plan) string {
	id := p.ID
	if p.Onto != nil {
		id = p.Onto.Job
	}
	return filepath.Join(folder, id, machinesName)
}

// found is what a step found out.
type found struct{ text, checkpoint, view, file string }

// Say writes a user's word down: to stop, to commit, to roll back. A cancel is in the words of who asked for it (Ask).
func (r *Runner) Say(j *Job, e recovery.Event, note string) error {
	if e == recovery.Cancel {
		return j.happened(r.cancelled(j, note))
	}
	return j.happened(recovery.Entry{Time: r.Now(), Event: e, Who: r.Who, Note: note})
}

// Run carries a job on until its machines run, it is over, or a step to its end failed. When ctx
// ends, or somebody asks for it (Ask), before the machines run, the job is taken back. The error is that
// of files; whether the job succeeded its State says.
func (r *Runner) Run(ctx context.Context, j *Job) error {
	defer os.Remove(filepath.Join(j.Dir, cancelName))
	h, err := r.Hypervisor(j.Plan.Hypervisor, j.MachinesDir())
	if err != nil {
		return err
	}
	if o := j.Plan.Onto; o != nil { // nobody starts its machines meanwhile
		of, err := Open(filepath.Dir(j.Dir), o.Job)
		if err != nil {
			return err
		}
		defer of.Close()
	}
	if err := j.endScript(ctx); err != nil {
		return err
	}
	c := carrier{Runner: r, job: j, machines: h}
	for {
		step, ok := j.Plan.Next(j.State)
		if !ok {
			break
		}
		if j.State.Phase == recovery.Starting && (ctx.Err() != nil || j.asked()) {
			if err := r.Say(j, recovery.Cancel, ""); err != nil {
				return err
			}
			continue
		}
		if err := c.carry(ctx, step); err != nil {
			return err
		}
	}
	if j.State.Phase == recovery.Over {
		return r.finish(j)
	}
	return nil
}

// startLimit is how long a machine may take to start again.
const startLimit = 2 * time.Minute

// Revive starts those machines again that are off though the job says that they run, as after a reboot of
// their host, and names them. One that is neither off nor running is an error, and keeps no other one off.
func (r *Runner) Revive(ctx context.Context, j *Job) (started []string, err error) {
	if j.State.Phase != recovery.Running && j.State.Verdict != recovery.Committed {
		return nil, nil
	}
	h, err := r.Hypervisor(j.Plan.Hypervisor, j.MachinesDir())
	if err != nil {
		return nil, err
	}
	var neither []error
	for _, m := range j.Plan.Machines {
		ctx, cancel := context.WithTimeout(ctx, startLimit)
		state, err := h.State(ctx, m.Name)
		switch {
		case err != nil:
		case state == hypervisor.Off || invariant.Planted("failover/revives-all"):
			started, err = append(started, m.Name), h.Start(ctx, m.Name)
		case state == hypervisor.Absent && j.Plan.Kind == recovery.Reverse: // see MayMove
		case state != hypervisor.Running && !invariant.Planted("failover/revives-in-name"): // as libvirt has one whose start hung
			neither = append(neither, fmt.Errorf("machine %s is %s: have it run, or turn it off and resume the job again", m.Name, state))
		}
		cancel()
		if err != nil {
			return started, errors.Join(append(neither, err)...)
		}
	}
	return started, errors.Join(neither...)
}

// carrier carries the steps of one job out.
type carrier struct {
	*Runner
	job      *Job
	machines hypervisor.Hypervisor
	hung     error // why a machine did not start over vhost-user in time, so that others of the job need not wait for that, too
}

// askedEvery is how often a long step looks for somebody who wants the job to end.
const askedEvery = 200 * time.Millisecond

// carry carries out one step and writes down how it went.
func (c *carrier) carry(ctx context.Context, s recovery.Step) error {
	if err := c.job.write(recovery.Entry{Time: c.Now(), Began: &s}); err != nil {
		return err
	}
	c.Tell(s, false, "", nil)
	up := c.job.State.Phase == recovery.Starting
	if !up {
		ctx = context.WithoutCancel(ctx) // it is being ended already
	}
	ctx, cancel := context.WithTimeout(ctx, s.Limit)
	defer cancel()
	if up {
		defer c.watch(cancel)()
	}
	got, err := c.do(ctx, s)
	err = c.inWords(ctx, s, err)
	e := recovery.Entry{Time: c.Now(), Event: recovery.Did, Step: &s, Text: got.text, Checkpoint: got.checkpoint, View: got.view, File: got.file}
	if err != nil && !invariant.Planted("failover/all-well") {
		e.Event, e.Text = recovery.Failing, joined(got.text, err)
	}
	c.Tell(s, true, got.text, err)
	if err != nil && up && (errors.Is(ctx.Err(), context.Canceled) || c.job.asked()) {
		text := e.Text
		e = c.cancelled(c.job, "") // not its fault
		e.Text = text
	}
	return c.job.happened(e)
}

// joined is what a step said and why it failed.
func joined(said string, err error) string {
	if said == "" {
		return err.Error()
	}
	return err.Error() + "\n" + said
}

// watch ends a step when somebody asks for it, until the returned function is called.
func (c *carrier) watch(cancel func()) (done func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(askedEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if c.job.asked() {
					cancel()
					return
				}
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

// Report tells of the job.
func (r *Runner) Report(j *Job) (*recovery.Report, error) {
	return recovery.NewReport(j.entries, r.Now())
}

// finish writes the report. It is written again by whoever finds a job over and none there.
func (r *Runner) finish(j *Job) error {
	report, err := r.Report(j)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(kvm.WriteFile(filepath.Join(j.Dir, "report.json"), append(text, '\n')),
		kvm.WriteFile(filepath.Join(j.Dir, "report.txt"), []byte(report.Text())))
}

// Failure is why a job that is over, or halted, is not as it was wished; nil when it is.
func (j *Job) Failure(r *recovery.Report) error {
	why := "for a reason that is not known"
	if r.Reason != nil {
		why = *r.Reason
	}
	source := r.Source()
	if source != "" {
		source = "\n" + source
	}
	switch {
	case j.State.Halted:
		if r.Reason == nil && j.Plan.Kind.OneWay() {
			why = "it was interrupted"
		}
		return fmt.Errorf("job %s halted: %s; mend that, and carry it on with: holdfast failover resume %s", j.Plan.ID, why, j.Plan.ID)
	case j.State.Verdict == recovery.Failed:
		return fmt.Errorf("job %s failed, and was taken back: %s%s", j.Plan.ID, why, source)
	case j.State.Verdict == recovery.Cancelled:
		return fmt.Errorf("job %s was cancelled, and taken back%s", j.Plan.ID, source)
	}
	return nil
}

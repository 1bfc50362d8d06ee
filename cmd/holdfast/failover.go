package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/spf13/cobra"
)

func (a *app) failoverCommand() *cobra.Command {
	return parent("failover", "Bring a group's machines up at a checkpoint",
		`Failover starts the machines of a group on its disks as they were at a checkpoint. They
run at once, on views; see holdfast view. A file says what the machines are:

  machines:
    - name: db1
      memory: 2GiB                 # 512MiB by default
      cpus: 2                      # 1 by default
      firmware: bios               # or uefi
      disks: [db1-system, db1-data]      # volumes of the group
      front: vhost-user            # by memory that it shares; or nbd, as it is where that cannot be had
      networks:                    # none by default
        - mac: "52:54:00:12:34:56"
          live: br0                # bridge in a live failover; a test is always isolated
          forward: ["127.0.0.1:15432=10.0.2.15:5432"]  # into the isolated network
      boot: 1                      # lower numbers first; the next once these are up
      delay: 10s
      before: {command: [/usr/local/bin/prepare, --all], time: 30s}
      after: {command: [/usr/local/bin/announce]}
      wait: "serial:login:"        # or tcp:HOST:PORT, or script:PATH, until it exits with 0
      wait_time: 5m
    - {name: web1, disks: [web1], boot: 2}

also kernel, initrd and cmdline, for guests without a boot loader, and qemu: [-cpu, qemu64],
options of QEMU's about the machine itself. They are processes of QEMU's on this host, or with

  hypervisor: qemu:///system       # or qemu+unix:///system?socket=PATH

domains of its libvirt, which must be able to reach the target's views. The file's name stands in --machines or, as machines, in
the context. Scripts find HOLDFAST_JOB, _JOB_DIR, _KIND, _GROUP, _CHECKPOINT and _MACHINE
in their environment; no shell is between.

What can be known before is checked first, also with --dry-run: the checkpoint, the volumes, files,
programs, bridges and ports to forward, and whether the source answers. Nothing is begun, nor stopped, where it fails.
Of what comes once machines run, as after and wait, a live failover is only warned: it goes on
without; so is a job of a bridge or kernel that is missing, where a before script may make it.

Each is a job, kept in a folder (recovery in the context; by default beside it). A job whose
command was killed is carried on with failover resume, or taken back by stopping it. One that
was interrupted with Ctrl-C while machines were being started takes back what it did.`,
		a.failoverTest(), a.failoverLive(), a.failoverCommit(), a.failoverRollback(), a.failoverPlain(), a.failoverList(), a.failoverReport(), a.failoverResume())
}

// jobFlags are what is said of a job that is begun.
type jobFlags struct {
	group, at, machines, note string
	only                      []string
	dry                       bool
}

func (a *app) jobFlagsOf(cmd *cobra.Command, f *jobFlags) {
	fs := cmd.Flags()
	fs.StringVar(&f.group, "group", "", "`NAME` of the group; by default that of the context")
	a.atFlag(cmd, &f.at)
	f.at = api.Latest
	cmd.Flag("checkpoint").DefValue = api.Latest
	fs.StringVar(&f.machines, "machines", "", "`FILE` of the group's machines; by default that of the context")
	fs.StringArrayVar(&f.only, "only", nil, "start only the machine of this `NAME`; may be repeated")
	fs.StringVar(&f.note, "note", "", "`TEXT` for the report")
	fs.BoolVar(&f.dry, "dry-run", false, "check that it could begin, say what would be started where, and do nothing")
	cmd.MarkFlagFilename("machines", "yaml")
}

// who carries a command out, for the report.
func who() string {
	name := fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

// recoveryFolder is that of the context.
func (a *app) recoveryFolder() (string, *config.Context, error) {
	c, err := a.context()
	if err != nil {
		return "", nil, err
	}
	path := a.contextFile
	if path == "" {
		path = a.env(contextVariable)
	}
	folder, err := c.RecoveryFolder(path)
	return folder, c, err
}

// jobsAndTarget is the folder of the jobs, the context that names it, and a client of the target's vra, which the caller closes.
func (a *app) jobsAndTarget() (string, *config.Context, *api.Client, error) {
	folder, c, err := a.recoveryFolder()
	if err != nil {
		return "", nil, nil, err
	}
	client, _, err := a.dial(api.RoleTarget)
	return folder, c, client, err
}

// plan makes a plan of what the flags say, and finds what is wrong with it.
func (a *app) plan(ctx context.Context, client *api.Client, c *config.Context, f *jobFlags, kind recovery.Kind) (*recovery.Plan, error) {
	if f.group == "" {
		f.group = c.Group
	}
	if f.machines == "" {
		f.machines = c.Machines
	}
	if f.machines == "" {
		return nil, usagef("--machines is missing, and the context names none: see holdfast failover --help for such a file")
	}
	file, err := config.LoadMachines(f.machines)
	if err != nil {
		return nil, err
	}
	machines, err := failover.Machines(file, f.only, kind)
	if err != nil {
		return nil, usagef("--only: %w", err)
	}
	if err := checkMachines(ctx, file.Hypervisor, f.machines, machines); err != nil {
		return nil, err
	}
	id, err := settled(ctx, client, f.group, f.at)
	if err != nil {
		return nil, err
	}
	return &recovery.Plan{Key: strings.ToLower(api.NewKey()), Kind: kind, Group: f.group, Checkpoint: id, Who: who(), Note: f.note, Machines: machines, Hypervisor: file.Hypervisor}, nil
}

// checkMachines says which of the file's machines would be refused, and whether what is to run them answers: nothing is begun before. Then it settles how
// they are to reach their disks.
func checkMachines(ctx context.Context, where config.Hypervisor, file string, machines []recovery.Machine) error {
	h, err := kvm.Open(where, filepath.Join(os.TempDir(), "holdfast-none"))
	if err != nil {
		return err
	}
	for _, m := range machines {
		if cerr := h.Check(m.Machine); cerr != nil {
			err = errors.Join(err, fmt.Errorf("%s: machine %s: %w", file, m.Name, cerr))
		}
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if _, err := h.State(ctx, machines[0].Name); err != nil {
		return fmt.Errorf("%s: %s does not answer: %w", file, where, err)
	}
	failover.Fronts(ctx, h, machines)
	return nil
}

// answerLimit is how long a hypervisor may take to say that it is there.
const answerLimit = 30 * time.Second

// settled is the id of the checkpoint that the word names, also of latest: a job stays with it.
func settled(ctx context.Context, client *api.Client, group, at string) (string, error) {
	id, err := resolve(ctx, client, group, at)
	if err != nil || id != api.Latest {
		return id, err
	}
	all, _, err := pages(ctx, client, &holdfastv1.CheckpointsServiceListRequest{Group: group, NewestFirst: true}, newestLooked)
	if err != nil {
		return "", explain(api.RoleTarget, err)
	}
	for _, c := range all {
		if c.State != api.CheckpointBad {
			return c.ID, nil
		}
	}
	return "", fmt.Errorf("group %s has no good checkpoint among its newest: see holdfast checkpoint list", group)
}

// newestLooked is how many of the newest checkpoints may be bad before none is taken for the latest.
const newestLooked = 100

// runner makes what carries jobs out, and tells of its steps.
func (a *app) runner(client *api.Client) *failover.Runner {
	r := &failover.Runner{FilterBinary: filterBinary(), Filter: a.filterOf, Progress: func(text string) { fmt.Fprintln(a.stderr, printable("  "+text)) }, Target: client, Hypervisor: kvm.Open, Who: who(), Now: time.Now, Tell: a.tellStep}
	if source, _, err := a.dial(api.RoleSource); err == nil { // a context of the second site may have none
		r.Source = source
	}
	return r
}

// filterBinary is the vra-filter beside this program, or else the one in the PATH.
func filterBinary() string {
	const name = "vra-filter"
	if own, err := os.Executable(); err == nil {
		if beside := filepath.Join(filepath.Dir(own), name); isFile(beside) {
			return beside
		}
	}
	return name
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func (a *app) tellStep(s recovery.Step, ended bool, text string, err error) {
	line := strings.TrimSpace(string(s.Do) + " " + s.Machine)
	switch {
	case !ended && (s.Do == recovery.Wait || s.Do == recovery.Delay || s.Do == recovery.Before || s.Do == recovery.After):
		line += fmt.Sprintf(": for up to %s", config.Duration(s.Limit))
	case !ended:
		return
	case err != nil:
		line += ": failed: " + err.Error()
	case text != "":
		line += ": " + firstLine(text)
	}
	fmt.Fprintln(a.stderr, printable(line))
}

func firstLine(text string) string {
	line, _, more := strings.Cut(text, "\n")
	if more {
		line += " ..."
	}
	return line
}

const jobHead = "JOB KIND GROUP CHECKPOINT STATE VERDICT BEGAN READY TOOK BY NOTE"

func jobRow(r *recovery.Report) []string {
	verdict := "-"
	if r.Verdict != nil {
		verdict = string(*r.Verdict)
	}
	return []string{r.ID, string(r.Kind), r.Group, r.Checkpoint, r.State, verdict, shortTime(&r.Began), secondsOrHyphen(r.Ready), secondsOrHyphen(&r.Seconds), r.Who, orHyphen(r.Note)}
}

// carry runs a job until its machines run, it is over, or it failed.
func (a *app) carry(ctx context.Context, r *failover.Runner, j *failover.Job) (*recovery.Report, error) {
	if err := r.Run(ctx, j); err != nil {
		return nil, fmt.Errorf("job %s: %w", j.Plan.ID, err)
	}
	if ended, err := a.settle(ctx, r, j); err != nil {
		return nil, err
	} else if ended {
		return a.carry(ctx, r, j)
	}
	report, err := r.Report(j)
	if err != nil {
		return nil, err
	}
	return report, j.Failure(report)
}

// carryOn runs a job and prints how it stands then.
func (a *app) carryOn(ctx context.Context, r *failover.Runner, j *failover.Job) error {
	report, err := a.carry(ctx, r, j)
	if err != nil {
		return err
	}
	if err := a.print(report, jobHead, [][]string{jobRow(report)}); err != nil {
		return err
	}
	if j.State.Phase == recovery.Running {
		a.tellRunning(j)
	}
	a.tellSource(report) // its timer may have taken it back
	return nil
}

func (a *app) failoverTest() *cobra.Command {
	var f jobFlags
	var stop string
	var failed bool
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Start a group's machines at a checkpoint, isolated, on scratch",
		Long: `Test starts the machines on views of a checkpoint: what they write goes to scratch, and
nothing else changes. Protection and checkpoints go on. They are isolated: without
networks, or on such as only the ports that the file forwards lead into. Several tests may
run at once, at different checkpoints.

It returns once the machines are up. They run until they are stopped, with --stop; then
what they wrote is discarded, and the report written: see holdfast failover report. The
verdict is passed, or failed with --failed: what ran on the machines was not as it should be.`,
		Example: "  holdfast failover test --checkpoint latest --machines machines.yaml\n  holdfast failover test --stop r1 --note \"billing works\"\n  holdfast failover test --stop r2 --failed --note \"billing misses its orders\"\n  holdfast failover test --checkpoint before-upgrade --only db1 --dry-run",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if stop != "" {
				for _, name := range []string{"group", "checkpoint", "machines", "only", "dry-run"} {
					if cmd.Flags().Changed(name) {
						return usagef("--stop goes with --note and --failed alone, and not with --%s", name)
					}
				}
				word := recovery.Halt
				if failed {
					word = recovery.Reject
				}
				return a.endJob(cmd.Context(), stop, word, f.note)
			}
			if failed {
				return usagef("--failed goes with --stop: it says how the test went")
			}
			return a.beginJob(cmd.Context(), &f, recovery.Test, nil)
		},
	}
	a.jobFlagsOf(cmd, &f)
	cmd.Flags().StringVar(&stop, "stop", "", "stop the machines of the job with this `ID`, and discard what they wrote")
	cmd.Flags().BoolVar(&failed, "failed", false, "with --stop: the test failed; --note says why")
	cmd.RegisterFlagCompletionFunc("stop", a.completeJobs)
	return cmd
}

// beginJob begins a job and carries it on until its machines are up.
func (a *app) beginJob(ctx context.Context, f *jobFlags, kind recovery.Kind, more func(*recovery.Plan) error) error {
	if err := checkAt(f.at); err != nil {
		return err
	}
	folder, c, client, err := a.jobsAndTarget()
	if err != nil {
		return err
	}
	defer client.Close()
	p, err := a.plan(ctx, client, c, f, kind)
	if err != nil {
		return err
	}
	if more != nil {
		if err := more(p); err != nil {
			return err
		}
	}
	r := a.runner(client)
	if err := a.check(ctx, r, p); err != nil {
		return err
	}
	if f.dry {
		return a.printPlan(p)
	}
	j, err := failover.Create(folder, p, recovery.Entry{Time: time.Now(), Who: p.Who})
	if err != nil {
		return err
	}
	defer j.Close()
	at := "checkpoint " + p.Checkpoint
	if p.Checkpoint == "" {
		at = "a last checkpoint"
	}
	fmt.Fprintf(a.stderr, "Job %s: group %s at %s.\n", p.ID, p.Group, at)
	return a.carryOn(ctx, r, j)
}

// check says why a job cannot begin, and warns of what it would go on without.
func (a *app) check(ctx context.Context, r *failover.Runner, p *recovery.Plan) error {
	warnings, err := r.Check(ctx, p)
	for _, w := range warnings {
		fmt.Fprintln(a.stderr, printable("Warning: "+w+"."))
	}
	if err != nil {
		return fmt.Errorf("nothing was begun: %w", err)
	}
	return nil
}

// endWait is how long another process may take to take its job back.
const endWait = 2 * time.Minute

// endJob says a word to a job that ends it, and carries it out; it fails unless the job ends so. A job that
// another process is just starting is asked to end, which it does itself, but not by a commit.
func (a *app) endJob(ctx context.Context, id string, word recovery.Event, note string) error {
	folder, _, client, err := a.jobsAndTarget()
	if err != nil {
		return err
	}
	defer client.Close()
	before, err := reportOf(folder, id)
	if err != nil {
		return err
	}
	if err := mayHear(before, word); err != nil {
		return err
	}
	j, err := a.takeJob(ctx, folder, id, failover.Asking{Word: word, Who: who(), Note: note})
	if err != nil {
		return err
	}
	defer j.Close()
	r := a.runner(client)
	ended, err := a.settle(ctx, r, j)
	if err != nil {
		return err
	}
	said := j.State.Phase != recovery.Over && !ended
	if said {
		if err := r.Say(j, word, note); err != nil {
			return fmt.Errorf("job %s: %w", id, err)
		}
	}
	if j.State.Halted {
		if err := r.Say(j, recovery.Resume, ""); err != nil {
			return err
		}
	}
	if err := r.Run(ctx, j); err != nil {
		return fmt.Errorf("job %s: %w", id, err)
	}
	report, err := r.Report(j)
	if err != nil {
		return err
	}
	if err := j.Failure(report); err != nil && (j.State.Halted || !word.Met(j.State.Verdict)) {
		return err
	}
	if !word.Met(j.State.Verdict) {
		a.tellSource(report)
		return fmt.Errorf("job %s is over: %s", id, endedAs(report))
	}
	if note != "" && !said && !slices.ContainsFunc(report.Words, func(w recovery.ReportWord) bool { return w.Who == r.Who && deref(w.Note) == note }) {
		return fmt.Errorf("job %s was over already: %s; your note was not kept", id, endedAs(report))
	}
	if err := a.print(report, jobHead, [][]string{jobRow(report)}); err != nil {
		return err
	}
	a.tellSource(report)
	return nil
}

// tellSource says what a user has to do about the source's machines.
func (a *app) tellSource(r *recovery.Report) {
	if source := r.Source(); source != "" {
		fmt.Fprintln(a.stderr, printable("Now "+source+"."))
	}
}

// endedAs says how a job that is over ended, and by whose word.
func endedAs(r *recovery.Report) string {
	text := r.State
	if r.Verdict != nil {
		text = string(*r.Verdict)
	}
	for _, w := range slices.Backward(r.Words) {
		if w.Word != recovery.Resume { // that ends nothing
			return text + fmt.Sprintf(", by %s at %s", w.Who, w.Time)
		}
	}
	return text
}

// mayHear says why a word to end a job is not for one of its kind, and what is. What goes one way alone says so itself.
func mayHear(r *recovery.Report, word recovery.Event) error {
	toTest := word == recovery.Halt || word == recovery.Reject
	switch {
	case r.Kind.OneWay(), r.Kind.Fences() != toTest:
		return nil
	case toTest:
		return fmt.Errorf("job %s is no test, but %s: commit it or roll it back: holdfast failover commit %s, or holdfast failover rollback %s", r.ID, kindText(r.Kind), r.ID, r.ID)
	}
	return fmt.Errorf("job %s is %s, and nothing to %s: stop it with holdfast failover test --stop %s", r.ID, kindText(r.Kind), wordText(word), r.ID)
}

// kindText is a kind of job, as a sentence names one.
func kindText(k recovery.Kind) string {
	switch k {
	case recovery.Live:
		return "a live failover"
	case recovery.Proof:
		return "the test of a verify"
	}
	return "a " + string(k)
}

// wordText is a word to end a live failover, as a sentence names it.
func wordText(word recovery.Event) string {
	if word == recovery.Undo {
		return "roll back"
	}
	return string(word)
}

// takeJob opens a job for a word, once nobody else carries it out. ErrBusy: it is to be committed, and another process
// is still bringing its machines up.
func (a *app) takeJob(ctx context.Context, folder, id string, word failover.Asking) (*failover.Job, error) {
	late := time.NewTimer(endWait)
	defer late.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		j, err := failover.Open(folder, id)
		if !errors.Is(err, failover.ErrBusy) {
			return j, err
		}
		if word.Word != recovery.Final {
			if err := failover.Ask(folder, id, word); err != nil {
				return nil, err
			}
		} else if r, rerr := reportOf(folder, id); rerr != nil {
			return nil, rerr
		} else if r.State == string(recovery.Starting) {
			return nil, fmt.Errorf("machines are still being brought up: wait until they run, or say holdfast failover rollback %s: %w", id, err)
		}
		select {
		case <-again.C:
		case <-late.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (a *app) failoverResume() *cobra.Command {
	return &cobra.Command{
		Use:   "resume ID",
		Short: "Carry a job on whose command was killed, or that halted",
		Long: `Resume carries a job on where it stopped. A step of which no end is known is carried out
again: a script that was killed in the middle runs a second time, once what is left of the first,
and of what that started in its process group, was ended. Machines that run by the
job's word, and are off, as after a reboot of their host, are started again. Of a job that is
over otherwise nothing is left to carry on, and nothing is changed.`,
		Example:           "  holdfast failover list\n  holdfast failover resume r1",
		Args:              oneArg("job id"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, _, client, err := a.jobsAndTarget()
			if err != nil {
				return err
			}
			defer client.Close()
			j, err := failover.Open(folder, args[0])
			if err != nil {
				return err
			}
			defer j.Close()
			r := a.runner(client)
			if j.State.Phase == recovery.Over && j.State.Verdict != recovery.Committed {
				fmt.Fprintf(a.stderr, "Job %s is over: nothing of it is left to carry on.\n", args[0])
				return a.carryOn(cmd.Context(), r, j)
			}
			if j.State.Phase == recovery.Starting && j.Untouched() {
				if err := a.check(cmd.Context(), r, j.Plan); err != nil {
					return fmt.Errorf("job %s: %w", args[0], err)
				}
			}
			if err := r.Say(j, recovery.Resume, ""); err != nil {
				return fmt.Errorf("job %s: %w", args[0], err)
			}
			if _, err := a.settle(cmd.Context(), r, j); err != nil {
				return err
			}
			started, err := r.Revive(cmd.Context(), j)
			if len(started) > 0 {
				fmt.Fprintf(a.stderr, "Started again: %s\n", strings.Join(started, ", "))
			}
			if err != nil {
				return fmt.Errorf("job %s: %w", args[0], err)
			}
			return a.carryOn(cmd.Context(), r, j)
		},
	}
}

// reportOf reads the report of a job as it stands.
func reportOf(folder, id string) (*recovery.Report, error) {
	entries, busy, err := failover.Read(folder, id)
	if err != nil {
		return nil, err
	}
	r, err := recovery.NewReport(entries, time.Now())
	if err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if !busy && (r.State == string(recovery.Starting) || r.State == string(recovery.Ending)) {
		r.State = "interrupted"
	}
	return r, nil
}

func (a *app) failoverList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the jobs, oldest first",
		Long: `List shows each job: starting, running, ending or over; interrupted, when nobody carries it
on, or halted, when a step to its end failed: see holdfast failover resume.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			folder, _, err := a.recoveryFolder()
			if err != nil {
				return err
			}
			ids, err := failover.IDs(folder)
			if err != nil {
				return err
			}
			reports, rows := []*recovery.Report{}, [][]string{}
			var bad []error
			for _, id := range ids {
				r, err := reportOf(folder, id)
				if err != nil {
					bad = append(bad, err)
					continue
				}
				reports, rows = append(reports, r), append(rows, jobRow(r))
			}
			return errors.Join(append(bad, a.print(reports, jobHead, rows))...)
		},
	}
}

func (a *app) failoverReport() *cobra.Command {
	return &cobra.Command{
		Use:   "report ID",
		Short: "Show what a job did, and how long each step took",
		Long: `Report shows who began a job and when, at which checkpoint, how long each step took, what
scripts said, the verdict and notes. When a job is over, report.txt and report.json in its
folder say the same; pictures and what machines said on their serial ports lie beside.`,
		Example:           "  holdfast failover report r1\n  holdfast failover report r1 -o json | jq .ready_seconds",
		Args:              oneArg("job id"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			folder, _, err := a.recoveryFolder()
			if err != nil {
				return err
			}
			r, err := reportOf(folder, args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.print(r, "", nil)
			}
			for line := range strings.Lines(r.Text()) {
				if _, err := fmt.Fprintln(a.stdout, printable(strings.TrimSuffix(line, "\n"))); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// completeJobs offers the jobs there are.
func (a *app) completeJobs(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	folder, _, err := a.recoveryFolder()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ids, _ := failover.IDs(folder)
	var words []string
	for _, id := range ids {
		if r, err := reportOf(folder, id); err == nil {
			words = append(words, fmt.Sprintf("%s\t%s of checkpoint %s, %s", id, r.Kind, r.Checkpoint, r.State))
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// plannedStep is a step of a dry run; its JSON is kept for ever.
type plannedStep struct {
	Do      recovery.Verb `json:"do"`
	Machine *string       `json:"machine"`
	What    *string       `json:"what"`
	Limit   float64       `json:"limit_seconds"`
}

// printPlan says what a job would do.
func (a *app) printPlan(p *recovery.Plan) error {
	steps, rows := []plannedStep{}, [][]string{}
	for _, s := range p.Up() {
		what := whatStep(p, s)
		one := plannedStep{s.Do, textOrNull(s.Machine), textOrNull(what), s.Limit.Seconds()}
		steps = append(steps, one)
		rows = append(rows, []string{string(s.Do), orHyphen(one.Machine), config.Duration(s.Limit).String(), orHyphen(one.What)})
	}
	result := struct {
		Kind       recovery.Kind `json:"kind"`
		Group      string        `json:"group"`
		Checkpoint string        `json:"checkpoint"`
		Steps      []plannedStep `json:"steps"`
	}{p.Kind, p.Group, p.Checkpoint, steps}
	return a.print(result, "STEP MACHINE WITHIN WHAT", rows)
}

// frontText is how a machine is to reach its disks.
func frontText(m *recovery.Machine) string {
	switch {
	case m.VhostUser:
		return "vhost-user (NBD where that cannot be had)"
	case m.OverNBD != "":
		return "NBD (" + m.OverNBD + ")"
	}
	return "NBD"
}

func processorsText(n int) string {
	if n == 1 {
		return "1 processor"
	}
	return fmt.Sprintf("%d processors", n)
}

func whatStep(p *recovery.Plan, s recovery.Step) string {
	m := p.Machine(s.Machine)
	switch s.Do {
	case recovery.Adopt:
		var disks []string
		for _, d := range p.Reversal.Disks {
			disks = append(disks, d.Volume+" "+cmp.Or(d.Path, "(as before)"))
		}
		return "the old source's disks become replicas: " + strings.Join(disks, ", ")
	case recovery.HandOver:
		return "the disks that machines run on are sent to " + p.Reversal.Control + "; the machines wait from here on"
	case recovery.Serve:
		return "vra-filter --config " + p.Reversal.Filter + ", on this host"
	case recovery.Attach:
		return "from plain disks onto the filter, without a stop"
	case recovery.Sync:
		return "what differs, until a checkpoint is listed"
	case recovery.Settle:
		return "what machines wrote goes into the target's disks, which are read back whole"
	case recovery.Onward:
		if m.VhostUser {
			return "from the view onto plain disks, in its definition; its device moves at the end, without a stop"
		}
		return "from the view onto plain disks, without a stop"
	case recovery.LetGo:
		return "the view of group " + p.Group + " ends, and the target writes to the disks no more, but for machines over vhost-user, whose devices it is"
	case recovery.Open, recovery.Begin:
		at := "checkpoint " + p.Checkpoint
		if p.Checkpoint == "" {
			at = "its last checkpoint"
		}
		if s.Do == recovery.Begin {
			at += "; its source is fenced"
		}
		return fmt.Sprintf("group %s at %s", p.Group, at)
	case recovery.Define:
		var disks, nets []string
		for _, d := range m.Disks {
			disks = append(disks, d.Volume)
		}
		for _, n := range m.Networks {
			switch {
			case n.Bridge != "":
				nets = append(nets, "bridge "+n.Bridge)
			case len(n.Forward) > 0:
				nets = append(nets, "isolated but for "+strings.Join(n.Forward, " "))
			default:
				nets = append(nets, "isolated")
			}
		}
		if len(nets) == 0 {
			nets = []string{"none"}
		}
		on := "on this host"
		if p.Hypervisor.Libvirt() {
			on = "by " + p.Hypervisor.String()
		}
		return fmt.Sprintf("%s, %s, %s, disks %s over %s; network: %s", on, bytesText(m.MemoryBytes), processorsText(m.CPUs), strings.Join(disks, " "), frontText(m), strings.Join(nets, ", "))
	case recovery.Before:
		return strings.Join(m.Before.Command, " ")
	case recovery.After:
		return strings.Join(m.After.Command, " ")
	case recovery.Delay:
		return config.Duration(m.Delay).String()
	case recovery.Wait:
		return m.Wait.String()
	case recovery.StopSource:
		if m.Source.Domain != "" {
			return fmt.Sprintf("%s, domain %s of %s", p.SourceHow, m.Source.Domain, m.Source.Libvirt)
		}
		return fmt.Sprintf("%s, by its monitor %s", p.SourceHow, m.Source.QMP)
	}
	return ""
}

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/spf13/cobra"
)

// liveFlags are what is said of a failover that takes over.
type liveFlags struct {
	jobFlags
	how, override, then string
	timer               config.Duration
}

func (a *app) liveFlagsOf(cmd *cobra.Command, f *liveFlags) {
	f.timer = defaultTimer
	fs := cmd.Flags()
	fs.StringVar(&f.how, "source", string(hypervisor.Gracefully), "how the source's machines are stopped: graceful (their power button) or force (their QEMU ends)")
	fs.StringVar(&f.then, "then", string(recovery.Rollback), "what happens when the timer runs out: rollback or commit")
	fs.Var(durationFlag{&f.timer}, "timer", "how long until it ends by itself; 0s: it does not")
	cmd.RegisterFlagCompletionFunc("source", cobra.FixedCompletions([]string{string(hypervisor.Gracefully), string(hypervisor.ByForce)}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("then", cobra.FixedCompletions([]string{string(recovery.Rollback), string(recovery.Commit)}, cobra.ShellCompDirectiveNoFileComp))
}

// defaultTimer is how long a live failover waits for somebody's word.
const defaultTimer = config.Duration(3600e9)

// fill puts the flags into a plan, and finds what is wrong with both together.
func (f *liveFlags) fill(p *recovery.Plan) error {
	p.SourceHow, p.Then, p.Timer, p.Override = hypervisor.How(f.how), recovery.End(f.then), f.timer.D(), f.override
	switch {
	case p.SourceHow != hypervisor.Gracefully && p.SourceHow != hypervisor.ByForce:
		return usagef("--source %q: want graceful or force", f.how)
	case p.Then != recovery.Rollback && p.Then != recovery.Commit:
		return usagef("--then %q: want rollback or commit", f.then)
	case len(f.override) > api.MaxFailoverNote:
		return usagef("--override-reason has %d bytes, at most %d", len(f.override), api.MaxFailoverNote)
	case f.override != strings.TrimSpace(f.override):
		return usagef("--override-reason %q: want no space at its ends", f.override)
	}
	for _, m := range p.Machines {
		if f.override == "" && m.Source.QMP == "" && m.Source.Domain == "" {
			return usagef("machine %s has no source.qmp in the machines' file, nor source.libvirt and domain, by which the source's is stopped: name it there", m.Name)
		}
	}
	return nil
}

func (a *app) failoverLive() *cobra.Command {
	var f liveFlags
	cmd := &cobra.Command{
		Use:   "live",
		Short: "Let a group's machines take over at the second site",
		Long: `Live stops the source's machines, fences the source (the group's epoch is raised, so that
nothing it sends is taken any more), and starts the machines on views of the checkpoint. What
is written to the source after that checkpoint is not in them: for a planned move without loss
see holdfast move.

Each machine's source in the machines' file says by what it is stopped: the monitor of the
source's QEMU, {qmp: SOCKET}, or a libvirt and its domain there, {libvirt: qemu:///system, domain:
web1}. If one cannot be reached, or is lost before it said that the guest is off,
nothing is begun. Where the site is gone, or cannot be reached, --override-reason says why
the source is not stopped: two copies may live then, and the report and the target say so
for ever.

It returns once the machines are up. Then say failover commit, or failover rollback: it stops
them, discards what they wrote, and lets the source go on; all checkpoints are
there as before. When nobody says either for an hour (--timer) it is rolled back (--then). A
failover that fails before its machines run is rolled back; the source's machines that it had
stopped stay off then: its last line and its report name them, start them yourself. A machine that runs but
does not come up (wait, after) is told, and the others go on.`,
		Example: "  holdfast failover live --machines machines.yaml --checkpoint latest --override-reason \"the site burnt\"\n  holdfast failover live --machines machines.yaml --only db1 --source force --timer 4h\n  holdfast failover commit r3",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("override-reason") && f.override == "" {
				return usagef("--override-reason is empty: say why the source's machines are not stopped")
			}
			return a.beginJob(cmd.Context(), &f.jobFlags, recovery.Live, f.fill)
		},
	}
	a.jobFlagsOf(cmd, &f.jobFlags)
	a.liveFlagsOf(cmd, &f)
	cmd.Flags().StringVar(&f.override, "override-reason", "", "do not stop the source's machines: `TEXT` says why; it is recorded")
	return cmd
}

func (a *app) moveCommand() *cobra.Command {
	var f liveFlags
	cmd := &cobra.Command{
		Use:   "move",
		Short: "Move a group's machines to the second site, without loss",
		Long: `Move stops the source's machines, waits until all that they wrote is at the target, makes a
last checkpoint, and brings the machines up there as failover live does: commit or roll it
back then. The source's disks stay as they are; after a rollback start its machines
again yourself.`,
		Example: "  holdfast move --machines machines.yaml\n  holdfast failover commit r4",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.beginJob(cmd.Context(), &f.jobFlags, recovery.Move, func(p *recovery.Plan) error {
				p.Checkpoint = "" // the last cut, which is made then
				return f.fill(p)
			})
		},
	}
	a.jobFlagsOf(cmd, &f.jobFlags)
	a.liveFlagsOf(cmd, &f)
	cmd.Flags().MarkHidden("checkpoint")
	return cmd
}

func (a *app) failoverCommit() *cobra.Command {
	return a.wordCommand("commit", "Make a live failover final", `Commit lets the machines of a live failover stay for good: the source does not go on, and what
they wrote becomes the group's. It cannot be taken back. While machines are still being brought
up it is refused. When the timer was quicker, and rolled back, it fails.`, recovery.Final)
}

func (a *app) failoverRollback() *cobra.Command {
	return a.wordCommand("rollback", "Take a live failover back", `Rollback stops the machines of a live failover, discards what they wrote, and lets the source
go on. All checkpoints are there as before, to try another one. Start the source's
machines again yourself, if they were stopped.`, recovery.Undo)
}

func (a *app) wordCommand(use, short, long string, word recovery.Event) *cobra.Command {
	var note string
	cmd := &cobra.Command{
		Use: use + " ID", Short: short, Long: long, Example: "  holdfast failover " + use + " r3 --note \"seen by the owner\"",
		Args: oneArg("job id"),

		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.endJob(cmd.Context(), args[0], word, note)
		},
	}
	cmd.Flags().StringVar(&note, "note", "", "`TEXT` for the report")
	return cmd
}

// settle tells a job what its timer did, and the user.
func (a *app) settle(ctx context.Context, r *failover.Runner, j *failover.Job) (bool, error) {
	ended, err := r.Settle(ctx, j)
	if ended {
		fmt.Fprintf(a.stderr, "The timer of job %s has run out: it was to %s.\n", j.Plan.ID, j.Plan.Then)
	}
	return ended, err
}

// tellRunning says what can be done with machines that run.
func (a *app) tellRunning(j *failover.Job) {
	p := j.Plan
	if !p.Kind.Fences() {
		fmt.Fprintf(a.stderr, "Its machines run. Stop them with: holdfast failover test --stop %s\n", p.ID)
		return
	}
	fmt.Fprintf(a.stderr, "Its machines run. Say holdfast failover commit %s, or holdfast failover rollback %s", p.ID, p.ID)
	if p.Timer > 0 {
		fmt.Fprintf(a.stderr, "; else in %s: %s", config.Duration(p.Timer), p.Then)
	}
	fmt.Fprintln(a.stderr, ".")
	if j.State.Amiss {
		fmt.Fprintf(a.stderr, "Not all came up as they should: see holdfast failover report %s\n", p.ID)
	}
}

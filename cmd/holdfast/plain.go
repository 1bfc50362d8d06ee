package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/spf13/cobra"
)

func (a *app) failoverPlain() *cobra.Command {
	var note string
	var dry bool
	cmd := &cobra.Command{
		Use:   "plain ID",
		Short: "Move the machines of a committed failover onto plain disks, while they run",
		Long: `Plain ends the part of the target in a failover that was committed: its machines, which run on
views, move onto the target's disks themselves, without a stop.

  settle   until those disks hold all that the machines see; the target begins with that by
           itself after a commit, reads them back whole then, and has the views pass to them
  onto     the target keeps in mind that a machine moves, and reverse is refused until all have.
           Each machine changes its disks within QEMU (QMP), and in its definition. What it has
           under way ends on the view first, so that one alone writes at any time. One that
           has them over vhost-user changes its definition alone
  let-go   the view ends, once nobody is connected to it over NBD, or was when vra ended last and
           may come back (the step waits, and names the process), and what is left of the
           group's history is removed when vra starts again. A machine over vhost-user waits
           for a moment: what it has under way ends on the view, and then vra serves it the
           disk itself, at the same socket, until it is shut down

It is a job as the others. What fails, or is interrupted, halts it where it is: failover
resume carries it on, and at each step the machines run, on the view or on their disks, which are the
same. It is not taken back. Where the group is to be protected the other way round, holdfast reverse
brings the machines back from their disks onto a filter.
Machines of libvirt move as those of plain QEMU do, through its monitor, and libvirt starts them on their disks from
then on. At a target that keeps its disks over several stores it is refused.`,
		Example:           "  holdfast failover plain r2 --dry-run\n  holdfast failover plain r2",
		Args:              oneArg("job id"),
		ValidArgsFunction: a.completeJobs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.plain(cmd.Context(), args[0], note, dry) },
	}
	cmd.Flags().StringVar(&note, "note", "", "`TEXT` for the report")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, and do nothing")
	return cmd
}

func (a *app) plain(ctx context.Context, id, note string, dry bool) error {
	folder, _, client, err := a.jobsAndTarget()
	if err != nil {
		return err
	}
	defer client.Close()
	p, err := onto(folder, id)
	if err != nil {
		return err
	}
	if done := movedBy(folder, p.Onto); done != nil {
		fmt.Fprintf(a.stderr, "The machines of %s are on plain disks already: job %s moved them.\n", id, done.ID)
		return a.print(done, jobHead, [][]string{jobRow(done)})
	}
	p.Key, p.Who, p.Note = strings.ToLower(api.NewKey()), who(), note
	r := a.runner(client)
	if err := r.MayMoveOnto(ctx, folder, p); err != nil {
		return err
	}
	if dry {
		return a.printPlan(p)
	}
	j, err := failover.Create(folder, p, recovery.Entry{Time: time.Now(), Who: p.Who})
	if err != nil {
		return err
	}
	defer j.Close()
	fmt.Fprintf(a.stderr, "Job %s: the machines of %s move onto plain disks.\n", p.ID, id)
	return a.carryOn(ctx, r, j)
}

// movedBy is the job that moved the machines of a failover onto plain disks; nil where there is none in the folder.
func movedBy(folder string, o *recovery.Onto) *recovery.Report {
	ids, _ := failover.IDs(folder) // a folder that does not read has none
	for _, id := range ids {
		entries, _, err := failover.Read(folder, id)
		if err != nil || len(entries) == 0 {
			continue
		}
		p, s, err := recovery.Replay(entries)
		if err != nil || p.Kind != recovery.Plain || p.Onto == nil || *p.Onto != *o || s.Verdict != recovery.Passed {
			continue
		}
		if r, err := recovery.NewReport(entries, time.Now()); err == nil {
			return r
		}
	}
	return nil
}

// onto plans the move of a job's machines.
func onto(folder, id string) (*recovery.Plan, error) {
	entries, _, err := failover.Read(folder, id)
	if err != nil {
		return nil, err
	}
	of, s, err := recovery.Replay(entries)
	if err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if !of.Kind.Fences() || s.Verdict != recovery.Committed || s.Phase != recovery.Over {
		return nil, fmt.Errorf("job %s is no failover that was committed: see holdfast failover list, and commit it", id)
	}
	r, err := recovery.NewReport(entries, time.Now())
	if err != nil {
		return nil, err
	}
	return &recovery.Plan{Kind: recovery.Plain, Group: of.Group, Checkpoint: r.Checkpoint, Machines: of.Machines, Hypervisor: of.Hypervisor,
		Onto: &recovery.Onto{Failover: of.Key, Job: id}}, nil
}

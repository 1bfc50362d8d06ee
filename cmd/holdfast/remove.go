package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/spf13/cobra"
)

// removed is a group that is not protected any more, as the user sees it; its JSON is kept for ever.
type removed struct {
	Group      string     `json:"group"`
	DryRun     bool       `json:"dry_run"`
	Checkpoint *string    `json:"checkpoint"`
	Disks      []keptDisk `json:"disks"`
	Left       *string    `json:"left"`
}

type keptDisk struct {
	Name  string `json:"name"`
	ID    uint32 `json:"id"`
	Bytes int64  `json:"bytes"`
	Path  string `json:"path"`
}

// removal is what the command was told.
type removal struct {
	group, at, only    string
	keep, sure, dryRun bool
}

func (a *app) groupRemove() *cobra.Command {
	var r removal
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Stop protecting a group, for good",
		Long: `The source captures and sends nothing of the group any more; its guests go on and notice
nothing. Then the target gives up all its checkpoints and frees the space. With
--keep-replica its disks stay there as plain raw files, as they were at the newest good
checkpoint or at the one that --checkpoint names: they are read back whole before the rest
goes, and the command says where they are. That takes as long as to read them.

It is refused while a view of the group is open or a failover is under way, and then
changes nothing; --dry-run asks only that. What was cut short is asked again with the same
command. The group's id does not come back: to protect the disks again give them to a
group with another one.

Of a group whose machines have moved onto its disks nothing but its word is left: the disks
are the machines' own, and stay where they are. Where a new group has its name, name it by
its id.

Take the group out of the file of the source's vra then. The filters go on serving its
disks until they are stopped.`,
		Example:           "  holdfast group remove db --dry-run\n  holdfast group remove db --yes\n  holdfast group remove db --keep-replica --checkpoint before-upgrade --yes",
		Args:              oneArg("group"),
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.group = args[0]
			if err := r.check(); err != nil {
				return err
			}
			return a.remove(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.keep, "keep-replica", false, "its disks stay at the target as plain raw files")
	a.atFlag(cmd, &r.at)
	f.BoolVar(&r.sure, "yes", false, "do it: its history cannot be had back")
	f.BoolVar(&r.dryRun, "dry-run", false, "change nothing, and say whether it would be done")
	f.StringVar(&r.only, "only", "", "at one `SITE` alone, source or target, where the other is gone for good")
	cmd.RegisterFlagCompletionFunc("only", cobra.FixedCompletions([]string{api.RoleSource, api.RoleTarget}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// check says what the arguments alone show to be wrong.
func (r *removal) check() error {
	switch {
	case r.only != "" && r.only != api.RoleSource && r.only != api.RoleTarget:
		return usagef("--only %q: want source or target", r.only)
	case r.only == api.RoleSource && r.keep:
		return usagef("--keep-replica is of the target: leave --only source away")
	case r.at != "" && !r.keep:
		return usagef("--checkpoint says as of when disks stay: give --keep-replica too")
	case !r.sure && !r.dryRun:
		return usagef("all checkpoints of %s would be gone for good: say so with --yes, or look with --dry-run", r.group)
	}
	if r.at != "" {
		return checkAt(r.at)
	}
	return nil
}

// remove asks the target whether it may be, then the source to let go, then the target.
func (a *app) remove(ctx context.Context, r removal) error {
	said := removed{Group: r.group, DryRun: r.dryRun, Disks: []keptDisk{}}
	var target *api.Client
	req := &holdfastv1.GroupsServiceRemoveRequest{Group: r.group, KeepReplica: r.keep, DryRun: true, IdempotencyKey: api.NewKey()}
	if r.only != api.RoleSource {
		client, _, err := a.dial(api.RoleTarget)
		if err != nil {
			return err
		}
		defer client.Close()
		target = client
		if r.at != "" && r.at != api.Latest {
			if req.Checkpoint, err = resolve(ctx, client, r.group, r.at); err != nil {
				return explain(api.RoleTarget, err)
			}
		}
		if _, err := client.Groups.Remove(ctx, req); err != nil {
			return explain(api.RoleTarget, err)
		}
	}
	if !r.dryRun && r.only != api.RoleTarget {
		if err := a.unprotect(ctx, r.group); err != nil {
			return err
		}
	}
	if !r.dryRun && target != nil {
		req.DryRun, req.IdempotencyKey = false, api.NewKey()
		res, err := target.Groups.Remove(ctx, req)
		if err != nil {
			return fmt.Errorf("%w\nthe same command again goes on with it", explain(api.RoleTarget, err))
		}
		said.Checkpoint, said.Left = textOrNull(res.Checkpoint), textOrNull(res.Left)
		for _, d := range res.Disks {
			said.Disks = append(said.Disks, keptDisk{d.Name, d.Id, d.Bytes, d.Path})
		}
	}
	return a.printRemoved(said)
}

// unprotect has the source let go. One that does not know the group has nothing to let go.
func (a *app) unprotect(ctx context.Context, group string) error {
	client, _, err := a.dial(api.RoleSource)
	if err != nil {
		return err
	}
	defer client.Close()
	_, err = client.Groups.Unprotect(ctx, &holdfastv1.GroupsServiceUnprotectRequest{Group: group, IdempotencyKey: api.NewKey()})
	if f := api.AsFailure(err); f != nil && f.Code == api.NotFound {
		return nil
	}
	if err != nil {
		return explain(api.RoleSource, err)
	}
	return nil
}

func (a *app) printRemoved(r removed) error {
	var rows [][]string
	for _, d := range r.Disks {
		rows = append(rows, []string{d.Name, strconv.FormatUint(uint64(d.ID), 10), bytesText(d.Bytes), d.Path})
	}
	var err error
	if a.output == "json" || len(rows) > 0 {
		err = a.print(r, "VOLUME ID SIZE PATH", rows)
	}
	if a.output != "json" && err == nil {
		text := printable(r.Group) + " is not protected any more"
		switch {
		case r.DryRun:
			text = "nothing stands in the way of removing " + printable(r.Group)
		case r.Checkpoint != nil:
			text += ": these are its disks at checkpoint " + printable(*r.Checkpoint)
		}
		_, err = fmt.Fprintln(a.stdout, text)
	}
	if r.Left != nil {
		err = errors.Join(err, fmt.Errorf("not all of it is done: %s\nthe same command again goes on with it", printable(*r.Left)))
	}
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

// checkpoint is a checkpoint as the user sees it; its JSON is kept for ever.
type checkpoint struct {
	ID    string  `json:"id"`
	Time  *string `json:"time"`
	Tag   *string `json:"tag"`
	State string  `json:"state"`
	// Reason is why it is bad.
	Reason *string `json:"reason"`
	Pinned bool    `json:"pinned"`
	// Label is what it is pinned for.
	Label *string `json:"label"`
	// Consistency is application, crash or crash-freeze-failed.
	Consistency *string `json:"consistency"`
	// Proved is the job of holdfast verify that proved it, as far as is known here.
	Proved *string `json:"proved"`

	at time.Time // Time
}

func newCheckpoint(c *holdfastv1.Checkpoint) checkpoint {
	at := api.Time(c.GetTime())
	return checkpoint{ID: c.GetId(), Time: timeText(at), Tag: textOrNull(c.GetTag()), State: c.GetState(),
		Reason: textOrNull(c.GetReason()), Pinned: c.GetPinned(), Label: textOrNull(c.GetLabel()), Consistency: textOrNull(c.GetConsistency()), at: at}
}

func (c checkpoint) row() []string {
	return []string{c.ID, shortTime(c.Time), orHyphen(c.Tag), c.State, orHyphen(c.Consistency)}
}

const checkpointHead = "ID TIME TAG STATE CONSISTENCY"

func (a *app) checkpointCommand() *cobra.Command {
	return parent("checkpoint", "List, make, tag and keep checkpoints",
		`A checkpoint is a point that a group can be brought back to: the state of all its
disks after some prefix of its writes. One is made every interval; you can make one
with a tag of your own.

Its id is the place of the cut in the group's stream of records. Ids rise, and jump by
as many records as were sent in between. States: good (it can be opened), verifying
(the journal is still checking it), bad (damage was found: what is damaged reads as an
error).

Checkpoints go when they are older than the group's history. One that you pin stays,
and all that it needs, until you unpin it.`,
		a.checkpointList(), a.checkpointShow(), a.checkpointCreate(), a.checkpointTag(), a.checkpointPin(), a.checkpointUnpin())
}

func (a *app) checkpointCreate() *cobra.Command {
	var tag string
	var freeze bool
	wait := config.Duration(time.Minute)
	cmd := &cobra.Command{
		Use:   "create --tag TAG",
		Short: "Make a checkpoint now and wait until it can be opened",
		Long: `Create cuts a checkpoint now, with a tag by which you will know it again, and returns
once it is durable at the target and listed there.

With --freeze the source's vra runs the commands that its file has for the group, before
the cut and after it, each for 10 s at most: they bring the guests to rest and let them go
on. The checkpoint is then application-consistent. If they fail, or no cut can be made
within 10 s, it is made all the same; it is crash-consistent, as all others, and its
consistency says crash-freeze-failed for as long as it is listed.`,
		Example: "  holdfast checkpoint create --tag before-upgrade\n  holdfast checkpoint create --tag month-end --freeze",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.checkNewTag(tag); err != nil {
				return usagef("--tag %w", err)
			}
			if wait <= 0 {
				return usagef("--wait %s: want more than zero", wait)
			}
			client, c, err := a.dial(api.RoleSource)
			if err != nil {
				return err
			}
			defer client.Close()
			if s := a.standing(cmd.Context(), c); s != "" {
				fmt.Fprintf(a.stderr, "The group is %s: waiting at most %s.\n", printable(s), wait)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait.D())
			defer cancel()
			watch, stop := a.watchBad(ctx, tag)
			defer stop()
			res, err := client.Checkpoints.Create(watch, &holdfastv1.CheckpointsServiceCreateRequest{Group: c.Group, Tag: tag, Freeze: freeze, IdempotencyKey: api.NewKey()})
			var bad badError
			if errors.As(context.Cause(watch), &bad) {
				return bad
			}
			if err != nil {
				if f := api.AsFailure(err); f.Code == api.TimedOut {
					return fmt.Errorf("the checkpoint was not listed within %s%s: see holdfast status; it may be listed later", wait, because(a.standing(cmd.Context(), c)))
				}
				return explain(api.RoleSource, err)
			}
			made := newCheckpoint(res.GetCheckpoint())
			if why := res.GetFreezeFailed(); why != "" {
				fmt.Fprintf(a.stderr, "The checkpoint is not known to be application-consistent: %s.\n", printable(why))
			}
			if bad, ok := a.isBad(ctx, made.ID); ok {
				return bad
			}
			return a.print(made, checkpointHead, [][]string{made.row()})
		},
	}
	cmd.Flags().StringVar(&tag, "tag", "", "`TAG` to know it by, at most 256 bytes")
	cmd.Flags().BoolVar(&freeze, "freeze", false, "bring the guests to rest around it, with the group's commands")
	cmd.Flags().Var(durationFlag{&wait}, "wait", "`DURATION` to wait at most")
	return cmd
}

// standing is why a checkpoint may have to wait: the state and reason of a group in
// which none is listed; empty when there is no such thing, or it is not known.
func (a *app) standing(ctx context.Context, c *config.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	groups, err := askStatus(ctx, c)
	if err != nil {
		return ""
	}
	for _, g := range groups {
		if g.Name != c.Group || g.State == api.StateProtected || g.State == api.StateBehind {
			continue
		}
		if g.Reason == nil {
			return g.State
		}
		return g.State + " (" + *g.Reason + ")"
	}
	return ""
}

func because(standing string) string {
	if standing == "" {
		return ""
	}
	return ", for the group is " + standing
}

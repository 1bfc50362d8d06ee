package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/spf13/cobra"
)

// listFlags say which checkpoints to list, and how.
type listFlags struct {
	limit        int
	after        string
	newest       bool
	from, to     string
	tag, state   string
	tagged, pins bool
	utc          bool
}

func (a *app) checkpointList() *cobra.Command {
	var f listFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the checkpoints, oldest first",
		Long: `List shows the checkpoints that are listed at the target, oldest first, with all that is
known to be wrong with them. All that is asked for must hold: --tagged --from 24h lists
those of the last day that carry a tag.

A time is RFC 3339 (2026-01-02T15:04:05Z, or 2026-01-02 for its begin here) or a duration
that it is ago (90s, 15m, 24h). With --limit the list ends early, and says how to go on.`,
		Example: `  holdfast checkpoint list --newest --limit 20
  holdfast checkpoint list --from 24h --to 23h
  holdfast checkpoint list --tag before-upgrade -o json | jq -r '.[-1].id'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := f.request(time.Now())
			if err != nil {
				return err
			}
			client, c, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			r.Group = c.Group
			all, more, err := pages(cmd.Context(), client, r, f.limit)
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			rows, proofs := make([][]string, len(all)), a.proofs(c.Group)
			for i := range all {
				all[i].Proved = textOrNull(proofs[all[i].ID])
				rows[i] = all[i].fullRow(time.Now(), f.zone())
			}
			if err := a.print(all, checkpointFullHead, rows); err != nil || !more {
				return err
			}
			fmt.Fprintf(a.stderr, "There are more: add --after %s.\n", all[len(all)-1].ID)
			return nil
		},
	}
	fs := cmd.Flags()
	fs.Var(countFlag{&f.limit}, "limit", "at most so many; 0: all")
	fs.StringVar(&f.after, "after", "", "only those that come after the checkpoint with this `ID` in the list")
	fs.BoolVar(&f.newest, "newest", false, "newest first")
	fs.StringVar(&f.from, "from", "", "only those not before this `TIME`")
	fs.StringVar(&f.to, "to", "", "only those before this `TIME`")
	fs.StringVar(&f.tag, "tag", "", "only those with this `TAG`")
	fs.BoolVar(&f.tagged, "tagged", false, "only those with a tag")
	fs.BoolVar(&f.pins, "pinned", false, "only those that are pinned")
	fs.StringVar(&f.state, "state", "", "only those in this `STATE`: good, verifying or bad")
	fs.BoolVar(&f.utc, "utc", false, "times in UTC, not in the time zone here")
	states := []string{api.CheckpointGood, api.CheckpointVerifying, api.CheckpointBad}
	cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("after", a.completeCheckpoints)
	return cmd
}

// request is what the flags ask of a target.
func (f *listFlags) request(now time.Time) (*holdfastv1.CheckpointsServiceListRequest, error) {
	r := &holdfastv1.CheckpointsServiceListRequest{PageToken: f.after, NewestFirst: f.newest, Tag: f.tag, Tagged: f.tagged, Pinned: f.pins, State: f.state}
	if f.limit < 0 {
		return nil, usagef("--limit %d: want 0 or more", f.limit)
	}
	if n, err := strconv.ParseUint(f.after, 10, 64); f.after != "" && (err != nil || n == 0) {
		return nil, usagef("--after %q is no id: want one from holdfast checkpoint list", f.after)
	}
	if f.tag != "" {
		if err := api.CheckTag(f.tag); err != nil {
			return nil, usagef("--tag %w", err)
		}
	}
	switch f.state {
	case "", api.CheckpointGood, api.CheckpointVerifying, api.CheckpointBad:
	default:
		return nil, usagef("--state %q: want good, verifying or bad", f.state)
	}
	from, err := timeOf(f.from, now, time.Local)
	if err != nil {
		return nil, usagef("--from %w", err)
	}
	to, err := timeOf(f.to, now, time.Local)
	if err != nil {
		return nil, usagef("--to %w", err)
	}
	if !from.IsZero() && !to.IsZero() && !from.Before(to) {
		return nil, usagef("--from %s is not before --to %s", f.from, f.to)
	}
	r.From, r.To = api.Timestamp(from), api.Timestamp(to)
	return r, nil
}

func (f *listFlags) zone() *time.Location {
	if f.utc {
		return time.UTC
	}
	return time.Local
}

// timeOf reads a time of an argument; "" is the zero time.
func timeOf(text string, now time.Time, zone *time.Location) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q: want a time as 2026-01-02T15:04:05Z, or how long ago as 90s, 15m or 24h", text)
}

// pages reads the list, at most limit checkpoints of it unless limit is 0, and says
// whether there are more.
func pages(ctx context.Context, client *api.Client, r *holdfastv1.CheckpointsServiceListRequest, limit int) (all []checkpoint, more bool, err error) {
	all = []checkpoint{}
	for {
		if limit > 0 {
			r.PageSize = int32(min(limit-len(all), 1000))
		}
		res, err := client.Checkpoints.List(ctx, r)
		if err != nil {
			return nil, false, err
		}
		for _, c := range res.GetCheckpoints() {
			all = append(all, newCheckpoint(c))
		}
		next := res.GetNextPageToken()
		if next == "" || limit > 0 && len(all) >= limit {
			return all, next != "", nil
		}
		if next == r.GetPageToken() {
			return nil, false, fmt.Errorf("page %s follows itself", next)
		}
		r.PageToken = next
	}
}

// listCheckpoints reads all of them, oldest first.
func listCheckpoints(ctx context.Context, client *api.Client, group string) ([]checkpoint, error) {
	all, _, err := pages(ctx, client, &holdfastv1.CheckpointsServiceListRequest{Group: group}, 0)
	return all, err
}

const checkpointFullHead = "ID TIME AGE TAG PIN STATE CONSISTENCY PROVED REASON"

// fullRow is all that is known of a checkpoint, with its time in that zone.
func (c checkpoint) fullRow(now time.Time, zone *time.Location) []string {
	at, age := "-", "-"
	if !c.at.IsZero() {
		at = c.at.In(zone).Format(time.RFC3339)
	}
	if c.at.Before(now) && !c.at.IsZero() {
		age = ageText(now.Sub(c.at))
	}
	pin := "-"
	if c.Pinned {
		pin = "pinned"
		if c.Label != nil {
			pin += ": " + *c.Label
		}
	}
	return []string{c.ID, at, age, orHyphen(c.Tag), pin, c.State, orHyphen(c.Consistency), orHyphen(c.Proved), orHyphen(c.Reason)}
}

func (a *app) checkpointShow() *cobra.Command {
	return a.onCheckpoint("show", "", "Show one checkpoint",
		`Show tells all that is known of one checkpoint.`,
		"  holdfast checkpoint show latest\n  holdfast checkpoint show before-upgrade -o json", 1,
		func(ctx context.Context, client *api.Client, group, id string, _ []string) (*holdfastv1.Checkpoint, error) {
			res, err := client.Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Group: group, Id: id})
			return res.GetCheckpoint(), err
		})
}

func (a *app) checkpointTag() *cobra.Command {
	remove := false
	cmd := a.onCheckpoint("tag", " TAG", "Give a checkpoint a tag",
		`Tag gives a checkpoint a tag in place of the one it has; --remove takes it away. Several
checkpoints may carry the same tag, but only one that no other carries names its checkpoint.`,
		"  holdfast checkpoint tag latest before-upgrade\n  holdfast checkpoint tag 4711 --remove", 2,
		func(ctx context.Context, client *api.Client, group, id string, args []string) (*holdfastv1.Checkpoint, error) {
			tag := ""
			if len(args) > 0 {
				tag = args[0]
			}
			res, err := client.Checkpoints.Tag(ctx, &holdfastv1.CheckpointsServiceTagRequest{Group: group, Id: id, Tag: tag})
			return res.GetCheckpoint(), err
		})
	cmd.Flags().BoolVar(&remove, "remove", false, "take its tag away")
	cmd.Args = func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usagef("which checkpoint is missing: want an id or a tag from holdfast checkpoint list, or latest")
		case remove && len(args) > 1:
			return usagef("unexpected argument %q: --remove takes the tag away", args[1])
		case !remove && len(args) == 1:
			return usagef("the tag is missing: holdfast checkpoint tag %s TAG, or --remove", args[0])
		case len(args) > 2:
			return usagef("unexpected argument %q", args[2])
		case len(args) == 2:
			if err := a.checkNewTag(args[1]); err != nil {
				return usagef("tag %w", err)
			}
		}
		return nil
	}
	return cmd
}

func (a *app) checkpointPin() *cobra.Command {
	label := ""
	cmd := a.onCheckpoint("pin", "", "Keep a checkpoint, whatever its age",
		`Pin keeps a checkpoint and all that it needs until it is unpinned. The history behind it
cannot be dropped, so it takes space for as long. Pinned again, it has the new label.`,
		"  holdfast checkpoint pin before-upgrade --label audit-2026", 1,
		func(ctx context.Context, client *api.Client, group, id string, _ []string) (*holdfastv1.Checkpoint, error) {
			res, err := client.Checkpoints.Pin(ctx, &holdfastv1.CheckpointsServicePinRequest{Group: group, Id: id, Label: label})
			return res.GetCheckpoint(), err
		})
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if label == "" {
			return nil
		}
		if err := api.CheckTag(label); err != nil {
			return usagef("--label %w", err)
		}
		return nil
	}
	cmd.Flags().StringVar(&label, "label", "", "what it is kept for: `TEXT` of at most 256 bytes")
	return cmd
}

func (a *app) checkpointUnpin() *cobra.Command {
	return a.onCheckpoint("unpin", "", "Let a checkpoint go with the others of its age",
		`Unpin ends what pin began. A checkpoint that is older than the group's history, or whose
neighbours were thinned out, is gone soon after.`,
		"  holdfast checkpoint unpin before-upgrade\n  holdfast checkpoint list --pinned", 1,
		func(ctx context.Context, client *api.Client, group, id string, _ []string) (*holdfastv1.Checkpoint, error) {
			res, err := client.Checkpoints.Unpin(ctx, &holdfastv1.CheckpointsServiceUnpinRequest{Group: group, Id: id})
			return res.GetCheckpoint(), err
		})
}

// onCheckpoint is a command on one checkpoint of the target, named by its first argument.
func (a *app) onCheckpoint(verb, more, short, long, example string, most int,
	do func(ctx context.Context, client *api.Client, group, id string, args []string) (*holdfastv1.Checkpoint, error)) *cobra.Command {
	utc := false
	cmd := &cobra.Command{
		Use: verb + " ID|TAG|latest" + more, Short: short, Long: long, Example: example,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("which checkpoint is missing: want an id or a tag from holdfast checkpoint list, or latest")
			}
			if len(args) > most {
				return usagef("unexpected argument %q", args[most])
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeCheckpoints(cmd, args, word)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAt(args[0]); err != nil {
				return usagef("%s", strings.TrimPrefix(err.Error(), "--checkpoint "))
			}
			client, c, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			id, err := resolve(cmd.Context(), client, c.Group, args[0])
			if err != nil {
				return err
			}
			m, err := do(cmd.Context(), client, c.Group, id, args[1:])
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			have, f := newCheckpoint(m), listFlags{utc: utc}
			have.Proved = textOrNull(a.proofs(c.Group)[have.ID])
			return a.print(have, checkpointFullHead, [][]string{have.fullRow(time.Now(), f.zone())})
		},
	}
	cmd.Flags().BoolVar(&utc, "utc", false, "the time in UTC, not in the time zone here")
	return cmd
}

// badError says that a checkpoint that was waited for is bad.
type badError struct{ id, reason string }

func (e badError) Error() string {
	return fmt.Sprintf("checkpoint %s is bad: %s: make another, and see holdfast status", e.id, e.reason)
}

// badEvery is how often the target is asked whether the awaited checkpoint is bad: a
// source is told of good ones alone.
const badEvery = 500 * time.Millisecond

// watchBad returns a context that ends with a badError when the target lists a new
// checkpoint with the tag as bad.
func (a *app) watchBad(ctx context.Context, tag string) (context.Context, context.CancelFunc) {
	watch, fail := context.WithCancelCause(ctx)
	done := make(chan struct{})
	stop := func() { fail(nil); <-done }
	client, c, err := a.dial(api.RoleTarget)
	if err != nil { // it is waited for all the same
		close(done)
		return watch, stop
	}
	newestBad := func() (checkpoint, bool) {
		r := &holdfastv1.CheckpointsServiceListRequest{Group: c.Group, Tag: tag, State: api.CheckpointBad, NewestFirst: true}
		all, _, err := pages(watch, client, r, 1)
		if err != nil || len(all) == 0 || all[0].State != api.CheckpointBad {
			return checkpoint{}, err == nil
		}
		return all[0], true
	}
	before, known := newestBad()
	go func() {
		defer close(done)
		defer client.Close()
		again := time.NewTicker(badEvery)
		defer again.Stop()
		for {
			select {
			case <-watch.Done():
				return
			case <-again.C:
			}
			now, ok := newestBad()
			if ok && known && now.ID != "" && now.ID != before.ID {
				fail(badError{now.ID, orHyphen(now.Reason)})
			}
			if ok && !known {
				before, known = now, true
			}
		}
	}()
	return watch, stop
}

// isBad asks the target for the checkpoint; what it does not answer is not bad.
func (a *app) isBad(ctx context.Context, id string) (badError, bool) {
	client, c, err := a.dial(api.RoleTarget)
	if err != nil {
		return badError{}, false
	}
	defer client.Close()
	res, err := client.Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Group: c.Group, Id: id})
	if m := res.GetCheckpoint(); err == nil && m.GetState() == api.CheckpointBad {
		return badError{id, m.GetReason()}, true
	}
	return badError{}, false
}

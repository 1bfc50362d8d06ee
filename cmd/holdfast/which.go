package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/spf13/cobra"
)

// atFlag adds --checkpoint, which takes an id, a tag or latest.
func (a *app) atFlag(cmd *cobra.Command, at *string) {
	cmd.Flags().StringVar(at, "checkpoint", "", "checkpoint by its `ID`, by a tag that it alone carries, or latest")
	cmd.RegisterFlagCompletionFunc("checkpoint", a.completeCheckpoints)
}

// checkAt says what the word for a checkpoint alone shows to be wrong.
func checkAt(at string) error {
	switch {
	case at == "":
		return usagef("--checkpoint is missing: want an id or a tag from holdfast checkpoint list, or latest")
	case isNumber(at):
		if n, err := strconv.ParseUint(at, 10, 64); err != nil || n == 0 {
			return usagef("--checkpoint %s is no id: want one from holdfast checkpoint list", at)
		}
	case strings.HasPrefix(at, "-"):
		return usagef("--checkpoint %q: want an id or a tag from holdfast checkpoint list, or latest", at)
	default:
		if err := api.CheckTag(at); err != nil {
			return usagef("--checkpoint %w", err)
		}
	}
	return nil
}

func isNumber(s string) bool { return strings.Trim(s, "0123456789") == "" }

// checkNewTag says what is wrong with a tag that is given, and warns of one that may not name its checkpoint for ever.
func (a *app) checkNewTag(tag string) error {
	err := api.CheckNewTag(tag)
	if err == nil && isNumber(tag) {
		fmt.Fprintf(a.stderr, "Warning: tag %s reads as the id of a checkpoint: where one has that id, the word names that one.\n", tag)
	}
	return err
}

// whichID is the id of the checkpoint that a word names; latest stays as it is. An id
// goes before a tag that reads the same.
func whichID(at string, all []checkpoint) (string, error) {
	if at == api.Latest {
		return at, nil
	}
	var tagged []string
	for _, c := range all {
		if c.ID == at {
			return at, nil
		}
		if c.Tag != nil && *c.Tag == at {
			tagged = append(tagged, c.ID)
		}
	}
	switch {
	case len(tagged) == 1 || len(tagged) > 1 && invariant.Planted("holdfast/any-tagged"):
		return tagged[0], nil
	case len(tagged) > 1:
		return "", fmt.Errorf("%d checkpoints carry the tag %q: name one by its id: %s", len(tagged), at, strings.Join(tagged, ", "))
	case isNumber(at):
		return at, nil // the target says what became of it
	}
	return "", fmt.Errorf("no checkpoint carries the tag %q: want an id or a tag from holdfast checkpoint list, or latest", at)
}

// maxNamed is how many checkpoints with one tag are told apart, and offered to complete a word.
const maxNamed = 100

// resolve asks the target for the checkpoints that the word may name.
func resolve(ctx context.Context, client *api.Client, group, at string) (string, error) {
	if at == api.Latest {
		return at, nil
	}
	all, _, err := pages(ctx, client, &holdfastv1.CheckpointsServiceListRequest{Group: group, Tag: at}, maxNamed)
	if err == nil && isNumber(at) {
		res, gerr := client.Checkpoints.Get(ctx, &holdfastv1.CheckpointsServiceGetRequest{Group: group, Id: at})
		if gerr == nil {
			all = append(all, newCheckpoint(res.GetCheckpoint()))
		} else if api.AsFailure(gerr).Code != api.NotFound {
			err = gerr
		}
	}
	if err != nil {
		return "", explain(api.RoleTarget, err)
	}
	return whichID(at, all)
}

// named finds time and tag of checkpoints for a table; what the target does not tell is
// a hyphen there.
func named(ctx context.Context, client *api.Client, group string) map[string]checkpoint {
	all, _ := listCheckpoints(ctx, client, group)
	byID := map[string]checkpoint{}
	for _, c := range all {
		byID[c.ID] = c
	}
	return byID
}

// completeWait is how long a completion may take to ask the target.
const completeWait = time.Second

// offer completes the first argument with the words that a daemon of that role is asked for; nothing where
// it does not answer at once.
func (a *app) offer(cmd *cobra.Command, args []string, role string,
	ask func(context.Context, *api.Client, *config.Context) []string) ([]string, cobra.ShellCompDirective) {
	client, c, err := a.dial(role)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
	defer cancel()
	return ask(ctx, client, c), cobra.ShellCompDirectiveNoFileComp
}

// completeCheckpoints offers the ids and tags there are, the newest first.
func (a *app) completeCheckpoints(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	words, directive := a.offer(cmd, nil, api.RoleTarget, func(ctx context.Context, client *api.Client, c *config.Context) (words []string) {
		all, _, _ := pages(ctx, client, &holdfastv1.CheckpointsServiceListRequest{Group: c.Group, NewestFirst: true}, maxNamed)
		for _, c := range all {
			words = append(words, c.ID+"\t"+strings.TrimSpace(shortTime(c.Time)+" "+deref(c.Tag)))
		}
		return words
	})
	return append([]string{api.Latest}, words...), directive | cobra.ShellCompDirectiveKeepOrder
}

// completeViews offers the ids of the open views.
func (a *app) completeViews(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, args, api.RoleTarget, func(ctx context.Context, client *api.Client, c *config.Context) (words []string) {
		res, _ := api.All(ctx, &holdfastv1.ViewsServiceListRequest{Group: c.Group}, client.Views.List)
		for _, v := range res.GetViews() {
			words = append(words, v.GetId()+"\tof checkpoint "+v.GetCheckpoint())
		}
		return words
	})
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

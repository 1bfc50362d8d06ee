package main

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

// retention is how a group's history is kept, as the user sees it; its JSON is kept for
// ever.
type retention struct {
	Group          string  `json:"group"`
	HistorySeconds int64   `json:"history_seconds"`
	HeldSeconds    int64   `json:"held_seconds"`
	Oldest         *string `json:"oldest"`
	Limit          *int64  `json:"limit"`
	WarnPercent    int32   `json:"warn_percent"`
	MinimumSeconds int64   `json:"minimum_seconds"`
	Thin           string  `json:"thin"`
	Own            bool    `json:"own"`
	JournalBytes   int64   `json:"journal_bytes"`
	LogBytes       int64   `json:"log_bytes"`
	IndexBytes     int64   `json:"index_bytes"`
	ScratchBytes   int64   `json:"scratch_bytes"`
	ReplicaBytes   int64   `json:"replica_bytes"`
	PromotedBytes  int64   `json:"promoted_bytes"`
	Level          string  `json:"level"`
	Reason         *string `json:"reason"`
	Since          *string `json:"since"`
}

func newRetention(m *holdfastv1.Retention) retention {
	p := m.GetPolicy()
	r := retention{Group: m.GetGroup(), HistorySeconds: p.GetHistory().GetSeconds(), HeldSeconds: m.GetHeld().GetSeconds(),
		Oldest: textOrNull(m.GetOldest()), WarnPercent: p.GetWarnPercent(), MinimumSeconds: p.GetMinimum().GetSeconds(), Thin: p.GetThin(),
		Own: m.GetOwn(), JournalBytes: m.GetLogBytes() + m.GetIndexBytes() + m.GetScratchBytes(), LogBytes: m.GetLogBytes(),
		IndexBytes: m.GetIndexBytes(), ScratchBytes: m.GetScratchBytes(), ReplicaBytes: m.GetReplicaBytes(),
		PromotedBytes: m.GetPromotedBytes(), Level: m.GetLevel(), Reason: textOrNull(m.GetReason()), Since: timeText(api.Time(m.GetSince()))}
	if limit := p.GetLimit(); limit != 0 {
		r.Limit = &limit
	}
	return r
}

const retentionHead = "GROUP HISTORY HELD OLDEST JOURNAL LIMIT REPLICA THIN LEVEL"

func (r retention) row() []string {
	limit := "none"
	if r.Limit != nil {
		limit = bytesText(*r.Limit)
	}
	return []string{r.Group, spanText(r.HistorySeconds), ageText(time.Duration(r.HeldSeconds) * time.Second), orHyphen(r.Oldest),
		bytesText(r.JournalBytes), limit, bytesText(r.ReplicaBytes), r.Thin, r.Level}
}

func spanText(seconds int64) string {
	return config.Span(time.Duration(seconds) * time.Second).String()
}

// printRetention prints groups, and under the table what is the matter with them.
func (a *app) printRetention(result any, all ...retention) error {
	var rows [][]string
	for _, r := range all {
		rows = append(rows, r.row())
	}
	if err := a.print(result, retentionHead, rows); err != nil || a.output == "json" {
		return err
	}
	for _, r := range all {
		if r.Reason == nil {
			continue
		}
		if _, err := fmt.Fprintf(a.stdout, "\n%s: %s: %s\n", r.Group, r.Level, printable(*r.Reason)); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) groupCommand() *cobra.Command {
	c := parent("group", "Tell and change what of groups is replicated, and how they are kept", "",
		a.groupPause(), a.groupResume(), a.groupSync(), a.groupAdopt(), a.groupPreseed(), a.groupVolume(), a.groupRemove(),
		parent("retention", "How much history is kept",
			`The target keeps the history of a group for as long as its policy says, 1h to 30d.
What is older goes into the group's replica, and cannot be gone back to any more.
Pinned checkpoints, and those that a view shows, stand in the way of that.

A limit bounds what log, index and scratch take. At its warn percentage the level is
warning. Near the limit test views are closed, then history gets shorter from the
oldest on (shortened), down to the minimum or to what is pinned; then no data is
taken (stopped), and the source marks what it would have sent.

Ages count only time that has certainly passed: a clock that is set expires nothing,
and while the target's machine is off nothing grows older.`,
			a.retentionShow(), a.retentionSet()),
		a.groupVerify())
	c.Aliases = []string{"vpg"}
	return c
}

func (a *app) retentionShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show what is kept of a group, or of all",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("unexpected argument %q", args[1])
			}
			return nil
		},
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			req := &holdfastv1.GroupsServiceGetRetentionRequest{}
			if len(args) > 0 {
				req.Group = args[0]
			}
			res, err := api.All(cmd.Context(), req, client.Groups.GetRetention)
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			all := []retention{}
			for _, m := range res.GetRetention() {
				all = append(all, newRetention(m))
			}
			return a.printRetention(all, all...)
		},
	}
}

func (a *app) retentionSet() *cobra.Command {
	var history, limit, minimum, thin string
	var warn int32
	var defaults bool
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change what is kept of a group",
		Long: `Changes what is given and leaves the rest. It takes effect at once: history that is
longer or larger than is now asked goes, and does not come back.`,
		Example: "  holdfast group retention set db --history 7d --limit 200GiB\n  holdfast group retention set db --thin 'all for 1h, minute for 24h, hour for 30d'",
		Args:    oneArg("group"),

		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &holdfastv1.GroupsServiceSetRetentionRequest{Group: args[0], Defaults: defaults, IdempotencyKey: api.NewKey()}
			given := cmd.Flags().Changed
			span := func(name, text string) (time.Duration, error) {
				d, err := config.ParseSpan(text)
				if err != nil {
					return 0, usagef("--%s: %w", name, err)
				}
				return d.D(), nil
			}
			if given("history") {
				d, err := span("history", history)
				if err != nil {
					return err
				}
				if d < config.MinHistory.D() || d > config.MaxHistory.D() {
					return usagef("--history %s: want %s to %s", history, config.MinHistory, config.MaxHistory)
				}
				req.History = api.Span(d)
			}
			if given("minimum") {
				d, err := span("minimum", minimum)
				if err != nil {
					return err
				}
				if most := historyOr(req.History.AsDuration()); d > most {
					return usagef("--minimum %s: want at most the history, %s", minimum, config.Span(most))
				}
				req.Minimum = api.Span(d)
			}
			if given("limit") {
				n := config.Size(0)
				if limit != "none" {
					var err error
					if n, err = config.ParseSize(limit); err != nil {
						return usagef("--limit: %w, or none", err)
					}
					if n < config.MinRetentionLimit {
						return usagef("--limit: a limit of %s is too small: want at least %s, or none", n.Text(), config.MinRetentionLimit.Text())
					}
				}
				bytes := int64(n)
				req.Limit = &bytes
			}
			if given("warn") {
				if warn < 1 || warn > 100 {
					return usagef("--warn %d: want 1 to 100", warn)
				}
				req.WarnPercent = &warn
			}
			if given("thin") {
				req.Thin = &thin
			}
			if !defaults && !given("history") && !given("minimum") && !given("limit") && !given("warn") && !given("thin") {
				return usagef("there is nothing to change: give --history, --limit, --minimum, --warn, --thin or --defaults")
			}
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			res, err := client.Groups.SetRetention(cmd.Context(), req)
			if err != nil {
				return explain(api.RoleTarget, err)
			}
			r := newRetention(res.GetRetention())
			return a.printRetention(r, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&history, "history", "", "how far back the group can be brought, `DURATION` of 1h to 30d")
	f.StringVar(&limit, "limit", "", "the most that log, index and scratch take, a `SIZE` of at least 1GiB, or none")
	f.StringVar(&minimum, "minimum", "", "history that is kept even when no data can be taken for it, `DURATION`; 0s: only the newest good checkpoint")
	f.Int32Var(&warn, "warn", 0, "`PERCENT` of the limit, 1 to 100, from which the level is warning (75 unless it was set)")
	f.StringVar(&thin, "thin", "", "which checkpoints are kept as they grow older, `TIERS` as in 'all for 1h, minute for 24h, hour for 30d', or none")
	f.BoolVar(&defaults, "defaults", false, "go back to the target's configuration first")
	return cmd
}

// historyOr is the history that was given, else the longest that there may be.
func historyOr(given time.Duration) time.Duration {
	if given == 0 {
		return config.MaxHistory.D()
	}
	return given
}

// completeGroups offers the groups of the target.
func (a *app) completeGroups(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, args, api.RoleTarget, func(ctx context.Context, client *api.Client, _ *config.Context) (words []string) {
		res, _ := api.All(ctx, &holdfastv1.GroupsServiceGetRetentionRequest{}, client.Groups.GetRetention)
		for _, m := range res.GetRetention() {
			words = append(words, m.GetGroup())
		}
		return words
	})
}

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/scenario"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/spf13/cobra"
)

// statusWait is how long a VRA may take to say how it is.
const statusWait = 3 * time.Second

// groupStatus is a group as the user sees it; its JSON is kept for ever.
type groupStatus struct {
	Name        string   `json:"name"`
	State       string   `json:"state"`
	Reason      *string  `json:"reason"`
	Since       *string  `json:"since"`
	Lag         *float64 `json:"lag_seconds"`
	Behind      *int64   `json:"bytes_behind"`
	ETA         *float64 `json:"eta_seconds"`
	Checkpoints *int64   `json:"checkpoints"`
	Oldest      *string  `json:"oldest"`
	Newest      *string  `json:"newest"`
	Connections *int32   `json:"connections"` // data connections to the target that are up
	Codec       *string  `json:"codec"`       // lz4 or raw: what batches are sealed with now
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say how the groups stand",
		Long: `Status says for each group in which state it is, why, and since when; how old the
oldest write is that the target has not made durable (lag), how much it lacks
(behind) and how long that will take (eta); how many checkpoints can be opened, and
the times of the oldest and the newest. Where the source has found that several data
connections to the target carry more than one, it says how many there are (links).
With -o json it also says whether batches are compressed now (codec: lz4 or raw).

What is not known is null (in the table: -), never zero. The table shows since and eta
only while a group is not protected.

States of a group:

  initial-sync  the disks are copied for the first time; nothing can be opened yet
  protected     every write is at the target within a few seconds
  behind        checkpoints are still made, but writes wait longer: the link is slower
                than the guest writes
  spilling      writes that wait are kept on disk, since memory for them is used up;
                checkpoints are still made
  marks-only    only places are kept of what changed; no new checkpoint until a resync
  resync        what is marked is sent again; no new checkpoint until that is done
  disconnected  the other site does not answer; the guest goes on
  paused        somebody asked for it: what changes is only marked
  removed       it is not protected any more: its filters serve its disks, and no more
  recovering    the group is being brought back
  error         somebody must act: the reason says what on`,
		Example: "  holdfast --context lab/context.yaml status\n  holdfast status -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.context()
			if err != nil {
				return err
			}
			groups, err := askStatus(cmd.Context(), c)
			lab := labStatusOf(cmd.Context(), c)
			if err != nil && lab != nil && lab.Supervisor == 0 {
				return fmt.Errorf("the lab in %s does not run: start it with: %s", c.Lab, scenario.Command("lab", "start", "--dir", c.Lab))
			}
			if err != nil {
				return err
			}
			if a.output == "table" {
				a.tellDeaths(lab, time.Now())
			}
			head, rows := statusTable(groups)
			return a.print(map[string]any{"groups": groups}, head, rows)
		},
	}
}

// labStatusOf asks the lab of a context how its processes are; nil when there is none,
// or it does not say.
func labStatusOf(ctx context.Context, c *config.Context) *scenario.Status {
	if c.Lab == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	lab, err := scenario.Open(c.Lab)
	if err != nil {
		return nil
	}
	st, err := lab.Status(ctx)
	if err != nil {
		return nil
	}
	return st
}

// deathIsNews is for how long status tells of a daemon that died and is back; lab status always does.
const deathIsNews = time.Minute

// tellDeaths says of each daemon that died, and is not back or only just, when, why and how often.
func (a *app) tellDeaths(lab *scenario.Status, now time.Time) {
	if lab == nil {
		return
	}
	for _, p := range lab.Processes {
		back := p.PID != 0 || p.SiteDown
		if text := p.Deaths(); text != "" && (!back || now.Sub(*p.LastDeath) < deathIsNews) {
			fmt.Fprintf(a.stderr, "%s %s\n", p.Name, printable(text))
		}
	}
}

// statusTable fits 100 columns while all is well: since when, and how long until the
// target has all, are shown when a group is not protected.
func statusTable(groups []groupStatus) (head string, rows [][]string) {
	well := true
	for _, g := range groups {
		well = well && g.State == api.StateProtected
	}
	head = "GROUP STATE LAG BEHIND CHECKPOINTS OLDEST NEWEST REASON"
	if !well {
		head = "GROUP STATE SINCE LAG BEHIND ETA CHECKPOINTS OLDEST NEWEST REASON"
	}
	several := false
	for _, g := range groups {
		several = several || g.Connections != nil && *g.Connections > 1
	}
	if several {
		head = strings.Replace(head, "CHECKPOINTS", "LINKS CHECKPOINTS", 1)
	}
	for _, g := range groups {
		row := []string{g.Name, g.State}
		if !well {
			row = append(row, shortTime(g.Since))
		}
		row = append(row, secondsOrHyphen(g.Lag), bytesOrHyphen(g.Behind))
		if !well {
			row = append(row, secondsOrHyphen(g.ETA))
		}
		if several {
			links := "-"
			if g.Connections != nil {
				links = fmt.Sprint(*g.Connections)
			}
			row = append(row, links)
		}
		rows = append(rows, append(row, intOrHyphen(g.Checkpoints), shortTime(g.Oldest), shortTime(g.Newest), orHyphen(g.Reason)))
	}
	return head, rows
}

// askStatus asks the VRAs of both sites at once and makes one picture of it.
func askStatus(ctx context.Context, c *config.Context) ([]groupStatus, error) {
	answers := map[string][]*holdfastv1.Group{}
	failures := map[string]error{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, v := range c.VRAs {
		wg.Go(func() {
			groups, err := groupsOf(ctx, v)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures[v.Role] = err
				return
			}
			answers[v.Role] = groups
		})
	}
	wg.Wait()
	if len(answers) == 0 {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for role, err := range failures {
			return nil, explain(role, err)
		}
	}
	return mergeGroups(answers[api.RoleSource], answers[api.RoleTarget], failures[api.RoleSource], failures[api.RoleTarget]), nil
}

func groupsOf(ctx context.Context, v config.ContextVRA) ([]*holdfastv1.Group, error) {
	client, err := dialVRA(v)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	res, err := api.All(ctx, &holdfastv1.StatusServiceGetRequest{}, client.Status.Get)
	return res.GetGroups(), err
}

// mergeGroups makes one picture: the source knows how replication stands, the target
// which checkpoints there are. What the one that does not answer knows is unknown,
// and a group whose source or target does not answer is not protected, whatever the other
// thought last. An error of the target's, and a failover there, outweigh what the source knows.
func mergeGroups(source, target []*holdfastv1.Group, sourceErr, targetErr error) []groupStatus {
	merged := []groupStatus{}
	at := map[string]int{}
	for _, g := range source {
		at[g.GetId()] = len(merged)
		s := groupStatus{
			Name: g.GetName(), State: g.GetState(), Reason: textOrNull(g.GetReason()), Since: timeText(api.Time(g.GetSince())),
			Lag: rounded(g.LagSeconds), Behind: g.BytesBehind, ETA: rounded(g.EtaSeconds), Codec: textOrNull(g.GetCodec()),
		}
		if n := g.GetConnections(); n > 0 {
			s.Connections = &n
		}
		if targetErr != nil {
			s.Reason = textOrNull(joined(g.GetReason(), "the target vra does not answer: "+api.AsFailure(targetErr).Message))
			if s.State == api.StateProtected { // the source has not noticed yet
				s.State, s.Since, s.Lag = api.StateDisconnected, nil, nil
			}
		}
		merged = append(merged, s)
	}
	for _, g := range target {
		i, ok := at[g.GetId()]
		if !ok {
			i = len(merged)
			s := groupStatus{Name: g.GetName(), State: g.GetState(), Reason: textOrNull(g.GetReason()), Since: timeText(api.Time(g.GetSince()))}
			if silent := "the source vra does not answer: "; sourceErr != nil && s.State == api.StateRecovering { // nothing else is to be expected
				s.Reason = textOrNull(joined(g.GetReason(), silent+api.AsFailure(sourceErr).Message))
			} else if sourceErr != nil {
				if s.State != api.StateDisconnected && !invariant.Planted("holdfast/trust-target") {
					s.State, s.Since = api.StateDisconnected, nil
				}
				s.Reason = textOrNull(silent + api.AsFailure(sourceErr).Message)
			}
			merged = append(merged, s)
		}
		s := &merged[i]
		if ok && g.GetState() == api.StateRecovering { // the source stands by, or has not heard of it
			s.Reason, s.State, s.Since = textOrNull(g.GetReason()), api.StateRecovering, timeText(api.Time(g.GetSince()))
		}
		if ok && g.GetState() == api.StateError && s.State != api.StateError { // damage, or no space: only the target knows
			s.Reason = textOrNull(joined(deref(s.Reason), g.GetReason()))
			s.State, s.Since = api.StateError, timeText(api.Time(g.GetSince()))
		}
		if ok && g.GetState() == api.StateProtected && g.GetReason() != "" { // older checkpoints are bad, or a store is gone
			s.Reason = textOrNull(joined(deref(s.Reason), g.GetReason()))
		}
		s.Checkpoints = g.Checkpoints
		if c := g.GetOldest(); c != nil {
			s.Oldest = timeText(api.Time(c.GetTime()))
		}
		if c := g.GetNewest(); c != nil {
			s.Newest = timeText(api.Time(c.GetTime()))
		}
	}
	return merged
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return fmt.Sprintf("%s; %s", a, b)
}

// rounded keeps milliseconds.
func rounded(s *float64) *float64 {
	if s == nil {
		return nil
	}
	r := float64(int64(*s*1000+0.5)) / 1000
	return &r
}

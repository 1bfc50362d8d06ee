package main

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/spf13/cobra"
)

// verification is how the reading back of a group stands; its JSON is kept for ever.
type verification struct {
	Running  bool     `json:"running"`
	Total    int64    `json:"total_bytes"`
	Left     int64    `json:"left_bytes"`
	Rate     int64    `json:"bytes_per_second"`
	LeftFor  *float64 `json:"seconds_left"`
	LastFull *float64 `json:"last_full_seconds"` // ago
	Oldest   float64  `json:"oldest_seconds"`
	Unread   int64    `json:"unread_bytes"`
	Damaged  int64    `json:"damaged_places"`
	Bad      int64    `json:"bad_checkpoints"`
	Damage   *string  `json:"damage"`
	Repairs  int64    `json:"repairs"`
}

func newVerification(m *holdfastv1.GroupsServiceVerifyResponse) verification {
	v := verification{Running: m.GetRunning(), Total: m.GetTotalBytes(), Left: m.GetLeftBytes(), Rate: m.GetBytesPerSecond(), LastFull: m.LastFullSeconds,
		Oldest: m.GetOldestSeconds(), Unread: m.GetUnreadBytes(), Damaged: m.GetDamaged(), Bad: m.GetBadCheckpoints(),
		Damage: textOrNull(m.GetDamage()), Repairs: m.GetRepairs()}
	if v.Running && v.Rate > 0 {
		left := float64(v.Left) / float64(v.Rate)
		v.LeftFor = &left
	}
	return v
}

// verifyEvery is how often a command that waits asks.
const verifyEvery = time.Second

func (a *app) groupVerify() *cobra.Command {
	var wait, show bool
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Read back all that the target keeps of a group",
		Long: `The target reads all that it keeps back within 14 days, by itself. Verify has all of a
group read now, at 64 MiB/s at most and slower beside intake. What is damaged is
repaired by parity where there is one; else the source sends again what the newest
checkpoints need, and those that need what is lost are bad.

It returns at once. With --wait it says how far it is and returns when all was read;
it fails when something is damaged. With --show it begins nothing.`,
		Example: "  holdfast group verify db --wait\n  holdfast group verify db --show -o json | jq .damaged_places",
		Args:    oneArg("group"),

		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.dial(api.RoleTarget)
			if err != nil {
				return err
			}
			defer client.Close()
			req := &holdfastv1.GroupsServiceVerifyRequest{Group: args[0], Start: !show}
			for {
				res, err := client.Groups.Verify(cmd.Context(), req)
				if err != nil {
					return explain(api.RoleTarget, err)
				}
				v := newVerification(res)
				req.Start = false
				if wait && v.Running {
					fmt.Fprintf(a.stderr, "%s of %s left, %s\n", bytesOrHyphen(&v.Left), bytesOrHyphen(&v.Total), secondsOrHyphen(v.LeftFor))
					select {
					case <-time.After(verifyEvery):
						continue
					case <-cmd.Context().Done():
						return cmd.Context().Err()
					}
				}
				if err := a.printVerification(v); err != nil {
					return err
				}
				if wait && v.Damaged > 0 {
					return fmt.Errorf("group %s: %d places are damaged, %d checkpoints are bad: see checkpoint list --state bad", args[0], v.Damaged, v.Bad)
				}
				return nil
			}
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when all was read")
	cmd.Flags().BoolVar(&show, "show", false, "say how it stands, and begin nothing")
	return cmd
}

func (a *app) printVerification(v verification) error {
	running := "no"
	if v.Running {
		running = "yes"
	}
	oldest := v.Oldest
	row := []string{running, bytesOrHyphen(&v.Left), secondsOrHyphen(v.LeftFor), secondsOrHyphen(v.LastFull), secondsOrHyphen(&oldest),
		bytesOrHyphen(&v.Unread), fmt.Sprint(v.Damaged), fmt.Sprint(v.Bad), orHyphen(v.Damage)}
	return a.print(v, "RUNNING LEFT ETA LAST-FULL OLDEST UNREAD DAMAGED BAD DAMAGE", [][]string{row})
}

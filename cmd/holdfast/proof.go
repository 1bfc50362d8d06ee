package main

import (
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/failover"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/spf13/cobra"
)

func (a *app) verifyCommand() *cobra.Command {
	var f jobFlags
	var wait string
	limit := config.DefaultWaitTime
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that a checkpoint can be recovered: boot it, and see that it works",
		Long: `Verify starts the machines of a group at a checkpoint as failover test does, isolated and
on scratch, waits until what they are waited for has come, takes a picture of each console,
and stops them again. The report is kept, with the pictures and what the machines
said on their serial ports: see holdfast failover report. checkpoint list shows which
checkpoints were so proved. The exit status is 1 when a machine did not come up.

What is waited for says the machines' file, or --wait for all of them:

  serial:TEXT      the machine says TEXT on its first serial port
  tcp:HOST:PORT    a connection is taken there, as seen from this host
  script:PATH      the program exits with 0; it is run again each second

To have it run each night, a timer of systemd's or cron:

  systemd-run --on-calendar=02:00 --setenv=HOLDFAST_CONTEXT=FILE holdfast verify
  0 2 * * * root HOLDFAST_CONTEXT=FILE holdfast verify -o json`,
		Example: "  holdfast verify --machines machines.yaml --wait serial:login:\n  holdfast verify --checkpoint before-upgrade --only db1 --wait tcp:127.0.0.1:15432 --wait-time 2m",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := config.ParseWait(wait)
			if err != nil {
				return usagef("--%w", err)
			}
			return a.beginJob(cmd.Context(), &f, recovery.Proof, func(p *recovery.Plan) error {
				for i := range p.Machines {
					m := &p.Machines[i]
					m.Picture = true
					if wait != "" {
						m.Wait = w
					}
					if cmd.Flags().Changed("wait-time") {
						m.WaitTime = limit.D()
					}
					if m.Wait.Kind == config.WaitNothing {
						return usagef("nothing is said that machine %s is waited for: that QEMU runs proves nothing: give --wait, or wait in the machines' file", m.Name)
					}
				}
				return nil
			})
		},
	}
	a.jobFlagsOf(cmd, &f)
	cmd.Flags().StringVar(&wait, "wait", "", "`CONDITION` for all machines; by default what the file says of each")
	cmd.Flags().Var(durationFlag{&limit}, "wait-time", "how long that may take; by default what the file says of each")
	return cmd
}

// proofs are the jobs that proved checkpoints of a group, by the checkpoint: the last of each.
func (a *app) proofs(group string) map[string]string {
	proved := map[string]string{}
	folder, _, err := a.recoveryFolder()
	if err != nil {
		return proved
	}
	ids, _ := failover.IDs(folder) // a folder that does not read proves nothing
	for _, id := range ids {
		r, err := reportOf(folder, id)
		if err == nil && r.Kind == recovery.Proof && r.Group == group && r.Verdict != nil && (*r.Verdict == recovery.Passed || invariant.Planted("holdfast/proves-all")) {
			proved[r.Checkpoint] = id
		}
	}
	return proved
}

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
	var wait, metrics string
	var scheduled, show bool
	limit := config.DefaultWaitTime
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that a checkpoint can be recovered: boot it, and see that it works",
		Long: `Verify starts the machines of a group at a checkpoint as failover test does, isolated and
on scratch, waits until what they are waited for has come, takes a picture of each console,
also of those where it has not come, and stops them again. The report is kept, with the pictures and what the machines
said on their serial ports: see holdfast failover report. checkpoint list shows which
checkpoints were so proved. The exit status is 1 when a machine did not come up.

What is waited for says the machines' file, or --wait for all of them:

  serial:TEXT      the machine says TEXT on its first serial port
  tcp:HOST:PORT    a connection is taken there, as seen from this host
  script:PATH      the program exits with 0; it is run again each second

With --scheduled it stays, and proves the newest checkpoint again and again, as the machines'
file says:

  verify: {every: 24h, at: "02:00", keep: 30}    # at, for whole days, and keep may be left out

What is known of it is the jobs: one that was killed is taken back when it is started again, and
what was due meanwhile is made up for, once, with how many were missed in its note. A proof that
cannot begin, as the target does not answer, is tried again every few minutes. Of its reports
the last 30 stay (keep), and that of the last proof that passed. --metrics FILE keeps what monitoring
wants to know, for the textfile collector of Prometheus' node exporter; --show says it once, and fails
when the last proof failed or some were missed. The package has a service for it,
holdfast-verify@NAME, which uses the context /etc/holdfast/context-NAME.yaml.`,
		Example: "  holdfast verify --machines machines.yaml --wait serial:login:\n  holdfast verify --checkpoint before-upgrade --only db1 --wait tcp:127.0.0.1:15432 --wait-time 2m\n  holdfast verify --scheduled --metrics /var/cache/holdfast-metrics/holdfast-erp.prom\n  holdfast verify --show",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := config.ParseWait(wait)
			if err != nil {
				return usagef("--%w", err)
			}
			prove := func(p *recovery.Plan) error {
				p.LastLook = true
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
			}
			if !scheduled && !show {
				if metrics != "" {
					return usagef("--metrics goes with --scheduled or --show")
				}
				return a.beginJob(cmd.Context(), &f, recovery.Proof, prove)
			}
			for _, name := range []string{"checkpoint", "dry-run", "note"} {
				if cmd.Flags().Changed(name) {
					return usagef("--%s does not go with --scheduled or --show: each proof is of the newest checkpoint", name)
				}
			}
			if scheduled && show {
				return usagef("--scheduled and --show: it stays, or says how things stand")
			}
			s, err := a.newScheduled(&f, metrics, prove)
			if err != nil {
				return err
			}
			if show {
				return s.show()
			}
			return s.run(cmd.Context())
		},
	}
	a.jobFlagsOf(cmd, &f)
	cmd.Flags().StringVar(&wait, "wait", "", "`CONDITION` for all machines; by default what the file says of each")
	cmd.Flags().Var(durationFlag{&limit}, "wait-time", "how long that may take; by default what the file says of each")
	cmd.Flags().BoolVar(&scheduled, "scheduled", false, "stay, and prove again and again, as the machines' file says")
	cmd.Flags().BoolVar(&show, "show", false, "say how the schedule stands, and do nothing")
	cmd.Flags().StringVar(&metrics, "metrics", "", "`FILE` to keep metrics in, with --scheduled or --show")
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

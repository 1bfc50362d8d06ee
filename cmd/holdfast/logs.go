package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

// logFile is a log as it is printed; its JSON is kept for ever.
type logFile struct {
	Name    string  `json:"name"`
	Bytes   int64   `json:"bytes"`
	Files   int32   `json:"files"`
	Changed *string `json:"changed"`
	Problem *string `json:"problem"`
}

// siteFlag is whose sidecar is asked.
func siteFlag(cmd *cobra.Command, role *string) {
	cmd.Flags().StringVar(role, "of", api.RoleSource, "the vra of which `SITE`: source or target")
	cmd.RegisterFlagCompletionFunc("of", cobra.FixedCompletions([]string{api.RoleSource, api.RoleTarget}, cobra.ShellCompDirectiveNoFileComp))
}

// dialSidecar makes a client of the sidecar of a site: what is logged it tells, and not the vra.
func (a *app) dialSidecar(role string) (*api.Client, error) {
	if role != api.RoleSource && role != api.RoleTarget {
		return nil, usagef("--of %s: want source or target", role)
	}
	client, _, err := a.dial(role)
	return client, err
}

// explainSidecar is explain, where it is a sidecar that should answer.
func explainSidecar(role string, err error) error {
	if f := api.AsFailure(err); f != nil && f.Code == api.Unimplemented {
		return fmt.Errorf("logs are told by a sidecar: the context must name that of the %s, by its ports or its own socket", role)
	}
	return explain(role, err)
}

func (a *app) logsCommand() *cobra.Command {
	var role string
	var since config.Duration
	last, follow := 0, false
	cmd := &cobra.Command{
		Use:   "logs [NAME]",
		Short: "Show what the daemons of a site log",
		Long: `Logs lists the logs that a site's sidecar tells of; with a name it shows that log, the
oldest line first: what was logged last, 1 MiB at most. What looks like a secret is
taken out of it.`,
		Example: "  holdfast logs\n  holdfast logs vra --of target --since 1h\n  holdfast logs vra --last 20 --follow",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 0 || since < 0 {
				return usagef("--last and --since are 0 or more")
			}
			client, err := a.dialSidecar(role)
			if err != nil {
				return err
			}
			defer client.Close()
			if len(args) == 0 {
				for _, name := range []string{"last", "since", "follow"} {
					if cmd.Flags().Changed(name) {
						return usagef("--%s goes with the name of a log", name)
					}
				}
				res, err := client.Logs.List(cmd.Context(), &holdfastv1.LogsServiceListRequest{})
				if err != nil {
					return explainSidecar(role, err)
				}
				return a.printLogs(res.GetLogs())
			}
			r := &holdfastv1.LogsServiceReadRequest{Log: args[0], LastLines: int32(min(last, 1<<30)), Follow: follow}
			if since > 0 {
				r.From = api.Timestamp(time.Now().Add(-time.Duration(since)))
			}
			err = client.Logs.Read(cmd.Context(), r, func(m *holdfastv1.LogsServiceReadResponse) error {
				if m.GetMoreBefore() && last == 0 {
					fmt.Fprintln(a.stderr, "There is more before this: ask for less with --since, or follow it.")
				}
				for _, line := range m.GetLines() {
					if _, err := fmt.Fprintln(a.stdout, printable(line)); err != nil {
						return err
					}
				}
				return nil
			})
			return explainSidecar(role, err)
		},
	}
	siteFlag(cmd, &role)
	cmd.Flags().Var(countFlag{&last}, "last", "only the newest `N` lines; 0: all")
	cmd.Flags().Var(durationFlag{&since}, "since", "only what was logged in the last `DURATION`")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with what is logged from now on, until Ctrl-C")
	return cmd
}

func (a *app) printLogs(logs []*holdfastv1.Log) error {
	all, rows := []logFile{}, [][]string{}
	for _, m := range logs {
		l := logFile{Name: m.GetName(), Bytes: m.GetBytes(), Files: m.GetFiles(), Changed: timeText(api.Time(m.GetChanged())), Problem: textOrNull(m.GetProblem())}
		all = append(all, l)
		rows = append(rows, []string{l.Name, bytesText(l.Bytes), strconv.Itoa(int(l.Files)), shortTime(l.Changed), orHyphen(l.Problem)})
	}
	return a.print(all, "LOG SIZE FILES CHANGED PROBLEM", rows)
}

func (a *app) bundleCommand() *cobra.Command {
	var role, out string
	var since config.Duration
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Gather what somebody who helps needs to see",
		Long: `Bundle writes a tar archive of a site's logs, configuration, status and metrics, as its
sidecar gathers them, and a manifest of what is in it and what could not be had. What
looks like a secret is taken out; look through it all the same before you pass it on.`,
		Example: "  holdfast bundle --out target.tar --of target\n  holdfast bundle --out today.tar --since 24h && tar -tf today.tar",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if out == "" {
				return usagef("--out is missing: name the archive")
			}
			if since < 0 {
				return usagef("--since is 0 or more")
			}
			client, err := a.dialSidecar(role)
			if err != nil {
				return err
			}
			defer client.Close()
			f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			defer func() {
				if err = errors.Join(err, f.Close()); err != nil {
					err = errors.Join(err, os.Remove(out)) // half of one helps nobody
				}
			}()
			r, bytes := &holdfastv1.LogsServiceBundleRequest{}, int64(0)
			if since > 0 {
				r.From = api.Timestamp(time.Now().Add(-time.Duration(since)))
			}
			err = client.Logs.Bundle(cmd.Context(), r, func(m *holdfastv1.LogsServiceBundleResponse) error {
				bytes += int64(len(m.GetTar()))
				_, err := f.Write(m.GetTar())
				return err
			})
			if err != nil {
				return explainSidecar(role, err)
			}
			if err := f.Sync(); err != nil {
				return err
			}
			return a.print(struct {
				File  string `json:"file"`
				Bytes int64  `json:"bytes"`
			}{out, bytes}, "FILE SIZE", [][]string{{out, bytesText(bytes)}})
		},
	}
	siteFlag(cmd, &role)
	cmd.Flags().StringVar(&out, "out", "", "the archive, a new `FILE`")
	cmd.Flags().Var(durationFlag{&since}, "since", "of logs only the last `DURATION`")
	cmd.MarkFlagFilename("out", "tar")
	return cmd
}

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/holdfast-dr/holdfast/bench/scenario"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/control/version"
	"github.com/spf13/cobra"
)

// contextVariable names the context where --context does not.
const contextVariable = "HOLDFAST_CONTEXT"

// app is what the commands share.
type app struct {
	stdout, stderr io.Writer
	env            func(string) string

	contextFile string
	output      string
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Protect running virtual machines and bring them back at any checkpoint",
		Long: `Holdfast copies every write of a running machine's disks to a second site and keeps
it in a journal with a checkpoint every few seconds. A group of disks can be opened
as it was at any of them.

Try it on this machine:

  holdfast lab up --dir /tmp/lab --volumes 2 --size 1GiB --link 50Mbit
  export HOLDFAST_CONTEXT=/tmp/lab/context.yaml
  holdfast status
  holdfast checkpoint create --tag before-upgrade
  holdfast view open --checkpoint latest
  holdfast export --checkpoint latest --out /tmp/images
  holdfast lab down --purge

Results go to stdout (-o table or json), progress and errors to stderr. The exit
status is 2 for what the arguments alone show to be wrong, 130 after Ctrl-C, 1 for
all else.

Words:

  SIZE      an integer with B, KiB, MiB, GiB or TiB (K, M, G, T alike): 64MiB
  RATE      a number with kbit, Mbit or Gbit (per second), or none: 50Mbit
  DURATION  as 5s or 1m30s; of history also 30d`,
		Version:           version.Read().String(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		Args:              cobra.ArbitraryArgs,
		PersistentPreRunE: a.checkShared,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetVersionTemplate("holdfast {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	root.PersistentFlags().StringVar(&a.contextFile, "context", "", "`FILE` that says whom to speak to; by default $"+contextVariable)
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "table", "`FORMAT` of the result: table or json")
	root.MarkPersistentFlagFilename("context", "yaml")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(a.statusCommand(), a.groupCommand(), a.checkpointCommand(), a.viewCommand(), a.storeCommand(), a.shapingCommand(), a.linkCommand(), a.exportCommand(), a.failoverCommand(), a.verifyCommand(), a.moveCommand(), a.reverseCommand(), a.machinesCommand(),
		a.attachCommand(), a.detachCommand(), a.logsCommand(), a.bundleCommand(), a.certificateCommand(), a.labCommand(), a.demoCommand(), a.versionCommand(), a.manCommand())
	root.SetOut(a.stdout) // before cobra's own commands are made, which keep it
	root.SetErr(a.stderr)
	ownWords(root)
	return root
}

// checkShared looks at the arguments that all commands take.
func (a *app) checkShared(cmd *cobra.Command, _ []string) error {
	if f := cmd.Flag("context"); f != nil && f.Changed && a.contextFile == "" {
		return usagef("--context is empty: name a file, or leave it out to use %s", contextVariable)
	}
	return a.checkOutput()
}

// noArgs refuses arguments; oneArg wants one, by that name.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}

func oneArg(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return usagef("want one %s, have %d arguments", name, len(args))
		}
		return nil
	}
}

// firstArg completes the first argument with one of the words.
func firstArg(words ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// parent makes a command that only holds others.
func parent(use, short, long string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: cobra.ArbitraryArgs,
		RunE: sayWhat,
	}
	c.AddCommand(children...)
	return c
}

// context loads the context that the arguments or the environment name.
func (a *app) context() (*config.Context, error) {
	path, from := a.contextFile, "--context"
	if path == "" {
		path, from = a.env(contextVariable), contextVariable
	}
	if path == "" {
		return nil, usagef("whom to speak to is not said: give --context FILE or set %s to it; holdfast lab up makes one, DIR/context.yaml", contextVariable)
	}
	c, err := config.LoadContext(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s names %s, and there is no such file: if it was that of a lab, the lab is gone: start one with: %s",
			from, path, scenario.Command("lab", "up", "--dir", "DIR"))
	}
	return c, err
}

// dial makes a client of the VRA of that role.
func (a *app) dial(role string) (*api.Client, *config.Context, error) {
	c, err := a.context()
	if err != nil {
		return nil, nil, err
	}
	v, ok := c.VRA(role)
	if !ok {
		return nil, nil, usagef("the context names no %s vra", role)
	}
	client, err := dialVRA(v)
	return client, c, err
}

// dialVRA makes a client of a VRA, or of the sidecar that speaks for it.
func dialVRA(v config.ContextVRA) (*api.Client, error) {
	s := v.Sidecar
	if s == nil {
		return api.DialUnix(v.Socket), nil
	}
	trust, err := pairing.LoadTrust(s.TLS.CA, s.TLS.Cert, s.TLS.Key)
	if err != nil {
		return nil, err
	}
	if site := trust.Name().Site; site != v.Site {
		return nil, fmt.Errorf("%s is a certificate of the site %s, and the context says that this is %s", s.TLS.Cert, site, v.Site)
	}
	return api.DialTLS(api.Addresses{Commands: s.Commands, Checkpoints: s.Checkpoints, Logs: s.Logs}, trust.ClientOf(api.RoleSidecar, s.ID)), nil
}

// explain makes an error of a call one line with what to do.
func explain(role string, err error) error {
	f := api.AsFailure(err)
	if f == nil {
		return nil
	}
	if f.Code == api.Unavailable && f.Next == "" {
		f.Message = "the " + role + " vra does not answer: " + f.Message
		f.Next = "see holdfast lab status"
	}
	return f
}

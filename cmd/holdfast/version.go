package main

import (
	"github.com/holdfast-dr/holdfast/control/version"
	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say which version this is",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := version.Read()
			return a.print(v, "VERSION COMMIT GO", [][]string{{v.Version, v.Commit, v.Go}})
		},
	}
}

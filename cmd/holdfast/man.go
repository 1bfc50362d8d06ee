package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "man --dir DIR",
		Short:   "Write the manual pages",
		Example: "  holdfast man --dir /usr/local/share/man/man1",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usagef("--dir is missing: name the folder to write to")
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			day := time.Unix(0, 0).UTC() // the same pages from the same tree
			return doc.GenManTree(cmd.Root(), &doc.GenManHeader{Section: "1", Source: "Holdfast", Manual: "Holdfast Manual", Date: &day}, dir)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` to write to; made when absent")
	cmd.MarkFlagDirname("dir")
	return cmd
}

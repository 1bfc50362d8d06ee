package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/version"
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
			if err := os.MkdirAll(dir, 0o755); errors.Is(err, syscall.ENOTDIR) {
				return fmt.Errorf("%s: a file is in the way: name a folder", dir)
			} else if err != nil {
				return err
			}
			return writePages(cmd.Root(), dir, version.Read())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` to write to; made when absent")
	cmd.MarkFlagDirname("dir")
	return cmd
}

// writePages writes a page for a command and each that can be seen below it.
func writePages(c *cobra.Command, dir string, v version.Version) error {
	for _, child := range c.Commands() {
		if !child.IsAvailableCommand() || child.IsAdditionalHelpTopicCommand() {
			continue
		}
		if err := writePages(child, dir, v); err != nil {
			return err
		}
	}
	page, err := manPage(c, v)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"), page, 0o644)
}

// manPage makes the same page from the same tree: it carries the date of the commit, or
// none.
func manPage(c *cobra.Command, v version.Version) ([]byte, error) {
	c.DisableAutoGenTag = true
	// The generator knows no page without a date, so a date that is none is taken out.
	day := v.Date
	if day.IsZero() {
		day = time.Time{}
	}
	// Examples stand in a block that is indented as a whole, and lines that the help
	// indents are to stay lines.
	example, long := c.Example, c.Long
	defer func() { c.Example, c.Long = example, long }()
	c.Example = strings.ReplaceAll(strings.TrimPrefix(example, "  "), "\n  ", "\n")
	c.Long = strings.ReplaceAll(long, "\n  ", "\n    ")
	var b bytes.Buffer
	header := &doc.GenManHeader{Section: "1", Source: "Holdfast " + v.Version, Manual: "Holdfast Manual", Date: &day}
	if err := doc.GenMan(c, header, &b); err != nil {
		return nil, err
	}
	return bytes.Replace(b.Bytes(), []byte(`"Jan 0001"`), []byte(`""`), 1), nil
}

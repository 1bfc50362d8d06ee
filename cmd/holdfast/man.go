package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
			return eachPage(cmd.Root(), func(name, text string) error {
				return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIR` to write to; made when absent")
	cmd.MarkFlagDirname("dir")
	return cmd
}

// eachPage writes the page of c and those of what is below it.
func eachPage(c *cobra.Command, write func(name, text string) error) error {
	if c.Hidden || c.Name() == "help" {
		return nil
	}
	if err := write(pageName(c)+".1", manPage(c)); err != nil {
		return err
	}
	for _, child := range c.Commands() {
		if err := eachPage(child, write); err != nil {
			return err
		}
	}
	return nil
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is a command's page in the words of man(7).
func manPage(c *cobra.Command) string {
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, ".SH %s\n", name) }
	literal := func(text string) { fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(text)) }

	fmt.Fprintf(&b, ".TH %s 1 \"\" Holdfast \"Holdfast Manual\"\n", roff(strings.ToUpper(pageName(c))))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(pageName(c)), roff(c.Short))
	section("SYNOPSIS")
	fmt.Fprintf(&b, ".B %s\n", roff(c.UseLine()))
	section("DESCRIPTION")
	if c.Long == "" {
		fmt.Fprintf(&b, "%s.\n", roff(c.Short))
	} else {
		literal(c.Long)
	}
	flags := func(title string, set *pflag.FlagSet) {
		if !set.HasAvailableFlags() {
			return
		}
		section(title)
		set.VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			value, text := pflag.UnquoteUsage(f)
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(strings.TrimSpace(name+" "+value)), roff(text))
		})
	}
	c.InitDefaultHelpFlag()
	flags("OPTIONS", c.NonInheritedFlags())
	flags("OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		section("EXAMPLES")
		literal(c.Example)
	}
	section("EXIT STATUS")
	b.WriteString("0; 2 for what the arguments alone show to be wrong; 130 after Ctrl-C; 1 for all else.\n")
	var also []string
	if c.HasParent() {
		also = append(also, pageName(c.Parent()))
	}
	for _, child := range c.Commands() {
		if !child.Hidden && child.Name() != "help" {
			also = append(also, pageName(child))
		}
	}
	if len(also) > 0 {
		section("SEE ALSO")
		for i, name := range also {
			also[i] = roff(name) + "(1)"
		}
		fmt.Fprintf(&b, "%s\n", strings.Join(also, ", "))
	}
	return b.String()
}

// roff keeps text from being read as commands.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "-", `\-`)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

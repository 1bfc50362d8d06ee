package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// unknownCommand says so, and what may have been meant.
func unknownCommand(parent *cobra.Command, word string) error {
	text := fmt.Sprintf("unknown command %q", word)
	if parent.HasParent() {
		text += " for " + parent.CommandPath()
	}
	if near := parent.SuggestionsFor(word); len(near) > 0 {
		text += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("%s", text)
}

// ownWords makes cobra's own commands refuse what they do not know, and keeps file
// names out of the completion of arguments that are none.
func ownWords(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Run, c.RunE = nil, helpOn
		case "completion":
			c.Args, c.RunE = cobra.ArbitraryArgs, sayWhat
			for _, shell := range c.Commands() {
				shell.Args = noArgs
			}
		}
	}
	allCommands(root, func(c *cobra.Command) {
		c.SuggestionsMinimumDistance = 2
		if c.ValidArgsFunction == nil {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
	})
}

// allCommands calls do for a command and all below it.
func allCommands(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, child := range c.Commands() {
		allCommands(child, do)
	}
}

// helpOn shows the help of the command that the words name.
func helpOn(cmd *cobra.Command, args []string) error {
	about := cmd.Root()
	for _, word := range args {
		child := childOf(about, word)
		if child == nil {
			return unknownCommand(about, word)
		}
		about = child
	}
	about.InitDefaultHelpFlag()
	about.InitDefaultVersionFlag()
	return about.Help()
}

func childOf(c *cobra.Command, name string) *cobra.Command {
	for _, child := range c.Commands() {
		if child.Name() == name {
			return child
		}
	}
	return nil
}

// sayWhat is what a command does that only holds others.
func sayWhat(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	var names []string
	for _, child := range cmd.Commands() {
		if child.IsAvailableCommand() {
			names = append(names, child.Name())
		}
	}
	return usagef("%s: say what to do: %s", cmd.CommandPath(), strings.Join(names, ", "))
}

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/acidtib/jiji-node/node/usage"
)

// count accepts least to most arguments, which the command's Use shows; without
// a limit if most is negative.
func count(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		want := cmd.Use
		if cmd.HasParent() {
			want = cmd.Parent().CommandPath() + " " + want
		}
		switch {
		case len(args) < least:
			return usage.Errorf("an argument is missing: want `%s`", want)
		case most >= 0 && len(args) > most:
			return usage.Errorf("argument %q is one too many: want `%s`", args[most], want)
		}
		return nil
	}
}

// group accepts no arguments: a command that has others below it was given one
// that is none of them.
func group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2 // letters that may differ, whatever cobra calls it
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
	}
	return usage.Errorf("unknown command %q%s (see `%s --help`)", args[0], hint, cmd.CommandPath())
}

// helpCommand is cobra's, but for unknown names, which are errors.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about a command", Example: "  jiji-node help server add",
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }, // settings may be wrong
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return usage.Mark(err)
			}
			if err := group(cmd, rest); err != nil {
				return err
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// addCompletion adds cobra's command, with an example for each shell.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Use, c.Args, c.RunE = "completion SHELL", group, showHelp
		c.Example = "  jiji-node completion bash > /etc/bash_completion.d/jiji-node"
		for _, shell := range c.Commands() {
			shell.Args = count(0, 0)
			shell.Example = "  source <(jiji-node completion " + shell.Name() + ")"
			switch shell.Name() {
			case "fish":
				shell.Example = "  jiji-node completion fish | source"
			case "powershell":
				shell.Example = "  jiji-node completion powershell | Out-String | Invoke-Expression"
			}
		}
	}
}

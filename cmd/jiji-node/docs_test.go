package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docs/commands.md has every command and every setting of run, and each
// command's help has an example.
func TestEverythingIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.HasSubCommands() {
			for _, sub := range c.Commands() {
				walk(sub)
			}
			return
		}
		if !strings.Contains(doc, "`"+c.CommandPath()) {
			t.Errorf("docs/commands.md lacks `%s`", c.CommandPath())
		}
		if c.Example == "" {
			t.Errorf("`%s --help` has no example", c.CommandPath())
		}
		if c.Name() == "run" {
			c.InheritedFlags().VisitAll(func(f *pflag.Flag) { requireFlag(t, doc, f) })
			c.LocalFlags().VisitAll(func(f *pflag.Flag) { requireFlag(t, doc, f) })
		}
	}
	walk((&app{}).command())
}

func requireFlag(t *testing.T, doc string, f *pflag.Flag) {
	t.Helper()
	if f.Name != "help" && !strings.Contains(doc, "| `--"+f.Name+"` |") {
		t.Errorf("docs/commands.md lacks --%s", f.Name)
	}
}

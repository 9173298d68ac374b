package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/acidtib/jiji-node/node"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/usage"
	"github.com/acidtib/jiji-node/registry"
)

func (a *app) registryCommand() *cobra.Command {
	c := &cobra.Command{Use: "registry", Short: "Where the catalog of servers and containers is kept", Example: "  jiji-node registry use corrosion", Args: group, RunE: showHelp}
	c.AddCommand(a.registryUse(), a.registrySchema())
	return c
}

func (a *app) registryUse() *cobra.Command {
	var url, tokenFile string
	asJSON := false
	c := &cobra.Command{
		Use: "use embedded|corrosion", Short: "Keep the catalog in a file of this server, or with the whole cluster", Args: count(1, 1),
		Long: `Keep the catalog in a file of this server, or in Corrosion, with that of all other
servers. What is registered here goes along, tunnels and names go on, and a node
that runs takes it up at once. Said again, it changes nothing. Without a URL the
node runs the agent itself (see --corrosion-bin of ` + "`jiji-node run`" + `).`,
		Example: "  jiji-node registry use corrosion\n  jiji-node registry use corrosion --url http://127.0.0.1:8080 --token-file /etc/corrosion/token",
		RunE: func(cmd *cobra.Command, args []string) error {
			mode := control.RegistryMode{Mode: args[0], URL: url, TokenFile: tokenFile}
			if err := mode.Check(); err != nil {
				return usage.Mark(err)
			}
			if err := checkURL(url); err != nil {
				return usage.Errorf("--url: %w", err)
			}
			err := a.either(cmd.Context(), func() error {
				_, err := a.client().UseRegistry(cmd.Context(), mode)
				return err
			}, func() error {
				return a.offline(membership.Config{}, func(m *membership.Membership) error {
					return node.UseRegistry(cmd.Context(), a.stateDir, m, mode)
				})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), mode)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "registry: %s\n", mode.Mode)
			return err
		},
	}
	c.Flags().StringVar(&url, "url", "", "URL of an agent that somebody else runs")
	c.Flags().StringVar(&tokenFile, "token-file", "", "file that holds its token, an absolute path")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) registrySchema() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the tables, for an agent that somebody else runs", Args: count(0, 0),
		Long:    "Print the tables as a schema file for Corrosion, for an agent that somebody else\nruns. It adds to what the agent has: put it into one of its schema_paths and run\n`corrosion reload`.",
		Example: "  jiji-node registry schema > /etc/corrosion/schema/jiji.sql",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), registry.Schema)
			return err
		},
	}
}

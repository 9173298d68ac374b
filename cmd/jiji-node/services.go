package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/usage"
)

func (a *app) serviceCommand() *cobra.Command {
	c := &cobra.Command{Use: "service", Short: "The catalog of services by hand, for what no engine runs", Example: "  jiji-node service list", Args: group, RunE: showHelp}
	c.AddCommand(a.serviceList(), a.serviceRegister(), a.serviceHealth(), a.serviceDeregister(), a.serviceCleanup())
	return c
}

func (a *app) serviceList() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use: "list [SERVICE]", Short: "List the containers of all services, or of one", Example: "  jiji-node service list api", Args: count(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.client().Containers(cmd.Context())
			if err != nil {
				return err
			}
			shown := all
			if len(args) == 1 {
				shown = []control.Container{}
				for _, v := range all {
					if strings.EqualFold(v.Service, args[0]) {
						shown = append(shown, v)
					}
				}
			}
			return a.printContainers(cmd, shown, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) printContainers(cmd *cobra.Command, list []control.Container, asJSON bool) error {
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), list)
	}
	t := table(cmd.OutOrStdout(), "SERVICE", "PROJECT", "IP", "HEALTH", "SERVER", "STARTED", "ID")
	for _, v := range list {
		t.row(v.Service, v.Project, v.IP.String(), v.Health, v.ServerID, ago(v.StartedAt, time.Now()), v.ID)
	}
	return t.flush()
}

func (a *app) serviceRegister() *cobra.Command {
	var v control.Container
	ip, asJSON := "", false
	c := &cobra.Command{
		Use: "register SERVICE --ip ADDRESS", Short: "Give an address a service's name", Args: count(1, 1),
		Example: `  jiji-node service register api --ip 10.210.0.10
  jiji-node service register db --ip 10.210.0.11 --project shop --port 5432/tcp`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			v.Service = args[0]
			if ip == "" {
				return usage.Errorf("--ip is missing: want the container's address: `%s`", cmd.CommandPath()+" "+args[0]+" --ip ADDRESS")
			}
			if v.IP, err = netip.ParseAddr(ip); err != nil {
				return a.wrong("ip", fmt.Errorf("%q: want an IP address such as 10.210.0.10", ip))
			}
			stored, err := a.client().Register(cmd.Context(), v)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), stored)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s registered as %s\n", stored.Service, stored.IP, stored.ID)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&ip, "ip", "", "its address: in this server's subnet, unless --external")
	f.StringVar(&v.ID, "id", "", "id of the container (default: made from service and address)")
	f.StringVar(&v.Project, "project", "", "project it belongs to")
	f.StringVar(&v.Instance, "instance", "", "name of this instance within the project")
	f.StringVar(&v.Name, "container-name", "", "name of the container")
	f.StringArrayVar(&v.Ports, "port", nil, "port it serves, NUMBER/tcp or NUMBER/udp; may be repeated")
	f.StringVar(&v.Health, "health", "healthy", "healthy, unhealthy or starting")
	f.BoolVar(&v.External, "external", false, "the address is outside the mesh")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) serviceHealth() *cobra.Command {
	return &cobra.Command{
		Use: "health ID healthy|unhealthy|starting", Short: "Say how a container is; only healthy ones are answered", Args: count(2, 2),
		Example: "  jiji-node service health 3f5a… unhealthy",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := a.containerID(cmd, args[0])
			if err != nil {
				return err
			}
			return a.client().SetHealth(cmd.Context(), control.HealthRequest{ID: id, Health: args[1]})
		},
	}
}

func (a *app) serviceDeregister() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use: "deregister ID...", Short: "Take containers out of the catalog", Args: count(1, -1),
		Example: "  jiji-node service deregister 3f5a…",
		RunE: func(cmd *cobra.Command, args []string) error {
			ids := make([]string, len(args))
			for i, v := range args {
				id, err := a.containerID(cmd, v)
				if err != nil {
					return err
				}
				ids[i] = id
			}
			n, err := a.client().Deregister(cmd.Context(), ids)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]int{"removed": n})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d removed\n", n)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// containerID completes an id of which only the beginning was typed, as engines do.
func (a *app) containerID(cmd *cobra.Command, typed string) (string, error) {
	if typed == "" { // a variable of a script that is not set, not the beginning of every id
		return "", usage.Errorf("the id of a container is empty; `jiji-node service list` shows them")
	}
	all, err := a.client().Containers(cmd.Context())
	if err != nil {
		return "", err
	}
	var found []string
	for _, v := range all {
		if v.ID == typed {
			return typed, nil
		}
		if strings.HasPrefix(v.ID, typed) {
			found = append(found, v.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", usage.Errorf("container %q: no such id; `jiji-node service list` shows them", typed)
	case 1:
		return found[0], nil
	}
	return "", usage.Errorf("container %q: %d ids begin with it: type more of the one you mean", typed, len(found))
}

func (a *app) serviceCleanup() *cobra.Command {
	var r control.CleanupRequest
	older, asJSON := time.Duration(0), false
	c := &cobra.Command{
		Use: "cleanup [SERVICE]", Short: "Take out this server's containers that are not healthy", Args: count(0, 1),
		Example: "  jiji-node service cleanup --older-than 10m --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r.Service = args[0]
			}
			if older < 0 {
				return a.wrong("older-than", fmt.Errorf("%s, want 0s or more", older))
			}
			r.OlderThan = control.Duration(older)
			gone, err := a.client().Cleanup(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.printContainers(cmd, gone, asJSON)
		},
	}
	c.Flags().DurationVar(&older, "older-than", 3*time.Minute, "only those that have been so for this long")
	c.Flags().BoolVar(&r.DryRun, "dry-run", false, "show them, remove none")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

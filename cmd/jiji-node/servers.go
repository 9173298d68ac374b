package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/acidtib/jiji-node/node"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/identity"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
)

const maxEntries = 64 << 20 // bytes of a file of entries

// offline opens the state directory when no node runs on it, calls do, and
// saves. While a node runs, online asks that one instead.
func (a *app) offline(cfg membership.Config, do func(*membership.Membership) error) error {
	lock, err := statefile.LockDir(a.stateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	cfg.Dir, cfg.Log = a.stateDir, a.log
	m, err := membership.Open(cfg)
	if err == nil {
		err = do(m)
	}
	if err != nil {
		lock.Abandon()
		return err
	}
	return m.Save()
}

// either asks the running node, or does the work itself if there is none: none
// at all, or none on the state directory that was chosen.
func (a *app) either(ctx context.Context, online func() error, offline func() error) error {
	if a.elsewhere(ctx) {
		return offline()
	}
	err := online()
	if errors.Is(err, control.ErrNotRunning) {
		return offline()
	}
	return err
}

// elsewhere reports whether a state directory was chosen that the running node
// does not have.
func (a *app) elsewhere(ctx context.Context) bool {
	if !a.chosen("state-dir") {
		return false
	}
	s, err := a.client().Status(ctx)
	return err == nil && s.StateDir != "" && !sameDir(s.StateDir, a.stateDir)
}

func sameDir(one, other string) bool {
	if one == other {
		return true
	}
	a, err := os.Stat(one)
	if err != nil {
		return false
	}
	b, err := os.Stat(other)
	return err == nil && os.SameFile(a, b)
}

func (a *app) initCommand() *cobra.Command {
	var name, importFile, cluster, domain string
	var index int
	var endpoints []string
	c := &cobra.Command{
		Use:   "init",
		Short: "Make this machine's identity and print its entry for the other servers",
		Long: `Make this machine's key, if it has none, and print its entry: what the other
servers need to know of it, public data only. Run again, it prints the same
entry, with what the flags change. Nothing on the host's network is touched.`,
		Example: `  jiji-node init --name web1 --index 0 --endpoint 203.0.113.10:51820 > web1.json
  jiji-node init --import /etc/wireguard/jiji0.conf`,
		Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			eps, err := a.parseAddrs("endpoint", endpoints, a.listenPort)
			if err != nil {
				return err
			}
			r := control.InitRequest{Name: name, Endpoints: eps}
			if cmd.Flags().Changed("index") {
				r.Index = &index
			}
			var cfg membership.Config
			cfg.Detect = func() []netip.AddrPort { return node.DetectEndpoints(a.listenPort, cfg.Cluster) }
			if cluster != "" {
				if cfg.Cluster, err = a.parseCluster(cluster); err != nil {
					return err
				}
			}
			if domain != "" {
				if cfg.Domain, err = a.parseDomain(domain); err != nil {
					return err
				}
			}
			var entry control.Added
			err = a.either(cmd.Context(), func() error {
				if importFile != "" {
					return a.importWhileRunning()
				}
				if err := a.sameMesh(cmd.Context(), cfg); err != nil {
					return err
				}
				entry, err = a.client().Init(cmd.Context(), r)
				return err
			}, func() error {
				if importFile != "" {
					if err := a.importKey(importFile); err != nil {
						return err
					}
				}
				return a.offline(cfg, func(m *membership.Membership) error {
					entry, err = node.InitEntry(m, r, false)
					return err
				})
			})
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), entry.Entry)
			return err
		},
	}
	c.Flags().StringVar(&name, "name", "", "host name of this server (default: the machine's)")
	c.Flags().IntVar(&index, "index", 0, "number of this server's subnet (default: the lowest that is free as far as this machine knows)")
	c.Flags().StringArrayVar(&endpoints, "endpoint", nil, "address under which others reach this server, IP or IP:PORT; may be repeated (default: the interfaces' addresses)")
	c.Flags().Uint16Var(&a.listenPort, "listen-port", 51820, "UDP port of WireGuard, for endpoints without one")
	c.Flags().StringVar(&importFile, "import", "", "take over the private key of this wg-quick file")
	c.Flags().StringVar(&cluster, "cluster-cidr", "", "addresses of the whole mesh (default: the cluster's, 10.210.0.0/16 for a new one)")
	c.Flags().StringVar(&domain, "domain", "", "domain of the mesh's names (default: the cluster's, jiji for a new one)")
	return c
}

// importWhileRunning refuses if a node runs: its key cannot change under it.
func (a *app) importWhileRunning() error {
	if _, err := a.client().Servers(context.Background()); err != nil {
		return err
	}
	return usage.Errorf("--import: a node is running with its own key; stop it first")
}

// sameMesh refuses a cluster CIDR or a domain that is not the running node's.
func (a *app) sameMesh(ctx context.Context, cfg membership.Config) error {
	if !cfg.Cluster.IsValid() && cfg.Domain == "" {
		return nil
	}
	s, err := a.client().Status(ctx)
	switch {
	case err != nil:
		return err
	case cfg.Cluster.IsValid() && cfg.Cluster != s.Cluster:
		return a.wrong("cluster-cidr", fmt.Errorf("%s: the node that runs belongs to the cluster %s", cfg.Cluster, s.Cluster))
	case cfg.Domain != "" && cfg.Domain != s.Domain:
		return a.wrong("domain", fmt.Errorf("%q: the node that runs belongs to a cluster with the domain %q", cfg.Domain, s.Domain))
	}
	return nil
}

func (a *app) importKey(file string) error {
	lock, err := statefile.LockDir(a.stateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := identity.Import(a.stateDir, file); err != nil {
		lock.Abandon()
		return usage.Mark(err)
	}
	return nil
}

func (a *app) serverCommand() *cobra.Command {
	c := &cobra.Command{Use: "server", Short: "List, add and remove the servers of the mesh", Example: "  jiji-node server list", Args: group, RunE: showHelp}
	c.AddCommand(a.serverAdd(), a.serverList(), a.serverRemove())
	return c
}

func (a *app) serverAdd() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "add FILE|-...",
		Short: "Add servers by the entries that `jiji-node init` printed on them",
		Long: `Add the servers whose entries the files hold, all or none; - is standard input,
and a file may hold several. An entry without a subnet gets the lowest free one.
This machine's own entry is welcome too, so that the same command does for all.`,
		Example: `  jiji-node server add web2.json web3.json
  cat *.json | jiji-node server add -`,
		Args: count(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var all []byte
			for _, file := range args {
				text, err := readEntries(cmd, file)
				if err != nil {
					return err
				}
				// Here, where an error can name the file.
				if _, err := topology.ParseEntries(sourceName(file), bytes.NewReader(text)); err != nil {
					return usage.Mark(err)
				}
				all = append(append(all, text...), '\n')
			}
			var added []control.Added
			err := a.either(cmd.Context(), func() (err error) {
				added, err = a.client().AddServers(cmd.Context(), all, "entries")
				return err
			}, func() error {
				return a.offline(membership.Config{}, func(m *membership.Membership) (err error) {
					added, err = node.AddEntries(m, all, "entries", false)
					return err
				})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), added)
			}
			for _, s := range added {
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", s.ID, s.Subnet, s.Note)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func sourceName(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

func readEntries(cmd *cobra.Command, file string) ([]byte, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usage.Mark(err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxEntries+1))
	if err != nil { // names the file, or is about /dev/stdin
		return nil, usage.Mark(err)
	}
	if len(text) > maxEntries {
		return nil, usage.Errorf("%s: is larger than %d MiB", sourceName(file), maxEntries>>20)
	}
	return text, nil
}

func (a *app) serverList() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use: "list", Short: "List the servers of the mesh", Example: "  jiji-node server list --json", Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var servers []control.Server
			err := a.either(cmd.Context(), func() (err error) {
				servers, err = a.client().Servers(cmd.Context())
				return err
			}, func() error {
				t, err := a.knownTopology()
				servers = node.ServersOf(t)
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), servers)
			}
			t := table(cmd.OutOrStdout(), "ID", "SUBNET", "WIREGUARD IP", "ENDPOINTS", "PUBLIC KEY", "")
			for _, s := range servers {
				note, subnet, ip := "", "none yet", ""
				if s.Subnet.IsValid() {
					subnet, ip = s.Subnet.String(), s.WireGuardIP.String()
				}
				if s.RemovedAt != nil {
					note = "removed " + ago(*s.RemovedAt, time.Now())
				}
				t.row(s.ID, subnet, ip, join(s.Endpoints), s.Key.String(), note)
			}
			return t.flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (a *app) serverRemove() *cobra.Command {
	force, asJSON := false, false
	c := &cobra.Command{
		Use: "remove ID", Short: "Take a server out of the mesh", Example: "  jiji-node server remove web3", Args: count(1, 1),
		Long: `Take a server out of the mesh: its entry stays as a tombstone, so that nobody
takes it for a server that is merely absent, and its subnet rests for 24 hours.
Run it on every server, or copy the topology.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var gone control.Server
			err := a.either(cmd.Context(), func() (err error) {
				gone, err = a.client().RemoveServer(cmd.Context(), args[0], force)
				return err
			}, func() error {
				return a.offline(membership.Config{}, func(m *membership.Membership) error {
					if strings.EqualFold(m.Self().ID, args[0]) && !force {
						return usage.Errorf("%s is this machine: removing it takes it out of the mesh; --force does it", m.Self().ID)
					}
					s, err := m.Remove(args[0])
					gone = node.ServerOf(s)
					return err
				})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), gone)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: removed\n", gone.ID)
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "even if it is up, or this machine")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// Command jiji-node gives the containers of many servers one flat, encrypted
// network and names for each other. `jiji-node run` is the node; every other
// command prepares it or talks to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/acidtib/jiji-node/cmd/jiji-node/settings"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/membership"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
)

// version is set by the linker: make build.
var version = "dev"

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Environ()))
}

// untilSignal is ctx until the first SIGINT, SIGTERM or SIGHUP, which a terminal
// that goes away sends; a second one ends the process. Under nohup SIGHUP stays
// ignored. Commands that have nothing to end in order do without it.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, signals...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// An app is what the commands share: the flags that they all have.
type app struct {
	environ []string
	root    *cobra.Command
	began   bool // flags, arguments and settings were right

	configFile string
	stateDir   string
	runtimeDir string
	logLevel   string
	logFormat  string
	log        *slog.Logger
	values     []settings.Value // of the command that runs

	link       string
	listenPort uint16
}

// execute runs a command line and returns its exit code: 2 for what was typed
// or configured wrong, 1 for what the machine or the network refuses.
func execute(ctx context.Context, args, environ []string) int {
	a := &app{environ: environ}
	a.root = a.command()
	a.root.SetArgs(args)
	err := a.root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(os.Stderr, "jiji-node: %s\n", line)
	}
	if usage.Is(err) || !a.began {
		return 2
	}
	return 1
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "jiji-node",
		Short: "One flat, encrypted network with names for the containers of many servers",
		Long: `jiji-node gives the containers of many servers one flat, encrypted network and
names for each other. "jiji-node run" is the node; the other commands prepare it
or talk to it.

Every flag can also be set by an environment variable (--state-dir by
JIJI_STATE_DIR) and in /etc/jiji/node.yaml (state-dir: ...); a flag beats the
environment, which beats the file. "jiji-node config show" prints where each
value came from. Exit code 2 means that what was typed or configured is wrong,
1 that the machine or the network refuses.`,
		Example:           "  jiji-node run\n  jiji-node status --watch",
		Args:              group,
		RunE:              showHelp,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: a.prepare,
	}
	root.SetHelpCommand(helpCommand(root))
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see `%s --help`)", settings.Nearest(err, c.Flags()), c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&a.configFile, "config", settings.DefaultFile, "configuration file")
	f.StringVar(&a.stateDir, "state-dir", "/var/lib/jiji", "directory of key, topology and registry")
	f.StringVar(&a.runtimeDir, "runtime-dir", "/run/jiji", "directory of the control socket")
	f.StringVar(&a.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&a.logFormat, "log-format", "text", "text or json")
	root.AddCommand(a.runCommand(), a.downCommand(), a.uninstallCommand(), a.initCommand(), a.serverCommand(), a.serviceCommand(), a.registryCommand(), a.statusCommand(),
		a.resolveCommand(), a.queriesCommand(), a.pingCommand(), a.configCommand(), a.versionCommand())
	addCompletion(root)
	return root
}

// prepare fills in the settings, before any command runs.
func (a *app) prepare(cmd *cobra.Command, _ []string) (err error) {
	var warnings []string
	a.values, warnings, err = settings.Resolve(settings.Config{
		Flags: cmd.Flags(), Environ: a.environ, Known: a.knownFlags(),
	})
	if err != nil {
		return err
	}
	if a.log, err = a.newLog(); err != nil {
		return err
	}
	for _, w := range warnings {
		a.log.Warn(w)
	}
	if a.stateDir, err = filepath.Abs(a.stateDir); err != nil {
		return err
	}
	if a.runtimeDir, err = filepath.Abs(a.runtimeDir); err != nil {
		return err
	}
	a.began = true
	return nil
}

// knownFlags are the names of the flags of all commands.
func (a *app) knownFlags() []string {
	seen := map[string]bool{}
	var names []string
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		add := func(f *pflag.Flag) {
			if !seen[f.Name] {
				seen[f.Name] = true
				names = append(names, f.Name)
			}
		}
		c.LocalFlags().VisitAll(add)
		c.PersistentFlags().VisitAll(add)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(a.root)
	return names
}

func (a *app) newLog() (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, a.wrong("log-level", fmt.Errorf("%q: want debug, info, warn or error", a.logLevel))
	}
	o := &slog.HandlerOptions{Level: l}
	switch a.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	}
	return nil, a.wrong("log-format", fmt.Errorf("%q: want text or json", a.logFormat))
}

// wrong is err, which is about the value of a setting, with where that came from.
func (a *app) wrong(name string, err error) error {
	origin := a.origin(name)
	if file, ok := strings.CutPrefix(origin, "file "); ok {
		return usage.Errorf("%s: %s: %w", file, name, err)
	}
	if strings.HasPrefix(origin, "environment ") {
		return usage.Errorf("%s: %w", origin, err)
	}
	return usage.Errorf("--%s: %w", name, err)
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func (a *app) client() *control.Client { return control.NewClient(a.runtimeDir) }

// knownTopology reads the state directory's copy; a node may be running on it.
func (a *app) knownTopology() (topology.Topology, error) {
	t, err := topology.Load(filepath.Join(a.stateDir, membership.FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return t, fmt.Errorf("%s: no topology yet: `jiji-node init` or `jiji-node run` makes one", a.stateDir)
	}
	return t, usage.Mark(err)
}

func (a *app) parseCluster(text string) (netip.Prefix, error) {
	p, err := ipplan.ParseCluster(text)
	if err != nil {
		return p, a.wrong("cluster-cidr", err)
	}
	return p, nil
}

func (a *app) parseDomain(text string) (string, error) {
	domain, err := topology.ParseDomain(text)
	if err != nil {
		return "", a.wrong("domain", err)
	}
	return domain, nil
}

// parseAddrs reads the values of a setting, each "IP" or "IP:PORT".
func (a *app) parseAddrs(name string, texts []string, port uint16) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, text := range texts {
		v, err := parseAddr(text, port)
		if err != nil {
			return nil, a.wrong(name, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// parseAddr reads "IP" or "IP:PORT"; port is meant where there is none.
func parseAddr(text string, port uint16) (netip.AddrPort, error) {
	if v, err := netip.ParseAddrPort(text); err == nil {
		return v, nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: want IP or IP:PORT, such as 203.0.113.10 or [2001:db8::1]:%d", text, port)
	}
	return netip.AddrPortFrom(ip, port), nil
}

func (a *app) versionCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the running node", Example: "  jiji-node version --json", Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version   string `json:"version"`
				Go        string `json:"go"`
				Platform  string `json:"platform"`
				WireGuard string `json:"wireguardGo"`
				Running   string `json:"running,omitempty"` // version of the node that runs
			}{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, WireGuard: moduleVersion("golang.zx2c4.com/wireguard")}
			if s, err := a.client().Status(cmd.Context()); err == nil {
				v.Running = s.Version
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "jiji-node %s (%s, %s, wireguard-go %s)\n", v.Version, v.Go, v.Platform, v.WireGuard)
			if v.Running != "" && v.Running != v.Version {
				fmt.Fprintf(cmd.OutOrStdout(), "the node that runs is %s\n", v.Running)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
}

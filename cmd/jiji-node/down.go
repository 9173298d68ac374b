package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/acidtib/jiji-node/node"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/node/usage"
)

const endLimit = 15 * time.Second // for a node that was told to go down to end: its agent takes 7 s, and 10 s where it has to be killed

func (a *app) downCommand() *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use: "down", Short: "Take the network off this host", Example: "  jiji-node down\n  jiji-node down --json | jq .kept", Args: cobra.NoArgs,
		Long: `Take back what the node changed on this host: interface, routes, firewall rules,
settings and files. A node that runs does it and ends; if none runs, however the
last one ended, this command does it. What somebody else changed since stays and
is named. The state directory stays, too: "jiji-node run" brings all of it back.
Without a node and without this command the rules that protect the mesh stay.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.down(cmd.Context())
			if err != nil {
				return err
			}
			return printUndone(cmd.OutOrStdout(), u, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	a.addInterfaceFlag(c.Flags())
	return c
}

// down has the running node take the network off the host, and waits for its
// end, or does that here.
func (a *app) down(ctx context.Context) (u control.Undone, err error) {
	if a.elsewhere(ctx) { // taking its firewall and interface away would harm that node
		return u, usage.Errorf("--state-dir %s: a node runs on this machine with another one: leave --state-dir out, or stop that node first", a.stateDir)
	}
	err = a.either(ctx, func() error {
		_, err := a.client().Settings(ctx) // which a node answers at once, if ever
		if err == nil {
			if u, err = a.client().Down(ctx); err == nil {
				return a.waitEnd(ctx)
			}
		}
		if errors.Is(err, control.ErrNoAnswer) {
			return a.overIt(err)
		}
		if _, again := a.client().Settings(ctx); errors.Is(again, control.ErrNotRunning) {
			return again // it ended while it was asked
		}
		return err
	}, func() error {
		u, err = node.Down(a.stateDir, a.link)
		var busy *statefile.InUseError
		if errors.As(err, &busy) {
			return fmt.Errorf("%w, which does not answer in %s: if it is starting, try again; if its --runtime-dir is another, name that", err, a.runtimeDir)
		}
		return err
	})
	return u, err
}

// overIt is err with how to go down without a node that hangs.
func (a *app) overIt(err error) error {
	lock, lerr := statefile.LockDir(a.stateDir)
	if lerr == nil {
		lock.Close()
	}
	var busy *statefile.InUseError
	if errors.As(lerr, &busy) && busy.PID != 0 {
		return fmt.Errorf("%w: `kill -9 %d`, and then this command again, takes the network off without it", err, busy.PID)
	}
	return err
}

// waitEnd waits until the node has left its state directory, and where that is
// another, or may not be looked at, until it does not answer.
func (a *app) waitEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	for {
		ended, err := a.ended(ctx)
		if ended || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the network is off this host, but the node did not end within %s", endLimit)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *app) ended(ctx context.Context) (bool, error) {
	if _, err := os.Stat(a.stateDir); err == nil {
		lock, err := statefile.LockDir(a.stateDir)
		var busy *statefile.InUseError
		switch {
		case err == nil:
			return true, lock.Close()
		case errors.As(err, &busy):
			return false, nil
		case !errors.Is(err, fs.ErrPermission):
			return false, err
		}
	}
	_, err := a.client().Settings(ctx)
	return errors.Is(err, control.ErrNotRunning), nil
}

// printUndone prints u; what failed is the error.
func printUndone(w io.Writer, u control.Undone, asJSON bool) error {
	if asJSON {
		if err := writeJSON(w, u); err != nil {
			return err
		}
	} else {
		for _, line := range u.Undone {
			fmt.Fprintln(w, line)
		}
		for _, line := range u.Kept {
			fmt.Fprintln(w, "left as it is: "+line)
		}
		if len(u.Undone)+len(u.Kept)+len(u.Failed) == 0 {
			fmt.Fprintln(w, "nothing to take back")
		}
	}
	if len(u.Failed) > 0 {
		return errors.New(strings.Join(u.Failed, "\n"))
	}
	return nil
}

func (a *app) uninstallCommand() *cobra.Command {
	asJSON, yes := false, false
	c := &cobra.Command{
		Use: "uninstall", Short: "Take the network off this host and delete the node's state", Example: "  jiji-node uninstall\n  jiji-node uninstall --yes", Args: cobra.NoArgs,
		Long: `Take the network off this host, as "jiji-node down" does, and delete the node's
files in the state directory after a confirmation: the key, with which this
server loses its identity, the topology and the services. Take the server out of
the mesh before, on another one: "jiji-node server remove ID".`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := node.State(a.stateDir)
			if err != nil {
				return err
			}
			if !yes {
				if err := confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), files); err != nil {
					return err
				}
			}
			var first control.Undone
			if first, err = a.down(cmd.Context()); err != nil {
				return err
			}
			if len(first.Failed) > 0 {
				return printUndone(cmd.OutOrStdout(), first, asJSON)
			}
			u, err := node.Uninstall(a.stateDir, a.link)
			if err != nil {
				return err
			}
			u.Undone, u.Kept = append(first.Undone, u.Undone...), append(first.Kept, u.Kept...)
			return printUndone(cmd.OutOrStdout(), u, asJSON)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.addInterfaceFlag(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// confirm asks on a terminal whether files may be deleted.
func confirm(in io.Reader, out io.Writer, files []string) error {
	if len(files) == 0 {
		return nil
	}
	if f, ok := in.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return usage.Errorf("uninstall deletes %s: standard input is no terminal to ask on, so say --yes", strings.Join(files, " "))
	}
	fmt.Fprintf(out, "This takes the network off this host and deletes:\n  %s\nThe key cannot be made again. Go on? [y/N] ", strings.Join(files, "\n  "))
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return usage.Errorf("nothing was done: the answer was not yes")
	}
	return nil
}

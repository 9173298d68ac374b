package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/acidtib/jiji-node/node/control"
)

func (a *app) statusCommand() *cobra.Command {
	asJSON, watch, every := false, false, time.Second
	c := &cobra.Command{
		Use: "status", Short: "Show this node and its peers", Example: "  jiji-node status --watch\n  jiji-node status --json | jq '.peers[].state'", Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := func(ctx context.Context, w io.Writer) error {
				s, err := a.client().Status(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(w, s)
				}
				return printStatus(w, s, time.Now())
			}
			if !watch {
				return show(cmd.Context(), cmd.OutOrStdout())
			}
			if every < 100*time.Millisecond {
				return a.wrong("interval", fmt.Errorf("%s, want at least 100ms", every))
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return repeat(ctx, cmd.OutOrStdout(), every, show)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON; with --watch, one document after another")
	c.Flags().BoolVar(&watch, "watch", false, "show it again and again, until Ctrl-C")
	c.Flags().DurationVar(&every, "interval", time.Second, "with --watch: how often")
	return c
}

// repeat shows something again and again: in place on a terminal, one below the
// other elsewhere. It ends with ctx; a node that goes away for a moment does not end it.
func repeat(ctx context.Context, w io.Writer, every time.Duration, show func(context.Context, io.Writer) error) error {
	f, ok := w.(*os.File)
	inPlace := ok && term.IsTerminal(int(f.Fd()))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for begun := false; ; begun = true {
		var page bytes.Buffer
		if err := show(ctx, &page); begun && errors.Is(err, control.ErrNotRunning) {
			fmt.Fprintln(&page, err)
		} else if ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		if inPlace {
			const home, clearLine, clearBelow = "\x1b[H", "\x1b[K\n", "\x1b[J"
			fmt.Fprint(w, home, string(bytes.ReplaceAll(page.Bytes(), []byte("\n"), []byte(clearLine))), clearBelow)
		} else if _, err := page.WriteTo(w); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func printStatus(w io.Writer, s control.Status, now time.Time) error {
	fmt.Fprintf(w, "%s  %s  %s\n", s.Server.ID, s.Server.WireGuardIP, s.Server.ManagementIP)
	since := s.StartedAt
	if s.Server.RemovedAt != nil {
		since = *s.Server.RemovedAt
	}
	fmt.Fprintf(w, "  %s since %s, version %s, mode %s, %s mtu %d, port %d\n", s.State, ago(since, now), s.Version, s.Mode, s.Interface.Name, s.Interface.MTU, s.Interface.ListenPort)
	fmt.Fprintf(w, "  public key %s\n", s.Server.Key)
	fmt.Fprintf(w, "  topology   %s, domain %s, %d servers, from %s\n", s.Cluster, s.Domain, len(s.Peers)+1, s.Topology.Source)
	fmt.Fprintf(w, "  dns        %s, %d names, %d queries, upstreams: %s\n", join(s.DNS.Listen), s.DNS.Names, s.DNS.Queries, orNone(join(s.DNS.Upstreams)))
	fmt.Fprintf(w, "  host dns   %s\n", hostDNSLine(s.DNS.Host))
	fmt.Fprintf(w, "  registry   %s\n", registryLine(s.Registry, now))
	fmt.Fprintf(w, "  containers %s\n", engineLine(s.Engine, now))
	for _, line := range s.Warnings {
		fmt.Fprintf(w, "  warning    %s\n", line)
	}
	switch {
	case len(s.Peers) > 0:
	case s.State == "removed": // a warning says so
		return nil
	default:
		_, err := fmt.Fprintln(w, "\nno peers yet; `jiji-node server add FILE` adds one")
		return err
	}
	fmt.Fprintln(w)
	t := table(w, "PEER", "STATE", "ENDPOINT", "RTT", "HANDSHAKE", "RECEIVED", "SENT", "SUBNET", "LAST CHANGE")
	for _, p := range s.Peers {
		handshake, endpoint, rtt, change := "never", "none", "none", ""
		if p.LastHandshake != nil {
			handshake = ago(*p.LastHandshake, now)
		}
		if p.Endpoint.IsValid() {
			endpoint = p.Endpoint.String()
		}
		if p.RTT > 0 {
			rtt = millis(p.RTT)
		}
		if n := len(p.Changes); n > 0 {
			change = ago(p.Changes[n-1].At, now) + ": " + p.Changes[n-1].Reason
		}
		t.row(p.ID, p.State, endpoint, rtt, handshake, humanize.IBytes(p.RxBytes), humanize.IBytes(p.TxBytes), p.Subnet.String(), change)
	}
	return t.flush()
}

// hostDNSLine says in one line how programs on the server find names of the mesh.
func hostDNSLine(h control.HostDNS) string {
	switch {
	case h.Configured == "off":
		return "left alone"
	case h.By != "":
		return "by " + h.By
	case h.Hint != "":
		return h.Hint
	}
	return "not known" // yet, or a warning says why
}

// registryLine is the state of the registry in one line.
func registryLine(r control.Registry, now time.Time) string {
	line := r.Mode
	if r.Since != nil {
		line += fmt.Sprintf(", %s since %s", r.State, ago(*r.Since, now))
	}
	line += fmt.Sprintf(", %d containers, %d rows skipped", r.Containers, len(r.Skipped))
	if r.Agent == nil {
		return line
	}
	agent := "agent " + r.Agent.URL
	if r.Agent.Managed {
		agent = orNone(r.Agent.Version)
		if agent == "none" {
			agent = "no agent"
		}
		if !r.Agent.Running {
			agent += " (not running)"
		}
	}
	line += ", " + agent
	if r.State != "down" { // else nobody knows
		line += fmt.Sprintf(", sees %d others", r.Members)
	}
	if r.Gaps > 0 {
		line += fmt.Sprintf(", %d versions behind", r.Gaps)
	}
	if r.Pending > 0 {
		line += fmt.Sprintf(", %d own rows to write", r.Pending)
	}
	return line
}

// engineLine is the state of the container engine in one line.
func engineLine(e control.Engine, now time.Time) string {
	switch {
	case e.Configured == "none":
		return "registered by hand only"
	case e.Kind == "" && e.Problem == "":
		return "no engine here"
	case e.Kind == "":
		return "no engine is followed"
	}
	state := "up"
	if !e.Up {
		state = "away"
	}
	return fmt.Sprintf("%s %s, %s since %s, network %s, %d in the mesh, %d refused", e.Kind, e.Version, state, ago(e.Since, now), e.Network, e.In, len(e.Refused))
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

func (a *app) resolveCommand() *cobra.Command {
	asJSON, qtype := false, "A"
	c := &cobra.Command{
		Use: "resolve NAME", Short: "Show what a name answers here, and why", Args: count(1, 1),
		Example: "  jiji-node resolve api\n  jiji-node resolve web1.node.jiji --type AAAA\n  jiji-node resolve 10.210.0.10",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.client().Resolve(cmd.Context(), args[0], qtype)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return writeJSON(w, r)
			}
			fmt.Fprintf(w, "%s %s: %s, from %s\n", r.Name, r.Type, r.Rcode, r.Source)
			for _, line := range r.Answers {
				fmt.Fprintln(w, "  "+line)
			}
			if r.Negative != "" {
				fmt.Fprintln(w, "  "+r.Negative)
			}
			if len(r.Order) > 1 {
				fmt.Fprintln(w, "  order: "+strings.Join(r.Order, ", "))
			}
			for _, line := range r.LeftOut {
				fmt.Fprintln(w, "  left out: "+line)
			}
			if r.Registry != "" {
				fmt.Fprintf(w, "  the registry is %s since %s: changes on other servers may be missing\n", r.Registry, ago(*r.Since, time.Now()))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&qtype, "type", "A", "record type")
	return c
}

func (a *app) pingCommand() *cobra.Command {
	asJSON := false
	r := control.PingRequest{}
	var interval, timeout time.Duration
	c := &cobra.Command{
		Use: "ping SERVER|NAME|ADDRESS", Short: "Reach a peer through the tunnel", Args: count(1, 1),
		Example: "  jiji-node ping web2\n  jiji-node ping api.jiji --count 1",
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Target, r.Interval, r.Timeout = args[0], control.Duration(interval), control.Duration(timeout)
			w := cmd.OutOrStdout()
			lines := json.NewEncoder(w)
			var last control.PingReply
			err := a.client().Ping(cmd.Context(), r, func(p control.PingReply) {
				last = p
				switch {
				case asJSON:
					_ = lines.Encode(p)
				case p.Done:
					fmt.Fprintf(w, "%s: %d sent, %d answered", pinged(p), p.Sent, p.Recv)
					if p.Recv > 0 {
						fmt.Fprintf(w, ", min/avg/max %s/%s/%s", millis(p.Min), millis(p.Avg), millis(p.Max))
					}
					fmt.Fprintln(w)
				default:
					fmt.Fprintf(w, "%s: seq %d in %s\n", pinged(p), p.Seq, millis(p.RTT))
				}
			})
			if err == nil && last.Recv == 0 {
				err = fmt.Errorf("%s does not answer", pinged(last))
			}
			return err
		},
	}
	c.Flags().IntVarP(&r.Count, "count", "c", 4, "how many echo requests")
	c.Flags().DurationVarP(&interval, "interval", "i", time.Second, "time between them")
	c.Flags().DurationVarP(&timeout, "timeout", "W", 2*time.Second, "how long to wait for the last answer")
	c.Flags().IntVarP(&r.Size, "size", "s", 56, "bytes of payload")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	return c
}

// pinged is the target of a ping, with its address if that is not what was typed.
func pinged(p control.PingReply) string {
	if ip := p.IP.String(); ip != p.Target {
		return fmt.Sprintf("%s (%s)", p.Target, ip)
	}
	return p.Target
}

func millis(d control.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

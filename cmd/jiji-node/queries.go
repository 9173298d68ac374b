package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/acidtib/jiji-node/node/control"
)

// errEnough ends a stream of queries.
var errEnough = errors.New("enough")

func (a *app) queriesCommand() *cobra.Command {
	asJSON, client, most := false, "", 0
	var r control.WatchRequest
	c := &cobra.Command{
		Use: "queries [NAME]", Short: "Show what is asked of the name server, as it is answered", Args: count(0, 1),
		Long: `Show what is asked of the name server, as it is answered, until Ctrl-C; with a
name, only what is asked for that name and those below it.`,
		Example: "  jiji-node queries api.jiji\n  jiji-node queries --client 10.210.0.10 --count 20\n  jiji-node queries --every 100 --json | jq -r .name",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				r.Name = args[0]
			}
			if r.Every < 1 {
				return a.wrong("every", fmt.Errorf("%d: want at least 1", r.Every))
			}
			if most < 0 {
				return a.wrong("count", fmt.Errorf("%d: want 1 or more, or 0 for no end", most))
			}
			if client != "" {
				var err error
				if r.Client, err = parsePrefix(client); err != nil {
					return a.wrong("client", err)
				}
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			w, seen, missed := cmd.OutOrStdout(), 0, uint64(0)
			err := a.client().Watch(ctx, r, func() {}, func(q control.SeenQuery) error {
				if missed = q.Missed; asJSON {
					if err := json.NewEncoder(w).Encode(q); err != nil {
						return err
					}
				} else if _, err := io.WriteString(w, queryLine(q)); err != nil {
					return err
				}
				if seen++; seen == most {
					return errEnough
				}
				return nil
			})
			if missed > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%d more are not shown, they came too fast: --every N shows one in N\n", missed)
			}
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		},
	}
	c.Flags().StringVar(&client, "client", "", "only of this address, or of those in this prefix")
	c.Flags().IntVar(&r.Every, "every", 1, "only one in so many")
	c.Flags().IntVarP(&most, "count", "c", 0, "end after so many (default: never)")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	return c
}

// parsePrefix takes an address or a prefix.
func parsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q: want an address or a prefix, such as 10.210.0.10 or 10.210.0.0/24", text)
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// queryLine is q for people. Names are in the form of zone files, in which nothing
// does anything to a terminal.
func queryLine(q control.SeenQuery) string {
	var b strings.Builder
	name := q.Name
	if name == "" {
		name = "-"
	}
	fmt.Fprintf(&b, "%s  %s/%s  %s %s  %s", q.At.Local().Format("15:04:05.000"), q.Client, q.Proto, name, q.Type, q.Rcode)
	fmt.Fprintf(&b, ", %d answers, %d bytes in %s, %s", q.Answers, q.Size, time.Duration(q.Took).Round(time.Microsecond), q.Source)
	if q.Upstream != nil {
		fmt.Fprintf(&b, " by %s", q.Upstream)
	}
	for _, note := range []struct {
		is   bool
		text string
	}{{q.Cached, "cached"}, {q.Stale, "stale"}, {q.Truncated, "truncated"}, {q.Error != "", q.Error}} {
		if note.is {
			b.WriteString(", " + note.text)
		}
	}
	return b.String() + "\n"
}

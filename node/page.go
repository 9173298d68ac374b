package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/statuspage"
)

// serveStatusPage serves the status page until ctx is done. While it cannot, the
// node goes on, warns and tries again: it shows the network, and is not the network.
func (n *Node) serveStatusPage(ctx context.Context) {
	addr := n.cfg.StatusListen
	source := statuspage.Source{Status: api{n}.Status, Names: n.dns.Stats, Answers: n.dns.Answers}
	if slices.ContainsFunc(n.closed(), func(p netip.Prefix) bool { return p.Contains(addr.Addr()) }) {
		source.Answer = n.classes.Answer
	}
	said := ""
	statuspage.Serve(ctx, addr, source, func(err error) {
		if err == nil {
			said = ""
			n.page.Store(nil)
			n.log.Info("status page listening", "address", addr)
			return
		}
		if said != err.Error() { // the same again and again is no news, and to look into it is work
			said = err.Error()
			problem := pageProblem(addr, err)
			n.page.Store(&problem)
			n.log.Warn("no status page; trying on", "problem", problem)
		}
	}, n.log)
}

// pagePort is the port of the status page, for the preflight.
func pagePort(addr netip.AddrPort) host.Port {
	return host.Port{Proto: "tcp", Addr: addr, What: "the status page", Flag: "--status-listen"}
}

// pageProblem says why there is no status page on addr, with who has its port.
func pageProblem(addr netip.AddrPort, err error) string {
	want := host.Want{Ports: []host.Port{pagePort(addr)}}
	if facts, err := host.Observe(want); err == nil {
		for _, p := range host.Check(facts, want) {
			if p.Kind == host.KindPort {
				return p.Text
			}
		}
	}
	return fmt.Sprintf("the status page: %s: expected to listen on %v, see --status-listen", strings.TrimPrefix(err.Error(), "listen tcp "), addr)
}

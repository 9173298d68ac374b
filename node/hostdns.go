package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/upstream"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/host"
	"github.com/acidtib/jiji-node/node/resolved"
)

// A hostDNS says how programs of this host find names of the mesh.
type hostDNS struct {
	by, hint string   // as in control.HostDNS
	fault    string   // why systemd-resolved, which runs, could not be told; "" if it could
	fights   []string // with other programs, one line each
}

// A hostResolver has systemd-resolved ask the node. It belongs to hostDNSLoop.
type hostResolver struct {
	fights host.Fights
	index  int // of the interface that it was told of last
	missed int // how many looks in a row it has not been there, or has not known the interface
}

// hostDNSLoop keeps systemd-resolved, where it runs, asking the node for names of the
// mesh, and tries again what fails. It has a goroutine of its own because it may be
// kept waiting; nothing waits for it.
func (n *Node) hostDNSLoop(ctx context.Context) error {
	tick := time.NewTicker(convergeEvery)
	defer tick.Stop()
	var r hostResolver
	again := convergeRetry
	for regular := true; ; {
		var retry <-chan time.Time
		if n.setHostDNS(ctx, &r, regular) {
			again = convergeRetry
		} else {
			retry = time.After(again)
			again = min(2*again, convergeEvery)
		}
		regular = false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			regular = true
		case <-retry:
		case <-n.resolverChanged:
		}
	}
}

// watchResolved pokes resolverChanged when systemd-resolved starts, and when somebody
// tells it of servers.
func (n *Node) watchResolved(ctx context.Context) error {
	if err := resolved.Watch(ctx, func() { poke(n.resolverChanged) }); err != nil {
		n.log.Warn("what is told to systemd-resolved is noticed once a minute only", "err", err)
	}
	return nil
}

// setHostDNS tells systemd-resolved what it is to ask the node, if it is told
// otherwise now, and notes how things are. Not ok is that it has to be tried again.
func (n *Node) setHostDNS(ctx context.Context, r *hostResolver, regular bool) (ok bool) {
	link, err := net.InterfaceByName(n.cfg.Interface)
	if err != nil { // it is being made again, which pokes
		return true
	}
	if !regular && r.index == link.Index && r.fights.Fought(n.cfg.Interface) {
		return true
	}
	at := n.dns.Addrs()[0]
	topo := n.members.Topology()
	domains := []string{topo.Domain}
	for _, p := range reverse(topo) {
		domains = append(domains, reverseZones(p)...)
	}
	changed, err := resolved.Apply(ctx, "", resolved.Link{Index: link.Index, Server: at, Domains: domains})
	absent, unknown := errors.Is(err, resolved.ErrAbsent), errors.Is(err, resolved.ErrNoLink)
	if r.missed++; !absent && !unknown {
		r.missed = 0
	}
	switch {
	case ctx.Err() != nil:
		return false
	case r.missed == 1 && (unknown || r.index != 0): // it hears of new ones from the kernel, or is being restarted
		return false
	case len(changed) > 0 && r.index == link.Index:
		what := fmt.Sprintf("systemd-resolved had lost, of %s: %s", n.cfg.Interface, strings.Join(changed, ", "))
		n.logChanges([]host.Change{{What: what, Reason: r.fights.Repaired(n.cfg.Interface, what, time.Now())}})
	case len(changed) > 0:
		n.logChanges([]host.Change{{What: fmt.Sprintf("systemd-resolved asks %s for %s and the reverse zones of %v", at, topo.Domain, reverse(topo)), Reason: host.News}})
	}
	if err == nil {
		r.index = link.Index
	}
	n.logEnded(&r.fights)
	now := hostDNS{fights: r.fights.Warnings()}
	servers, stub := upstream.OfPrograms()
	if !absent && err != nil {
		now.fault = fmt.Sprintf("programs on this server may not find names of the mesh: %v", err)
	} else {
		now.by, now.hint = hostDNSWay(!absent, stub, servers, at, topo.Domain)
	}
	n.tellHostDNS(now)
	return absent || err == nil
}

// tellHostDNS notes how things are, and logs what is new.
func (n *Node) tellHostDNS(now hostDNS) {
	was := n.hostDNS.Swap(&now)
	if was == nil {
		was = &hostDNS{}
	}
	if now.hint != "" && now.hint != was.hint {
		n.log.Info("this server's own programs do not find names of the mesh", "hint", now.hint)
	}
	if now.fault != "" && now.fault != was.fault {
		n.log.Warn("this server's resolver is not as wanted; trying on", "problem", now.fault)
	}
}

// hostDNSWay says how programs of a host find names of domain, which at answers: servers
// are those that they ask, the first of which is systemd-resolved if stub says so. If
// nothing is known to lead there it says what would.
func hostDNSWay(runs, stub bool, servers []netip.Addr, at netip.AddrPort, domain string) (by, hint string) {
	const silence = "(docs/dns.md; --dns-host off says nothing)"
	switch {
	case runs && stub:
		return "systemd-resolved", ""
	case len(servers) > 0 && servers[0] == at.Addr() && at.Port() == 53:
		return "/etc/resolv.conf", ""
	case runs:
		return "", fmt.Sprintf("systemd-resolved knows %s, but /etc/resolv.conf does not lead to it: make that a link to /run/systemd/resolve/stub-resolv.conf %s", domain, silence)
	case len(servers) > 0 && servers[0].IsLoopback():
		return "", fmt.Sprintf("not known: have the resolver on %v ask %v for %s %s", servers[0], at, domain, silence)
	case at.Port() != 53:
		return "", fmt.Sprintf("no: /etc/resolv.conf cannot name port %d: have a resolver ask %v for %s %s", at.Port(), at, domain, silence)
	default:
		return "", fmt.Sprintf("no: put `nameserver %v` above the others in /etc/resolv.conf %s", at.Addr(), silence)
	}
}

// hostDNSStatus is how things are in the API's terms.
func (n *Node) hostDNSStatus() control.HostDNS {
	if !n.cfg.HostDNS {
		return control.HostDNS{Configured: "off"}
	}
	s := control.HostDNS{Configured: "auto"}
	if now := n.hostDNS.Load(); now != nil {
		s.By, s.Hint = now.by, now.hint
	}
	return s
}

// reverseZones are the zones, of whole labels, of the addresses of p.
func reverseZones(p netip.Prefix) (zones []string) {
	step := 8 // bits of a label
	if p.Addr().Is6() {
		step = 4
	}
	labels := (p.Bits() + step - 1) / step
	for i := range 1 << (labels*step - p.Bits()) {
		b := p.Masked().Addr().AsSlice()
		b[(labels*step-1)/8] |= byte(i << ((8 - labels*step%8) % 8))
		a, _ := netip.AddrFromSlice(b)
		name, _ := dns.ReverseAddr(a.String()) // which fails for what is no address
		all := dns.SplitDomainName(name)
		zones = append(zones, strings.Join(all[a.BitLen()/step-labels:], "."))
	}
	return zones
}

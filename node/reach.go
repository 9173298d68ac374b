package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	probing "github.com/prometheus-community/pro-bing"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/node/topology"
	"github.com/acidtib/jiji-node/node/usage"
)

// Resolve answers as the name server would, and says why.
func (n api) Resolve(ctx context.Context, name, qtype string) (control.Resolution, error) {
	if qtype == "" {
		qtype = "A"
	}
	if a, err := netip.ParseAddr(name); err == nil {
		reverse, err := dns.ReverseAddr(a.String())
		if err != nil {
			return control.Resolution{}, usage.Mark(err)
		}
		name, qtype = reverse, "PTR"
	}
	if _, ok := dns.StringToType[strings.ToUpper(qtype)]; !ok {
		return control.Resolution{}, usage.Errorf("type %q: want a DNS record type such as A, AAAA or PTR", qtype)
	}
	if _, ok := dns.IsDomainName(name); !ok || name == "" {
		return control.Resolution{}, usage.Errorf("name %q: is not a domain name", name)
	}
	domain := n.members.Topology().Domain
	if !strings.Contains(name, ".") { // what a container's search list does
		name += "." + domain
	}
	name = dns.Fqdn(name)
	res, err := n.dns.Resolve(ctx, name, qtype)
	if err != nil {
		return control.Resolution{}, fmt.Errorf("resolve %s: %w", name, err)
	}
	r := control.Resolution{Name: name, Type: strings.ToUpper(qtype), Source: "zone", Rcode: res.Rcode, Answers: append([]string{}, res.Records...), LeftOut: []string{}}
	switch {
	case res.Ours:
		if state := n.registryStatus(n.store().Snapshot()); state.State != "up" {
			r.Registry, r.Since = state.State, state.Since
		}
	case res.Stale:
		r.Source = fmt.Sprintf("stale cache (%v)", res.Upstream)
	case res.Cached:
		r.Source = fmt.Sprintf("cache (%v)", res.Upstream)
	default:
		r.Source = res.Upstream.String()
	}
	if res.Ours && r.Type == "A" && !n.cfg.RotateDNS {
		r.Order = inOrder(res.Records, members(n.members.Topology()), n.members.Self().ID, n.times())
	}
	for _, c := range res.LeftOut {
		r.LeftOut = append(r.LeftOut, fmt.Sprintf("%s (%s): %s", c.IP, c.ID, c.Reason))
	}
	switch {
	case len(r.Answers) > 0:
	case res.Rcode == dns.RcodeToString[dns.RcodeNameError]:
		r.Negative = "no such name"
	case res.Rcode == dns.RcodeToString[dns.RcodeSuccess]:
		r.Negative = "the name exists, but has no " + r.Type + " record now"
	default:
		r.Negative = "no answer"
	}
	return r, nil
}

// inOrder names the servers of A records and how near they are, in their order.
func inOrder(records []string, servers []topology.Server, self string, times map[netip.Addr]time.Duration) []string {
	var order []string
	for _, record := range records {
		ip, _ := netip.ParseAddr(record[strings.LastIndex(record, "\t")+1:])
		for _, s := range servers {
			if !s.Subnet.Contains(ip) {
				continue
			}
			line := s.ID + " (not measured)"
			if d := times[s.WireGuardIP]; s.ID == self {
				line = s.ID + " (this server)"
			} else if d > 0 {
				line = fmt.Sprintf("%s (%.2f ms)", s.ID, d.Seconds()*1000)
			}
			if !slices.Contains(order, line) {
				order = append(order, line)
			}
		}
	}
	return order
}

// Ping sends echo requests from this server's mesh address.
func (n api) Ping(ctx context.Context, r control.PingRequest, reply func(control.PingReply)) error {
	switch {
	case r.Count < 1 || r.Count > 1000:
		return usage.Errorf("count %d: want 1 to 1000", r.Count)
	case time.Duration(r.Interval) < 10*time.Millisecond:
		return usage.Errorf("interval %s: want at least 10ms", time.Duration(r.Interval))
	case time.Duration(r.Timeout) <= 0 || time.Duration(r.Timeout) > time.Minute:
		return usage.Errorf("timeout %s: want more than 0s, up to 1m", time.Duration(r.Timeout))
	case r.Size < 24 || r.Size > 65000: // the library keeps 24 bytes of its own in it
		return usage.Errorf("size %d: want 24 to 65000 bytes", r.Size)
	}
	ip, err := n.target(ctx, r.Target)
	if err != nil {
		return err
	}
	self := n.members.Self()
	p := probing.New("")
	p.SetIPAddr(&net.IPAddr{IP: ip.AsSlice()})
	p.SetPrivileged(true)
	p.Source = self.WireGuardIP.String()
	if ip.Is6() {
		p.Source = self.ManagementIP.String()
	}
	p.Count, p.Interval, p.Size = r.Count, time.Duration(r.Interval), r.Size
	p.Timeout = time.Duration(r.Count-1)*p.Interval + time.Duration(r.Timeout)
	p.RecordRtts, p.RecordTTLs = false, false
	p.OnRecv = func(k *probing.Packet) {
		reply(control.PingReply{Target: r.Target, IP: ip, Seq: k.Seq + 1, RTT: control.Duration(k.Rtt)})
	}
	err = p.RunWithContext(ctx)
	unreachable := errors.Is(err, syscall.EHOSTUNREACH) // no peer has it, and nothing leaves in the clear
	if err != nil && !unreachable && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("ping %s: %w", ip, err)
	}
	s := p.Statistics()
	if unreachable {
		s.PacketsSent++
	}
	reply(control.PingReply{
		Target: r.Target, IP: ip, Done: true, Sent: s.PacketsSent, Recv: s.PacketsRecv,
		Min: control.Duration(s.MinRtt), Avg: control.Duration(s.AvgRtt), Max: control.Duration(s.MaxRtt),
	})
	return nil
}

// target is the mesh address that text means: an address, a server or a name.
func (n api) target(ctx context.Context, text string) (netip.Addr, error) {
	topo := n.members.Topology()
	if a, err := netip.ParseAddr(text); err == nil {
		if !topo.Cluster.Contains(a) && !ipplan.ManagementPrefix.Contains(a) {
			return a, usage.Errorf("address %s: is not in the mesh (%s, %s)", a, topo.Cluster, ipplan.ManagementPrefix)
		}
		for _, s := range members(topo) {
			if s.Subnet.Contains(a) || s.ManagementIP == a {
				return a, nil
			}
		}
		return a, usage.Errorf("address %s: belongs to no server of the mesh, see `jiji-node server list`", a)
	}
	for _, s := range members(topo) {
		if strings.EqualFold(text, s.ID) || strings.EqualFold(text, s.Hostname) {
			return s.WireGuardIP, nil
		}
	}
	r, err := n.Resolve(ctx, text, "A")
	if err != nil {
		return netip.Addr{}, err
	}
	for _, answer := range r.Answers {
		fields := strings.Fields(answer)
		if a, err := netip.ParseAddr(fields[len(fields)-1]); err == nil && topo.Cluster.Contains(a) {
			return a, nil
		}
	}
	return netip.Addr{}, usage.Errorf("%q: is no server, mesh name or mesh address (known servers: %s)", text, strings.Join(serverIDs(n), ", "))
}

func serverIDs(n api) []string {
	var ids []string
	for _, s := range members(n.members.Topology()) {
		ids = append(ids, s.ID)
	}
	return ids
}

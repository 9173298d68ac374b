package statuspage

import (
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/acidtib/jiji-node/node/control"
)

// Names follow Prometheus' conventions: base units, and _total for what only grows.
// docs/metrics.md lists them; a test compares.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("jiji_"+name, help, labels, nil)
}

var (
	nodeInfo     = desc("node_info", "Always 1; says which program runs.", "version", "server", "mode")
	nodeReady    = desc("node_ready", "Whether the node carries traffic and answers the names that it knows.")
	nodeWarnings = desc("node_warnings", "What is not as it should be; `jiji-node status` says what.")

	peerCount     = desc("peers", "Other servers, by state.", "state")
	peerUp        = desc("peer_up", "Whether a server answers.", "peer")
	peerRTT       = desc("peer_rtt_seconds", "Round-trip time through the tunnel, the least of the latest five; absent if nothing was answered.", "peer")
	peerHandshake = desc("peer_last_handshake_timestamp_seconds", "When the latest handshake was; absent if there was none.", "peer")
	peerReceived  = desc("peer_received_bytes_total", "Received from a server, as WireGuard counts it; begins anew when the interface is made again.", "peer")
	peerSent      = desc("peer_sent_bytes_total", "Sent to a server, likewise.", "peer")

	dnsDuration = desc("dns_query_duration_seconds", "From when a query was read to when its answer was given to the kernel. zone: mesh, forwarded or refused, for it came from outside.", "zone", "type", "rcode")
	dnsBad      = desc("dns_malformed_total", "Messages that could not be parsed.")
	dnsRejected = desc("dns_connections_rejected_total", "TCP connections that were closed because there were too many.")
	dnsUnsent   = desc("dns_replies_unsent_total", "Replies by UDP that the kernel did not take, as where a firewall drops them; they are among the answered ones.")
	dnsNames    = desc("dns_names", "Names in the zone.")

	forwardResult   = desc("dns_forwarded_total", "Forwarded questions by how they ended: local, hit, stale, answered, failed, busy or loop.", "result")
	forwardJoined   = desc("dns_forward_joined_total", "Questions that waited for the answer to another one.")
	forwardPrefetch = desc("dns_forward_prefetched_total", "Questions that were asked because an answer in use was about to end.")
	cacheEntries    = desc("dns_cache_entries", "Answers of upstreams in the cache.")
	cacheBytes      = desc("dns_cache_bytes", "Size of the cache.")
	upstreamUp      = desc("dns_upstream_up", "Whether an upstream answers; others are asked first if not.", "upstream")
	upstreamRTT     = desc("dns_upstream_rtt_seconds", "Smoothed time to its answers; absent if not measured.", "upstream")
	upstreamAnswers = desc("dns_upstream_answers_total", "Answers of an upstream.", "upstream")
	upstreamFailed  = desc("dns_upstream_failures_total", "Questions that an upstream did not answer in a second, or not in a way that is of use.", "upstream")

	registryUp         = desc("registry_up", "Whether the registry can be read and written.", "mode")
	registryContainers = desc("registry_containers", "Containers in the catalog.")
	registrySkipped    = desc("registry_rows_skipped", "Rows that are not believed.")
	registryMembers    = desc("registry_agents", "Other agents that this server's sees.")
	registryGaps       = desc("registry_missing_versions", "Versions that the agent knows of and has not got yet.")
	registryPending    = desc("registry_pending_rows", "Own rows that are not written yet.")
	agentRestarts      = desc("registry_agent_restarts_total", "How often the node has started the agent again.")

	engineUp         = desc("engine_up", "Whether the container engine answers.", "engine")
	engineContainers = desc("engine_containers", "Containers of this server, by whether they are in the mesh: in, or refused.", "state")
)

func newRegistry(s Source) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// A collector turns what a node says of itself into metrics, when it is asked.
type collector struct{ Source }

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		nodeInfo, nodeReady, nodeWarnings,
		peerCount, peerUp, peerRTT, peerHandshake, peerReceived, peerSent,
		dnsDuration, dnsBad, dnsRejected, dnsUnsent, dnsNames,
		forwardResult, forwardJoined, forwardPrefetch, cacheEntries, cacheBytes, upstreamUp, upstreamRTT, upstreamAnswers, upstreamFailed,
		registryUp, registryContainers, registrySkipped, registryMembers, registryGaps, registryPending, agentRestarts,
		engineUp, engineContainers,
	} {
		out <- d
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	e := emitter(out)
	st := c.Status()
	e.gauge(nodeInfo, 1, st.Version, st.Server.ID, st.Mode)
	e.gauge(nodeReady, number(ready(st)))
	e.gauge(nodeWarnings, float64(len(st.Warnings)))
	e.peers(st.Peers)
	c.names(e)
	e.gauge(dnsNames, float64(st.DNS.Names))
	e.registry(st.Registry)
	if st.Engine.Kind != "" {
		e.gauge(engineUp, number(st.Engine.Up), st.Engine.Kind)
		e.gauge(engineContainers, float64(st.Engine.In), "in")
		e.gauge(engineContainers, float64(len(st.Engine.Refused)), "refused")
	}
}

// An emitter sends metrics.
type emitter chan<- prometheus.Metric

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (e emitter) peers(peers []control.Peer) {
	states := map[string]int{"up": 0, "suspect": 0, "down": 0, "unknown": 0}
	for _, p := range peers {
		states[p.State]++
		e.gauge(peerUp, number(p.State == "up" || p.State == "suspect"), p.ID)
		if p.RTT > 0 {
			e.gauge(peerRTT, time.Duration(p.RTT).Seconds(), p.ID)
		}
		if p.LastHandshake != nil {
			e.gauge(peerHandshake, float64(p.LastHandshake.UnixMilli())/1000, p.ID)
		}
		e.counter(peerReceived, p.RxBytes, p.ID)
		e.counter(peerSent, p.TxBytes, p.ID)
	}
	for state, n := range states {
		e.gauge(peerCount, float64(n), state)
	}
}

func (c collector) names(e emitter) {
	for _, a := range c.Answers() {
		within := make(map[float64]uint64, len(a.Within))
		for d, n := range a.Within {
			within[d.Seconds()] = n
		}
		e <- prometheus.MustNewConstHistogram(dnsDuration, a.Count, a.Sum.Seconds(), within, a.Source.String(), a.Type, a.Rcode)
	}
	st := c.Names()
	e.counter(dnsBad, st.Malformed)
	e.counter(dnsRejected, st.Rejected)
	e.counter(dnsUnsent, st.Unsent)
	f := st.Forward
	for result, n := range map[string]uint64{"local": f.Local, "hit": f.Hits, "stale": f.Stale, "answered": f.Answered, "failed": f.Failed, "busy": f.Busy, "loop": f.Loops} {
		e.counter(forwardResult, n, result)
	}
	e.counter(forwardJoined, f.Joined)
	e.counter(forwardPrefetch, f.Prefetched)
	e.gauge(cacheEntries, float64(f.Entries))
	e.gauge(cacheBytes, float64(f.Bytes))
	told := map[netip.AddrPort]bool{} // one may be listed twice
	for _, u := range f.Upstreams {
		if told[u.Addr] {
			continue
		}
		told[u.Addr] = true
		addr := u.Addr.String()
		e.gauge(upstreamUp, number(!u.Down), addr)
		if u.RTT > 0 {
			e.gauge(upstreamRTT, u.RTT.Seconds(), addr)
		}
		e.counter(upstreamAnswers, u.Answers, addr)
		e.counter(upstreamFailed, u.Failures, addr)
	}
}

func (e emitter) registry(r control.Registry) {
	e.gauge(registryUp, number(r.State == "up"), r.Mode)
	e.gauge(registryContainers, float64(r.Containers))
	e.gauge(registrySkipped, float64(len(r.Skipped)))
	if r.Agent == nil {
		return
	}
	e.gauge(registryMembers, float64(r.Members))
	e.gauge(registryGaps, float64(r.Gaps))
	e.gauge(registryPending, float64(r.Pending))
	if r.Agent.Managed {
		e.counter(agentRestarts, uint64(r.Agent.Restarts))
	}
}

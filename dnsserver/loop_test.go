package dnsserver

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/dnstest"
)

// startLoop starts n nodes, each of which asks the next, the last one the first.
func startLoop(t *testing.T, n int, more ...netip.AddrPort) []*Server {
	t.Helper()
	ups := make([]atomic.Pointer[[]netip.AddrPort], n)
	nodes := make([]*Server, n)
	for i := range nodes {
		ups[i].Store(&[]netip.AddrPort{})
		nodes[i] = start(t, Config{Upstreams: func() []netip.AddrPort { return *ups[i].Load() }})
	}
	for i := range nodes {
		list := append([]netip.AddrPort{nodes[(i+1)%n].Addrs()[0]}, more...)
		ups[i].Store(&list)
	}
	return nodes
}

// TestLoopOfNodes: nodes that name one another as upstreams say SERVFAIL at
// once, having asked each other once.
func TestLoopOfNodes(t *testing.T) {
	for _, n := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			nodes := startLoop(t, n)
			begin := time.Now()
			m := askServer(t, nodes[0], "udp", asking(t, "www.example.com. IN A"))
			if took := time.Since(begin); m.Rcode != dns.RcodeServerFailure || took > time.Second {
				t.Errorf("%s after %v", dns.RcodeToString[m.Rcode], took)
			} else {
				t.Logf("SERVFAIL after %v", took.Round(10*time.Microsecond))
			}
			for i, s := range nodes {
				want := uint64(1)
				if i == 0 {
					want = 2 // the client's, and its own that came back
				}
				waitFor(t, fmt.Sprintf("node %d to count %d queries", i, want), func() bool { return s.Stats().Queries >= want })
				if st := s.Stats(); st.Queries != want || (st.Forward.Loops > 0) != (i == 0) {
					t.Errorf("node %d: %+v", i, st)
				}
			}
		})
	}
}

// TestLoopFromBothSides: the same question at both nodes at a time is no way
// for each to wait for the other.
func TestLoopFromBothSides(t *testing.T) {
	nodes := startLoop(t, 2)
	for i := range 50 {
		q := asking(t, fmt.Sprintf("www%d.example.com. IN A", i))
		done := make(chan time.Duration, 2)
		for _, s := range nodes {
			go func() {
				begin := time.Now()
				if m := askServer(t, s, "udp", q.Copy()); m.Rcode != dns.RcodeServerFailure {
					t.Errorf("%v", m)
				}
				done <- time.Since(begin)
			}()
		}
		for range 2 {
			if d := <-done; d > time.Second {
				t.Errorf("after %v", d)
			}
		}
	}
}

// TestLoopWithAWayOut: nodes that name one another and a resolver answer.
func TestLoopWithAWayOut(t *testing.T) {
	up := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte { return [][]byte{dnstest.Answer(t, q, 1, nil)} }, nil)
	nodes := startLoop(t, 2, up.Addr)
	for _, s := range nodes {
		begin := time.Now()
		m := askServer(t, s, "udp", asking(t, "www.example.com. IN A"))
		if len(m.Answer) != 1 || time.Since(begin) > time.Second {
			t.Errorf("after %v: %v", time.Since(begin), m)
		}
	}
}

// TestLoopThroughAnotherResolver: a resolver that knows nothing of nodes asks
// us what we ask it.
func TestLoopThroughAnotherResolver(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(q *dns.Msg) // what it asks in place of q, with an ID of its own
		within time.Duration
	}{
		{"passes all on", func(*dns.Msg) {}, time.Second},
		{"without EDNS", func(q *dns.Msg) { q.Extra = nil }, time.Second},
		{"without EDNS, in lower case", func(q *dns.Msg) {
			q.Extra = nil
			q.Question[0].Name = strings.ToLower(q.Question[0].Name)
		}, forwardLimit + 500*time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var node atomic.Pointer[Server]
			resolver := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte {
				back := q.Copy()
				back.Id = dns.Id()
				c.change(back)
				client := dns.Client{Timeout: patience}
				m, _, err := client.Exchange(back, node.Load().Addrs()[0].String())
				if err != nil {
					return nil
				}
				m.Id, m.Question, m.Extra = q.Id, q.Question, nil
				b, err := m.Pack()
				if err != nil {
					t.Error(err)
				}
				return [][]byte{b}
			}, nil)
			s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{resolver.Addr} }})
			node.Store(s)
			begin := time.Now()
			m := askServer(t, s, "udp", asking(t, "www.example.com. IN A"))
			if took := time.Since(begin); m.Rcode != dns.RcodeServerFailure || took > c.within {
				t.Errorf("%s after %v", dns.RcodeToString[m.Rcode], took)
			} else {
				t.Logf("SERVFAIL after %v", took.Round(10*time.Microsecond))
			}
			if n := s.Stats().Queries; n > 4 {
				t.Errorf("%d queries went round", n)
			}
		})
	}
}

package dnsserver

import (
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/dnstest"
)

// next is what w sees next.
func next(t *testing.T, w *Watch) Query {
	t.Helper()
	select {
	case q := <-w.C:
		return q
	case <-time.After(patience):
		t.Fatal("nothing is seen")
		return Query{}
	}
}

func TestWatchSeesQueries(t *testing.T) {
	up := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte { return [][]byte{dnstest.Answer(t, q, 2, nil)} }, nil)
	s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.Addr} }})
	w := s.Watch(Filter{})
	defer w.Close()
	for _, c := range []struct {
		network, question string
		want              Query
	}{
		{"udp", "oNe.jiji. IN A", Query{Type: "A", Rcode: "NOERROR", Answers: 1}},
		{"tcp", "one.jiji. IN A", Query{Type: "A", Rcode: "NOERROR", Answers: 1}},
		{"udp", "nobody.jiji. IN AAAA", Query{Type: "AAAA", Rcode: "NXDOMAIN"}},
		{"udp", "one.jiji. IN TYPE65400", Query{Type: "TYPE65400", Rcode: "NOERROR"}},
		{"udp", "example.com. IN A", Query{Type: "A", Rcode: "NOERROR", Source: Forwarded, Upstream: up.Addr, Answers: 2}},
		{"tcp", "example.com. IN A", Query{Type: "A", Rcode: "NOERROR", Source: Forwarded, Upstream: up.Addr, Answers: 2, Cached: true}},
	} {
		begin := time.Now()
		q := asking(t, c.question)
		askServer(t, s, c.network, q)
		got := next(t, w)
		if got.At.Before(begin) || got.Took <= 0 || got.Took > time.Since(begin) || !got.Client.Addr().IsLoopback() || got.Size < headerSize {
			t.Errorf("%s: %+v", c.question, got)
		}
		want := c.want
		want.At, want.Took, want.Client, want.Size = got.At, got.Took, got.Client, got.Size
		want.Name, want.Proto = q.Question[0].Name, c.network
		if got != want {
			t.Errorf("%s by %s:\n%+v, want\n%+v", c.question, c.network, got, want)
		}
	}
}

func TestWatchFilter(t *testing.T) {
	s := start(t, Config{})
	for _, c := range []struct {
		filter Filter
		want   int // of the 8 queries
	}{
		{Filter{}, 8},
		{Filter{Name: "."}, 8},
		{Filter{Name: "ONE.jiji"}, 4},
		{Filter{Name: "one.jiji."}, 4},
		{Filter{Name: "jiji"}, 8},
		{Filter{Name: "iji"}, 0},
		{Filter{Client: netip.MustParsePrefix("127.0.0.0/8")}, 8},
		{Filter{Client: netip.MustParsePrefix("10.0.0.0/8")}, 0},
		{Filter{Every: 1}, 8},
		{Filter{Every: 4}, 2},
		{Filter{Name: "one.jiji", Every: 3}, 2},
	} {
		all, some := s.Watch(Filter{}), s.Watch(c.filter)
		for range 4 {
			askServer(t, s, "udp", asking(t, "one.jiji. IN A"))
			askServer(t, s, "udp", asking(t, "nobody.jiji. IN A"))
		}
		for range 8 { // the watches are told of a query one after the other
			next(t, all)
		}
		got := 0
		waitFor(t, "as many as are wanted", func() bool { got = len(some.C); return got >= c.want })
		if got != c.want || some.Missed() != 0 {
			t.Errorf("%+v: %d are seen, want %d; %d missed", c.filter, got, c.want, some.Missed())
		}
		all.Close()
		some.Close()
	}
	if s.watches.Load() != nil {
		t.Error("somebody still watches")
	}
}

// Who does not read keeps nobody waiting.
func TestWatchMisses(t *testing.T) {
	s := start(t, Config{})
	w := s.Watch(Filter{})
	for range watched + 10 {
		askServer(t, s, "udp", asking(t, "one.jiji. IN A"))
	}
	waitFor(t, "what does not fit to be missed", func() bool { return w.Missed() == 10 })
	w.Close()
	w.Close()
	if got := len(w.C); got != watched {
		t.Errorf("%d wait, want %d", got, watched)
	}
}

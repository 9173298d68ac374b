package forward

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

const (
	soaRecord = "example.com. 900 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60"
	ms        = time.Millisecond
)

// TestTimes follows one name through time: after each pause, the question is
// asked again.
func TestTimes(t *testing.T) {
	type visit struct {
		pause time.Duration
		want  string // what is told
		asked string // of whom, since the one before
	}
	const by, cached = " 192.0.2.1", " 192.0.2.1 cached"
	for _, c := range []struct {
		name     string
		question string // zero: example.com. IN A
		rcode    int
		records  []string
		visits   []visit
	}{
		{"counts down and ends", "", 0, []string{example}, []visit{
			{0, "NOERROR example.com. 300 IN A 198.51.100.1;" + by, "192.0.2.1@0s"},
			{10 * time.Second, "NOERROR example.com. 290 IN A 198.51.100.1;" + cached, ""},
			{290 * time.Second, "NOERROR example.com. 300 IN A 198.51.100.1;" + by, "192.0.2.1@5m0s"},
		}},
		{"the least TTL counts", "", 0, []string{"example.com. 300 IN CNAME x.example.com.", "x.example.com. 20 IN A 198.51.100.1"}, []visit{
			{0, "NOERROR example.com. 300 IN CNAME x.example.com.; x.example.com. 20 IN A 198.51.100.1;" + by, "192.0.2.1@0s"},
			{19 * time.Second, "NOERROR example.com. 281 IN CNAME x.example.com.; x.example.com. 1 IN A 198.51.100.1;" + cached, ""},
			{time.Second, "NOERROR example.com. 300 IN CNAME x.example.com.; x.example.com. 20 IN A 198.51.100.1;" + by, "192.0.2.1@20s"},
		}},
		{"an hour at most", "", 0, []string{"example.com. 4294967295 IN A 198.51.100.1"}, []visit{
			{0, "NOERROR example.com. 3600 IN A 198.51.100.1;" + by, "192.0.2.1@0s"},
			{3599 * time.Second, "NOERROR example.com. 1 IN A 198.51.100.1;" + cached, ""},
			{time.Second, "NOERROR example.com. 3600 IN A 198.51.100.1;" + by, "192.0.2.1@1h0m0s"},
		}},
		{"TTL 0 is for nobody else", "", 0, []string{"example.com. 0 IN A 198.51.100.1"}, []visit{
			{0, "NOERROR example.com. 0 IN A 198.51.100.1;" + by, "192.0.2.1@0s"},
			{0, "NOERROR example.com. 0 IN A 198.51.100.1;" + by, "192.0.2.1@0s"},
		}},
		{"NXDOMAIN, as the SOA says", "", dns.RcodeNameError, []string{soaRecord}, []visit{
			{0, "NXDOMAIN example.com. 60 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60;" + by, "192.0.2.1@0s"},
			{59 * time.Second, "NXDOMAIN example.com. 1 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60;" + cached, ""},
			{time.Second, "NXDOMAIN example.com. 60 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60;" + by, "192.0.2.1@1m0s"},
		}},
		{"NODATA, five minutes at most", "", 0, []string{"example.com. 9000 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 9000"}, []visit{
			{0, "NOERROR example.com. 300 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 9000;" + by, "192.0.2.1@0s"},
			{299 * time.Second, "NOERROR example.com. 1 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 9000;" + cached, ""},
			{time.Second, "NOERROR example.com. 300 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 9000;" + by, "192.0.2.1@5m0s"},
		}},
		{"NODATA behind an alias", "", 0, []string{"example.com. 30 IN CNAME x.example.com.", soaRecord}, []visit{
			{0, "NOERROR example.com. 30 IN CNAME x.example.com.; example.com. 60 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60;" + by, "192.0.2.1@0s"},
			{30 * time.Second, "NOERROR example.com. 30 IN CNAME x.example.com.; example.com. 60 IN SOA ns.example.com. root.example.com. 1 3600 600 86400 60;" + by, "192.0.2.1@30s"},
		}},
		{"NXDOMAIN without a SOA is not kept", "", dns.RcodeNameError, nil, []visit{
			{0, "NXDOMAIN" + by, "192.0.2.1@0s"},
			{0, "NXDOMAIN" + by, "192.0.2.1@0s"},
		}},
		{"an alias to nowhere is not kept", "", 0, []string{"example.com. 300 IN CNAME x.example.com."}, []visit{
			{0, "NOERROR example.com. 300 IN CNAME x.example.com.;" + by, "192.0.2.1@0s"},
			{0, "NOERROR example.com. 300 IN CNAME x.example.com.;" + by, "192.0.2.1@0s"},
		}},
		{"the alias itself is", "example.com. IN CNAME", 0, []string{"example.com. 300 IN CNAME x.example.com."}, []visit{
			{0, "NOERROR example.com. 300 IN CNAME x.example.com.;" + by, "192.0.2.1@0s"},
			{0, "NOERROR example.com. 300 IN CNAME x.example.com.;" + cached, ""},
		}},
		{"a failure for a second", "", dns.RcodeServerFailure, nil, []visit{
			{0, "SERVFAIL" + by, "192.0.2.1@0s"},
			{999 * ms, "SERVFAIL" + cached, ""},
			{ms, "SERVFAIL" + by, "192.0.2.1@1s"},
		}},
		{"an rcode that only EDNS can carry", "", dns.RcodeBadVers, nil, []visit{{0, "SERVFAIL" + by, "192.0.2.1@0s"}}},
		{"the case of the question", "eXample.coM. IN A", 0, []string{example}, []visit{
			{0, "NOERROR eXample.coM. 300 IN A 198.51.100.1;" + by, "192.0.2.1@0s"},
			{time.Second, "NOERROR eXample.coM. 299 IN A 198.51.100.1;" + cached, ""},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{}
				n.set(up1, says(0, c.rcode, c.records...))
				f := newForwarder(t, n, up1)
				if c.question == "" {
					c.question = "example.com. IN A"
				}
				for _, v := range c.visits {
					time.Sleep(v.pause)
					if got := told(f.Forward(t.Context(), question(t, c.question), client)); got != v.want {
						t.Errorf("at %v: got %s\nwant %s", time.Since(n.start), got, v.want)
					}
					if a := n.taken(); a != v.asked {
						t.Errorf("at %v: asked %q, want %q", time.Since(n.start), a, v.asked)
					}
				}
			})
		})
	}
}

// TestStale: what is past its time is told after 1.8 s, at once if it is known
// that nobody answers, and asked for again every 30 s.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(0, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1)
		expect := func(want string, after time.Duration) {
			t.Helper()
			r := question(t, "Example.com. IN A")
			r.SetEdns0(1232, false)
			start := time.Now()
			reply := f.Forward(t.Context(), r, client)
			if got := told(reply); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if d := time.Since(start); d != after {
				t.Errorf("after %v, want %v", d, after)
			}
			if reply.Stale {
				if o := reply.Msg.IsEdns0().Option; len(o) != 1 || o[0].(*dns.EDNS0_EDE).InfoCode != dns.ExtendedErrorCodeStaleAnswer {
					t.Errorf("extended error %v", o)
				}
				if reply.Err == nil {
					t.Error("no reason")
				}
			}
		}
		const fresh, stale = "NOERROR Example.com. 300 IN A 198.51.100.1; 192.0.2.1", "NOERROR Example.com. 30 IN A 198.51.100.1; 192.0.2.1 stale"
		expect(fresh, 0)
		time.Sleep(time.Hour)
		n.set(up1, server{}) // silent
		expect(stale, staleAfter)
		n.taken()
		time.Sleep(10 * time.Second) // the question has failed by now
		expect(stale, 0)
		if a := n.taken(); a != "" {
			t.Errorf("asked again within 30 s: %s", a)
		}
		for range 3 { // until it is known to be down
			time.Sleep(35 * time.Second)
			f.Forward(t.Context(), question(t, "Example.com. IN A"), client)
		}
		if !f.Stats().Upstreams[0].Down {
			t.Errorf("upstreams %+v", f.Stats().Upstreams)
		}
		time.Sleep(35 * time.Second)
		n.taken()
		expect(stale, 0)
		synctest.Wait()
		if a := n.taken(); a == "" {
			t.Error("nobody was asked")
		}
		time.Sleep(35 * time.Second)
		n.set(up1, says(0, dns.RcodeServerFailure)) // answers, with nothing of use
		expect(stale, 0)                            // still known to be down
		time.Sleep(35 * time.Second)
		expect(stale, 0)
		n.set(up1, says(0, dns.RcodeNameError, soaRecord)) // the name is gone
		time.Sleep(35 * time.Second)
		expect("NXDOMAIN Example.com. 60 IN SOA ns.Example.com. root.Example.com. 1 3600 600 86400 60; 192.0.2.1", 0)
	})
}

func TestStaleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(0, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1)
		f.Forward(t.Context(), question(t, "example.com. IN A"), client)
		n.set(up1, server{err: syscall.ENETUNREACH})
		time.Sleep(300*time.Second + maxStale - time.Second)
		if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); !r.Stale {
			t.Errorf("a second before the end: %s", told(r))
		}
		time.Sleep(time.Second)
		if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); r.Msg.Rcode != dns.RcodeServerFailure || f.Stats().Entries != 1 {
			t.Errorf("a day later: %s, %+v", told(r), f.Stats())
		}
	})
}

// TestPrefetch: a hot name is asked for before its time is over, and nobody waits.
func TestPrefetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(50*ms, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1)
		f.Forward(t.Context(), question(t, "example.com. IN A"), client)
		for i := range 300 { // for 50 minutes
			time.Sleep(10 * time.Second)
			start := time.Now()
			if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); !r.Cached || r.Stale || time.Since(start) > 0 {
				t.Fatalf("question %d: %s after %v", i, told(r), time.Since(start))
			}
		}
		if s := f.Stats(); s.Prefetched != 10 || s.Hits != 300 || s.Answered != 1 {
			t.Errorf("stats %+v", s)
		}
		for range 2 { // one that is asked for seldom
			f.Forward(t.Context(), question(t, "seldom.example.com. IN A"), client)
			time.Sleep(281 * time.Second)
		}
		if s := f.Stats(); s.Prefetched != 10 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestPrefetchIsModest: it takes no place that clients need, and does not go on
// when it fails.
func TestPrefetchIsModest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{quiet: true}
		n.set(up1, says(0, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1)
		hot := func() {
			for range 10 {
				f.Forward(t.Context(), question(t, "example.com. IN A"), client)
				time.Sleep(10 * ms)
			}
		}
		hot()
		n.set(up1, server{})
		time.Sleep(280 * time.Second)
		for i := range maxFlights / 2 {
			_, wait := f.Begin(question(t, fmt.Sprintf("n%d.example. IN A", i)), netip.AddrFrom4([4]byte{10, 210, byte(i), 2}))
			go wait(t.Context())
		}
		if hot(); f.Stats().Prefetched != 0 {
			t.Errorf("%d while there is much to do", f.Stats().Prefetched)
		}
		time.Sleep(5 * time.Second)
		n.set(up1, server{err: syscall.ECONNREFUSED})
		if hot(); f.Stats().Prefetched != 1 {
			t.Errorf("%d while they fail", f.Stats().Prefetched)
		}
	})
}

// TestSingleFlight: many ask the same, upstreams are asked once.
func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(50*ms, dns.RcodeSuccess, "example.com. 0 IN A 198.51.100.1"))
		f := newForwarder(t, n, up1)
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				r := question(t, "example.com. IN A")
				if i%2 == 0 {
					r = question(t, "EXAMPLE.com. IN A")
				}
				reply := f.Forward(t.Context(), r, netip.AddrFrom4([4]byte{10, 210, byte(i % 10), 2}))
				if m := reply.Msg; m.Id != r.Id || m.Question[0] != r.Question[0] || len(m.Answer) != 1 || m.Answer[0].Header().Name != r.Question[0].Name {
					t.Errorf("%v", m)
				}
			})
		}
		wg.Wait()
		if a := n.taken(); a != "192.0.2.1@0s" {
			t.Errorf("asked %s", a)
		}
		if s := f.Stats(); s.Answered != 500 || s.Joined != 499 {
			t.Errorf("stats %+v", s)
		}
		expectIdle(t, f)
	})
}

// expectIdle waits for what goes on in the background, and sees that nothing
// is counted any more.
func expectIdle(t *testing.T, f *Forwarder) {
	t.Helper()
	time.Sleep(flightTimeout + silence)
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting != 0 || len(f.clients) != 0 || len(f.flights) != 0 || len(f.marks) != 0 || f.lingering.Load() != 0 {
		t.Errorf("left: %d waiting, clients %v, %d flights, %d marks, %d lingering", f.waiting, f.clients, len(f.flights), len(f.marks), f.lingering.Load())
	}
}

// TestBits: answers are kept by RD, CD and DO, and what of EDNS is from hop to
// hop stays behind.
func TestBits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		var sent *dns.Msg
		n.set(up1, server{udp: func(q *dns.Msg) (time.Duration, *dns.Msg) {
			sent = q
			_, m := says(0, 0, example, "example.com. 300 IN NS ns.example.com.").udp(q)
			m.Authoritative, m.AuthenticatedData = true, true
			m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "example.com.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 300}, Ns: "ns.example.com."}}
			m.Answer = m.Answer[:1]
			m.Extra = append(m.Extra, &dns.A{Hdr: dns.RR_Header{Name: "ns.example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: []byte{198, 51, 100, 2}})
			return 0, m
		}})
		f := newForwarder(t, n, up1)
		for _, c := range []struct {
			name           string
			edns           uint16
			do, ad, cd, rd bool
			new            bool // an upstream is asked
			wantAD         bool
			wantNs         int
		}{
			{"no EDNS", 0, false, false, false, true, true, false, 0},
			{"EDNS without DO is the same", 4096, false, false, false, true, false, false, 0},
			{"AD says that AD is understood", 0, false, true, false, true, false, true, 0},
			{"DO", 4096, true, false, false, true, true, true, 1},
			{"DO again", 1232, true, false, false, true, false, true, 1},
			{"CD", 0, false, false, true, true, true, false, 0},
			{"CD and DO", 1232, true, false, true, true, true, true, 1},
			{"no recursion", 0, false, false, false, false, true, false, 0},
		} {
			r := question(t, "example.com. IN A")
			r.RecursionDesired, r.CheckingDisabled, r.AuthenticatedData = c.rd, c.cd, c.ad
			if c.edns > 0 {
				r.SetEdns0(c.edns, c.do)
				r.IsEdns0().Option = []dns.EDNS0{
					&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{203, 0, 113, 0}},
					&dns.EDNS0_LOCAL{Code: 65001},
				}
			}
			sent = nil
			m := f.Forward(t.Context(), r, client).Msg
			if (sent != nil) != c.new {
				t.Errorf("%s: sent %v", c.name, sent)
			}
			if sent != nil {
				o := sent.IsEdns0()
				if sent.RecursionDesired != c.rd || sent.CheckingDisabled != c.cd || o == nil || o.Do() != c.do || o.UDPSize() != 1232 || len(o.Option) != 1 || len(marksOf(sent)) != 1 {
					t.Errorf("%s: sent %v", c.name, sent)
				}
			}
			o := m.IsEdns0()
			if m.Id != r.Id || m.Authoritative || !m.RecursionAvailable || m.RecursionDesired != c.rd || m.CheckingDisabled != c.cd || m.AuthenticatedData != c.wantAD ||
				len(m.Answer) != 1 || len(m.Ns) != c.wantNs || (o != nil) != (c.edns > 0) || o != nil && (o.Do() != c.do || len(o.Option) > 0 || o.UDPSize() != 1232) {
				t.Errorf("%s: told %v", c.name, m)
			}
		}
		n.set(up1, server{err: syscall.ECONNREFUSED})
		time.Sleep(301 * time.Second)
		r := question(t, "example.com. IN A")
		r.SetEdns0(1232, true)
		if m := f.Forward(t.Context(), r, client); !m.Stale || m.Msg.AuthenticatedData {
			t.Errorf("past its time: %v", m.Msg) // so may be its signatures
		}
	})
}

// TestClientLimit: one client that asks much keeps its own questions waiting,
// not those of others; what is in the cache it gets all the same.
func TestClientLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{quiet: true}
		n.set(up1, says(0, dns.RcodeSuccess, example))
		f := newForwarder(t, n, up1)
		f.Forward(t.Context(), question(t, "example.com. IN A"), client)
		n.set(up1, server{})
		var wg sync.WaitGroup
		ask := func(name string, client netip.Addr) (reply Reply, waits bool) {
			reply, wait := f.Begin(question(t, name), client)
			if wait != nil {
				wg.Go(func() { wait(t.Context()) })
			}
			return reply, wait != nil
		}
		neighbour := netip.MustParseAddr("2001:db8::1")
		for i := range maxPerClient {
			if _, waits := ask(fmt.Sprintf("n%d.example. IN A", i), client); !waits {
				t.Fatalf("question %d was turned away", i)
			}
		}
		if r, waits := ask("more.example. IN A", netip.AddrFrom16(client.As16())); waits || !errors.Is(r.Err, errClient) || r.Msg.Rcode != dns.RcodeServerFailure {
			t.Errorf("one too many: %+v", r)
		}
		if _, waits := ask("n1.example. IN A", client); waits {
			t.Error("one too many that another one has asked")
		}
		if r, _ := ask("example.com. IN A", client); !r.Cached {
			t.Errorf("in the cache: %+v", r)
		}
		for i := range maxPerClient { // they join: each counts for who waits
			if _, waits := ask(fmt.Sprintf("n%d.example. IN A", i), neighbour); !waits {
				t.Fatalf("another's question %d was turned away", i)
			}
		}
		if r, waits := ask("more.example. IN A", netip.MustParseAddr("2001:db8::2:0:0:1")); waits || r.Err != errClient {
			t.Errorf("of the same network: %+v", r)
		}
		time.Sleep(patience + ms) // clients have gone; what they asked goes on
		wg.Wait()
		if _, waits := ask("more.example. IN A", client); waits {
			t.Error("a client that does not wait for its questions has no limit")
		}
		if _, waits := ask("more.example. IN A", neighbour); !waits {
			t.Error("a client that only joined is charged on")
		}
		wg.Wait()
		expectIdle(t, f)
		if s := f.Stats(); s.Busy != 4 || s.Failed != 2*maxPerClient+1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestLimits: no more questions wait, and no more are asked, than may.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{quiet: true}
		f := newForwarder(t, n, up1, up2, up3, up4)
		var wg sync.WaitGroup
		busy := 0
		ask := func(i int, name string) {
			r, wait := f.Begin(question(t, name), netip.AddrFrom4([4]byte{10, 210, byte(i % 250), 2}))
			if wait != nil {
				wg.Go(func() { wait(t.Context()) })
			} else if r.Err == errBusy {
				busy++
			}
		}
		for i := range maxFlights + 100 {
			ask(i, fmt.Sprintf("n%d.example. IN A", i))
		}
		if busy != 100 {
			t.Errorf("%d turned away with %d questions, want 100", busy, maxFlights+100)
		}
		for i := range maxWaiting {
			ask(i, fmt.Sprintf("n%d.example. IN A", i%maxFlights))
		}
		if want := 100 + maxWaiting - (maxWaiting - maxFlights); busy != want {
			t.Errorf("%d turned away in all, want %d", busy, want)
		}
		time.Sleep(time.Second)
		n.mu.Lock()
		if n.most > maxFlights*maxUpstreams {
			t.Errorf("%d sockets", n.most)
		}
		n.mu.Unlock()
		wg.Wait()
		expectIdle(t, f)
	})
}

func TestCloseEndsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		f := newForwarder(t, n, up1, up2)
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); r.Msg.Rcode != dns.RcodeServerFailure {
				t.Errorf("%v", told(r))
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 100*ms)
		defer cancel()
		if r := f.Forward(ctx, question(t, "example.com. IN A"), client); !errors.Is(r.Err, context.DeadlineExceeded) || time.Since(start) != 100*ms {
			t.Errorf("the client goes: %v after %v", r.Err, time.Since(start))
		}
		f.Close()
		wg.Wait()
		if time.Since(start) != 100*ms {
			t.Errorf("ended after %v", time.Since(start))
		}
		if r := f.Forward(t.Context(), question(t, "example.com. IN A"), client); r.Err != errClosed {
			t.Errorf("after Close: %v", r.Err)
		}
	})
}

// TestUpstreamsChange: what others said is asked for again, and told only
// while the new ones do not answer.
func TestUpstreamsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		n.set(up1, says(0, dns.RcodeSuccess, example))
		f := newForwarder(t, n)
		ups := []netip.AddrPort{up1}
		f.cfg.Upstreams = func() []netip.AddrPort { return ups }
		expect := func(want string) {
			t.Helper()
			if got := told(f.Forward(t.Context(), question(t, "example.com. IN A"), client)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		expect("NOERROR example.com. 300 IN A 198.51.100.1; 192.0.2.1")
		ups = nil
		expect("NOERROR example.com. 30 IN A 198.51.100.1; 192.0.2.1 stale")
		n.set(up2, says(0, dns.RcodeServerFailure))
		ups = []netip.AddrPort{up2}
		expect("NOERROR example.com. 30 IN A 198.51.100.1; 192.0.2.1 stale")
		n.set(up3, says(500*ms, dns.RcodeSuccess, "example.com. 300 IN A 198.51.100.3"))
		ups = []netip.AddrPort{up3, up2}
		r, wait := f.Begin(question(t, "example.com. IN A"), client)
		if wait == nil {
			t.Fatalf("not asked again: %s", told(r))
		}
		ups = []netip.AddrPort{up2, up3} // while it is being asked
		f.Forward(t.Context(), question(t, "other.example. IN A"), client)
		if got := told(wait(t.Context())); got != "NOERROR example.com. 300 IN A 198.51.100.3; 192.0.2.3" {
			t.Errorf("got %s", got)
		}
		expect("NOERROR example.com. 300 IN A 198.51.100.3; 192.0.2.3")
		expect("NOERROR example.com. 300 IN A 198.51.100.3; 192.0.2.3 cached")
		_, slow := f.Begin(question(t, "slow.example. IN A"), client)
		synctest.Wait()
		n.set(up4, says(0, dns.RcodeSuccess, "slow.example. 300 IN A 198.51.100.4"))
		ups = []netip.AddrPort{up4} // who asks now does not wait for the others
		if got := told(f.Forward(t.Context(), question(t, "slow.example. IN A"), client)); got != "NOERROR slow.example. 300 IN A 198.51.100.4; 192.0.2.4" {
			t.Errorf("got %s", got)
		}
		slow(t.Context())
	})
}

// TestOwnAddresses are never asked, and what is not in use is forgotten.
func TestOwnAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		f := newForwarder(t, n)
		ups := []netip.AddrPort{up1, up2, up3}
		f.cfg.Upstreams = func() []netip.AddrPort { return ups }
		f.cfg.Own = func(a netip.AddrPort) bool { return a == up1 }
		n.set(up3, says(0, dns.RcodeSuccess, example))
		f.Forward(t.Context(), question(t, "a.example. IN A"), client)
		if a := n.taken(); a != "192.0.2.2@0s 192.0.2.3@250ms" {
			t.Errorf("asked %s", a)
		}
		ups = []netip.AddrPort{up4}
		f.Forward(t.Context(), question(t, "b.example. IN A"), client)
		time.Sleep(5 * time.Second) // the silent one is still being asked
		f.mu.Lock()
		defer f.mu.Unlock()
		for u := range f.health {
			if u != up4 {
				t.Errorf("%v is remembered", u)
			}
		}
	})
}

func TestPrivateReverseZones(t *testing.T) {
	f := New(Config{Upstreams: func() []netip.AddrPort { t.Error("an upstream is asked"); return nil }})
	defer f.Close()
	const soaText = " 10800 IN SOA 10.in-addr.arpa. nobody.invalid. 1 3600 1200 604800 10800;"
	for _, c := range []struct{ question, want string }{
		{"4.3.2.10.in-addr.arpa. IN PTR", "NXDOMAIN 10.in-addr.arpa." + soaText},
		{"4.3.2.10.IN-ADDR.arpa. IN PTR", "NXDOMAIN 10.IN-ADDR.arpa." + soaText},
		{"10.in-addr.arpa. IN SOA", "NOERROR 10.in-addr.arpa." + soaText},
		{"10.in-addr.arpa. IN NS", "NOERROR 10.in-addr.arpa. 10800 IN NS 10.in-addr.arpa.;"},
		{"10.in-addr.arpa. IN PTR", "NOERROR 10.in-addr.arpa." + soaText},
	} {
		r := f.Forward(t.Context(), question(t, c.question), client)
		if got := told(r); got != c.want || !r.Msg.Authoritative || r.Err != nil {
			t.Errorf("%s: %s (%v), want %s", c.question, got, r.Err, c.want)
		}
	}
	for name, private := range map[string]bool{
		"1.168.192.in-addr.arpa.": true, "1.169.192.in-addr.arpa.": false,
		"1.15.172.in-addr.arpa.": false, "1.16.172.in-addr.arpa.": true, "1.31.172.in-addr.arpa.": true, "1.32.172.in-addr.arpa.": false,
		"1.63.100.in-addr.arpa.": false, "1.64.100.in-addr.arpa.": true, "1.127.100.in-addr.arpa.": true, "1.128.100.in-addr.arpa.": false,
		"1.0.0.127.in-addr.arpa.": true, "3.254.169.in-addr.arpa.": true, "8.8.8.8.in-addr.arpa.": false,
		"255.255.255.255.in-addr.arpa.": true, "254.255.255.255.in-addr.arpa.": false,
		"1.0.0.d.f.ip6.arpa.": true, "1.0.0.c.f.ip6.arpa.": false, "f.b.e.f.ip6.arpa.": true, "f.f.e.f.ip6.arpa.": false,
		"1." + strings.Repeat("0.", 31) + "ip6.arpa.": true, "2." + strings.Repeat("0.", 31) + "ip6.arpa.": false,
		"8.b.d.0.1.0.0.2.ip6.arpa.": true, "9.b.d.0.1.0.0.2.ip6.arpa.": false,
		"in-addr.arpa.": false, "x10.in-addr.arpa.": false, "10.in-addr.arpa.example.": false, "arpa.": false, ".": false, `1\.10.in-addr.arpa.`: false,
	} {
		if got := local(question(t, name+" IN PTR")) != nil; got != private {
			t.Errorf("%s: answered here %t, want %t", name, got, private)
		}
	}
}

// TestCacheIsBounded: in bytes, those used last stay, and an entry takes about
// what it is counted for.
func TestCacheIsBounded(t *testing.T) {
	now := time.Now()
	c := New(Config{}).cache
	fill := func(i int, records int) key {
		k := key{name: fmt.Sprintf("name-%d.example.com.", i), qtype: dns.TypeTXT}
		m := new(dns.Msg)
		for range records {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: k.name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 300}, Txt: []string{strings.Repeat("x", 200)}})
		}
		a, err := newAnswer(k, m, up1, now)
		if err != nil {
			t.Fatal(err)
		}
		c.put(k, a)
		return k
	}
	first := fill(0, 1)
	for i := 1; i < 50_000; i++ {
		fill(i, i%4)
		if c.get(first, now) == nil {
			t.Fatalf("entry in use is gone after %d others", i)
		}
		if c.bytes > cacheSize {
			t.Fatalf("%d bytes", c.bytes)
		}
	}
	sum := 0
	for at := c.order.Front(); at != nil; at = at.Next() {
		sum += at.Value.(*entry).size()
	}
	if sum != c.bytes || c.order.Len() != len(c.entries) || c.bytes < cacheSize*9/10 {
		t.Errorf("%d bytes counted, %d there; %d and %d entries", c.bytes, sum, c.order.Len(), len(c.entries))
	}
	if k := fill(99_999, 290); c.get(k, now) == nil {
		t.Error("64 KiB, which is the most of an answer, are not kept")
	}
}

// FuzzLocal: whatever the name, the answer is about it.
func FuzzLocal(f *testing.F) {
	for _, s := range []string{"4.3.2.10.in-addr.arpa.", "d.f.ip6.arpa.", `a\.10.in-addr.arpa.`, "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		b := make([]byte, 255)
		n, err := dns.PackDomainName(dns.Fqdn(name), b, 0, nil, false)
		if err != nil {
			return
		}
		name, _, err = dns.UnpackDomainName(b[:n], 0) // as from a client
		if err != nil {
			return
		}
		m := local(new(dns.Msg).SetQuestion(name, dns.TypePTR))
		if m == nil {
			return
		}
		if _, err := m.Pack(); err != nil || len(m.Ns) != 1 || !dns.IsSubDomain(m.Ns[0].Header().Name, name) {
			t.Fatalf("%v: %v", m, err)
		}
	})
}

// TestOwnQuestions: by a mark, by the case of a name that is long enough, or by
// the nodes that it went through.
func TestOwnQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		queries := make(chan *dns.Msg, 100)
		n.set(up1, server{udp: func(q *dns.Msg) (time.Duration, *dns.Msg) {
			queries <- q
			return 0, nil
		}})
		f := newForwarder(t, n, up1)
		var wg sync.WaitGroup
		ask := func(r *dns.Msg) error {
			reply, wait := f.Begin(r, client)
			if wait != nil {
				wg.Go(func() { wait(t.Context()) })
				synctest.Wait()
			}
			return reply.Err
		}
		marked := func(name string, marks ...mark) *dns.Msg {
			r := question(t, name)
			r.SetEdns0(1232, false)
			r.IsEdns0().Option = []dns.EDNS0{option(marks)}
			return r
		}
		if err := errors.Join(ask(question(t, "example.com. IN A")), ask(question(t, "t.co. IN A"))); err != nil {
			t.Fatal(err)
		}
		first, second := <-queries, <-queries
		own, spelled, short := marksOf(first)[0], first.Question[0].Name, second.Question[0].Name
		for _, c := range []struct {
			name string
			r    *dns.Msg
			loop bool
		}{
			{"a client's", question(t, "example.com. IN A"), false},
			{"in our spelling", question(t, spelled+" IN A"), true},
			{"in our spelling, of another type", question(t, spelled+" IN AAAA"), false},
			{"a short name, which may be chance", question(t, short+" IN A"), false},
			{"with our mark", marked("example.com. IN A", 1, own, 2), true},
			{"for something else with our mark", marked("example.org. IN A", own), true},
			{"of another node", marked("example.com. IN A", own+1), false},
			{"of another node that happens to spell it so", marked(spelled+" IN A", own+1), false},
			{"through many nodes", marked("example.com. IN A", 1, 2, 3, 4, 5, 6, 7), false},
			{"through too many", marked("example.com. IN A", 1, 2, 3, 4, 5, 6, 7, 8), true},
		} {
			if err := ask(c.r); (err == errLoop) != c.loop {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		through := 0
		for range len(queries) {
			through = max(through, len(marksOf(<-queries)))
		}
		if through != maxMarks {
			t.Errorf("%d marks at most, want %d", through, maxMarks)
		}
		wg.Wait()
		expectIdle(t, f)
		if err := ask(marked("example.com. IN A", own)); err == errLoop {
			t.Error("a mark counts after its question has ended")
		}
		wg.Wait()
	})
}

func TestMarkedUpstreams(t *testing.T) {
	f := New(Config{Mesh: []netip.Prefix{netip.MustParsePrefix("44.0.0.0/16")}})
	var got []string
	for _, a := range []string{"10.210.1.1", "127.0.0.1", "::1", "192.168.1.1", "fd00::1", "fe80::1%eth0", "100.64.0.1", "44.0.1.1", "::ffff:10.0.0.1",
		"1.1.1.1", "44.1.0.1", "2606:4700::1", "100.128.0.1"} {
		if f.marked(netip.MustParseAddr(a)) {
			got = append(got, a)
		}
	}
	if want := []string{"10.210.1.1", "127.0.0.1", "::1", "192.168.1.1", "fd00::1", "fe80::1%eth0", "100.64.0.1", "44.0.1.1", "::ffff:10.0.0.1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// BenchmarkCached is what a name that is in the cache costs.
func BenchmarkCached(b *testing.B) {
	f := New(Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up1} }, Own: func(netip.AddrPort) bool { return false }})
	defer f.Close()
	r := question(b, "www.example.com. IN A")
	_, m := says(0, dns.RcodeSuccess, "www.example.com. 3600 IN CNAME web.example.com.", "web.example.com. 3600 IN A 198.51.100.1").udp(r)
	a, err := newAnswer(keyOf(r), m, up1, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	f.use([]netip.AddrPort{up1})
	f.cache.put(keyOf(r), a)
	b.ReportAllocs()
	for b.Loop() {
		if reply, _ := f.Begin(r, client); len(reply.Msg.Answer) != 2 {
			b.Fatal(reply)
		}
	}
}

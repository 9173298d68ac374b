package forward

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// TestDNSShow4AnHour has two upstreams go through all faults for an hour of
// virtual time, with 15 questions a second: each is answered in 2 s, names that
// were known with what was known, and at no time is more in use than in the
// first minutes.
func TestDNSShow4AnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		change := func(s server, change func(m *dns.Msg)) server {
			return server{udp: func(q *dns.Msg) (time.Duration, *dns.Msg) {
				after, m := s.udp(q)
				change(m)
				return after, m
			}}
		}
		fine := func(after time.Duration) server {
			return server{udp: func(q *dns.Msg) (time.Duration, *dns.Msg) {
				name := q.Question[0].Name
				if strings.HasPrefix(strings.ToLower(name), "new") {
					_, m := says(0, dns.RcodeNameError, soaRecord).udp(q)
					return after, m
				}
				_, m := says(0, dns.RcodeSuccess, name+" 20 IN A 198.51.100.1").udp(q)
				return after, m
			}}
		}
		phases := []server{
			fine(20 * ms),
			{}, // silent
			{err: syscall.ECONNREFUSED},
			fine(900 * ms),
			fine(5 * time.Second), // too slow
			change(fine(0), func(m *dns.Msg) { m.Id++ }),
			change(fine(0), func(m *dns.Msg) { m.Question[0].Name = "evil.example." }),
			change(fine(0), func(m *dns.Msg) { m.Truncated = true }), // and no TCP
			says(0, dns.RcodeServerFailure),
			says(0, dns.RcodeRefused),
		}
		n := &network{quiet: true}
		f := newForwarder(t, n, up1, up2)
		f.cache.limit = 256 << 10 // full within minutes
		var mu sync.Mutex         // guards what follows
		slowest, unanswered := time.Duration(0), 0
		ask := func(name string, known bool) {
			start := time.Now()
			r := f.Forward(t.Context(), new(dns.Msg).SetQuestion(name, dns.TypeA), netip.AddrFrom4([4]byte{10, 210, 0, byte(rand.IntN(20))}))
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, time.Since(start))
			if known && len(r.Msg.Answer) == 0 {
				unanswered++
			}
		}
		known := func(i int) string { return fmt.Sprintf("known%d.example.com.", i%10) }
		n.set(up1, phases[0])
		n.set(up2, phases[0])
		for i := range 10 {
			ask(known(i), true)
		}
		type use struct {
			goroutines, sockets int
			heap                uint64
		}
		measure := func() use {
			n.mu.Lock()
			defer n.mu.Unlock()
			u := use{goroutines: runtime.NumGoroutine(), sockets: n.open}
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			u.heap = m.HeapAlloc
			return u
		}
		var first, later use // the most of 20 minutes, which see all faults, and of the rest
		more := func(a, b use) use {
			return use{max(a.goroutines, b.goroutines), max(a.sockets, b.sockets), max(a.heap, b.heap)}
		}
		questions := 0
		for minute := range 60 {
			n.set(up1, phases[minute%len(phases)])
			n.set(up2, phases[minute/2%len(phases)])
			for second := range 60 {
				for i := range 15 {
					questions++
					if i%3 == 0 {
						go ask(fmt.Sprintf("new%d.example.com.", questions), false)
					} else {
						go ask(known(questions), true)
					}
					time.Sleep(time.Second / 15)
				}
				if second%20 == 19 {
					if u := measure(); minute < 20 {
						first = more(first, u)
					} else {
						later = more(later, u)
					}
				}
			}
		}
		expectIdle(t, f)
		s := f.Stats()
		t.Logf("%d questions, slowest %v; %d goroutines, %d sockets, %d KiB of heap at most in the first 20 minutes, %d, %d, %d after them; stats %+v",
			questions, slowest, first.goroutines, first.sockets, first.heap>>10, later.goroutines, later.sockets, later.heap>>10, s)
		if slowest > patience {
			t.Errorf("an answer took %v", slowest)
		}
		if unanswered > 0 {
			t.Errorf("%d questions for known names got no answer", unanswered)
		}
		if s.Bytes > 256<<10 {
			t.Errorf("%d bytes in the cache", s.Bytes)
		}
		if sum := s.Hits + s.Stale + s.Answered + s.Failed + s.Busy + s.Loops + s.Local; sum != uint64(questions+10) {
			t.Errorf("%d of %d questions are counted", sum, questions+10)
		}
		if later.goroutines > first.goroutines*5/4 || later.sockets > first.sockets*5/4 || later.heap > first.heap+1<<20 {
			t.Errorf("%+v in use after 20 minutes, %+v before", later, first)
		}
	})
}

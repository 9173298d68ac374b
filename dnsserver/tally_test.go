package dnsserver

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/dnstest"
)

func TestAnswersAreCountedByKind(t *testing.T) {
	up := dnstest.NewUpstream(t, func(q *dns.Msg) [][]byte { return [][]byte{dnstest.Answer(t, q, 1, nil)} }, nil)
	s := start(t, Config{Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up.Addr} }})
	ask := func(network, question string, change func(*dns.Msg)) {
		t.Helper()
		q := asking(t, question)
		if change != nil {
			change(q)
		}
		askServer(t, s, network, q)
	}
	for range 3 {
		ask("udp", "one.jiji. IN A", nil)
	}
	ask("tcp", "one.jiji. IN A", nil)
	ask("udp", "nobody.jiji. IN AAAA", nil)
	ask("udp", "one.jiji. IN ANY", nil)
	ask("udp", "one.jiji. IN TYPE65400", nil)
	ask("udp", "example.com. IN A", nil)
	ask("udp", "one.jiji. IN A", func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify })
	ask("udp", "one.jiji. IN A", func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) })
	want := map[string]uint64{
		"mesh A NOERROR":      4,
		"mesh AAAA NXDOMAIN":  1,
		"mesh ANY REFUSED":    1,
		"mesh other NOERROR":  1,
		"mesh A NOTIMP":       1,
		"mesh A other":        1,
		"forwarded A NOERROR": 1,
	}
	got := map[string]uint64{}
	waitFor(t, "all to be counted", func() bool {
		clear(got)
		for _, a := range s.Answers() {
			got[fmt.Sprint(a.Source, " ", a.Type, " ", a.Rcode)] = a.Count
			if most := a.Within[leastTime<<(buckets-2)]; len(a.Within) != buckets-1 || most > a.Count || a.Sum <= 0 {
				t.Errorf("%+v", a)
			}
		}
		return reflect.DeepEqual(got, want) || s.Stats().Queries > 10
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

func TestCellBuckets(t *testing.T) {
	for took, bucket := range map[time.Duration]int{
		-1: 0, 0: 0, 1: 0, leastTime: 0, leastTime + 1: 1, 2 * leastTime: 1, 2*leastTime + 1: 2,
		leastTime << (buckets - 2): buckets - 2, leastTime<<(buckets-2) + 1: buckets - 1, time.Hour: buckets - 1,
	} {
		var c cell
		c.add(took)
		if c.took[bucket].Load() != 1 || c.count() != 1 {
			t.Errorf("%v is not in bucket %d", took, bucket)
		}
	}
}

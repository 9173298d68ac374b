package forward

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

const localTTL = 10800 // seconds: of RFC 6303, section 3

// localZones are the reverse trees of addresses that are nobody's on the
// internet. Questions for them are answered here, with what the empty zones of
// RFC 6303 say, and leave this host by no way.
var localZones = func() map[string]bool {
	zones := map[string]bool{
		"10.in-addr.arpa.":      true,
		"168.192.in-addr.arpa.": true,
		"0.in-addr.arpa.":       true, "127.in-addr.arpa.": true, "254.169.in-addr.arpa.": true,
		"2.0.192.in-addr.arpa.": true, "100.51.198.in-addr.arpa.": true, "113.0.203.in-addr.arpa.": true,
		"255.255.255.255.in-addr.arpa.":               true,
		strings.Repeat("0.", 32) + "ip6.arpa.":        true,
		"1." + strings.Repeat("0.", 31) + "ip6.arpa.": true,
		"d.f.ip6.arpa.":   true,
		"8.e.f.ip6.arpa.": true, "9.e.f.ip6.arpa.": true, "a.e.f.ip6.arpa.": true, "b.e.f.ip6.arpa.": true,
		"8.b.d.0.1.0.0.2.ip6.arpa.": true,
	}
	for i := 16; i < 32; i++ {
		zones[fmt.Sprintf("%d.172.in-addr.arpa.", i)] = true
	}
	for i := 64; i < 128; i++ { // RFC 7793
		zones[fmt.Sprintf("%d.100.in-addr.arpa.", i)] = true
	}
	return zones
}()

// local returns the answer to r if its name lies in one of localZones, else nil.
func local(r *dns.Msg) *dns.Msg {
	q := r.Question[0]
	name := dns.CanonicalName(q.Name)
	if !strings.HasSuffix(name, ".arpa.") {
		return nil
	}
	at, end := 0, false
	for !localZones[name[at:]] {
		if at, end = dns.NextLabel(name, at); end {
			return nil
		}
	}
	header := func(rrtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name[at:], Rrtype: rrtype, Class: dns.ClassINET, Ttl: localTTL}
	}
	soa := &dns.SOA{
		Hdr: header(dns.TypeSOA), Ns: name[at:], Mbox: "nobody.invalid.",
		Serial: 1, Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: localTTL,
	}
	m := Failure(r, dns.RcodeSuccess)
	m.Authoritative = true
	switch {
	case at > 0:
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{soa}
	case q.Qtype == dns.TypeSOA:
		m.Answer = []dns.RR{soa}
	case q.Qtype == dns.TypeNS:
		m.Answer = []dns.RR{&dns.NS{Hdr: header(dns.TypeNS), Ns: name}}
	default:
		m.Ns = []dns.RR{soa}
	}
	return m
}

package dnsserver

import (
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/forward"
)

// respond returns the whole reply to r, which client asked, as far as z and the
// rules give one; nil if the question is one to forward.
func respond(z *Zone, r *dns.Msg, client netip.Addr, tcp bool, spin uint32) []byte {
	fail := func(rcode int) []byte { return pack(forward.Failure(r, rcode), r, tcp) }
	if r.Opcode != dns.OpcodeQuery {
		return fail(dns.RcodeNotImplemented)
	}
	if len(r.Question) != 1 || optCount(r) > 1 { // RFC 6891, section 6.1.1
		return fail(dns.RcodeFormatError)
	}
	if opt := r.IsEdns0(); opt != nil && opt.Version() != 0 {
		return fail(dns.RcodeBadVers)
	}
	if asked := r.Question[0]; asked.Qclass != dns.ClassINET || metaType(asked.Qtype) {
		return fail(dns.RcodeRefused)
	}
	var room [maxName]byte
	q, err := queryOf(r, tcp, &room)
	if err != nil {
		return fail(dns.RcodeServerFailure)
	}
	return z.reply(nil, &q, client, spin)
}

// reply appends the reply to q, which client asked, to b; it returns nil if
// the question is one to forward.
func (z *Zone) reply(b []byte, q *query, client netip.Addr, spin uint32) []byte {
	a := z.answer(question{q.name, q.qtype, client})
	if !a.ours {
		return nil
	}
	return z.appendReply(b, q, &a, spin)
}

func optCount(r *dns.Msg) int {
	n := 0
	for _, rr := range r.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

// limit returns how long an answer to r may be.
func limit(r *dns.Msg, tcp bool) int {
	if tcp {
		return dns.MaxMsgSize
	}
	opt := r.IsEdns0()
	if opt == nil {
		return udpLimit(false, 0)
	}
	return udpLimit(true, int(opt.UDPSize()))
}

// udpLimit returns how long a datagram may be for a client that says so with EDNS.
func udpLimit(edns bool, size int) int {
	if !edns {
		return dns.MinMsgSize
	}
	return min(max(size, dns.MinMsgSize), forward.EDNSSize)
}

// pack returns m, an answer to r, on the wire, made to fit as a reply is; nil
// if even SERVFAIL cannot be written.
func pack(m, r *dns.Msg, tcp bool) []byte {
	m.Compress = true
	b, err := m.Pack()
	if err == nil && len(b) > limit(r, tcp) {
		m.Truncate(limit(r, tcp))
		m.Compress = true
		b, err = m.Pack()
	}
	if err != nil { // a name or record of an upstream that cannot be written
		if b, err = forward.Failure(r, dns.RcodeServerFailure).Pack(); err != nil {
			return nil
		}
	}
	return b
}

// A Result is what a question is answered with, for people to read.
type Result struct {
	Ours          bool           // the zone answered, or refused to have it forwarded; else it goes to an upstream
	Authoritative bool           // AA
	Rcode         string         // "NOERROR", "NXDOMAIN", "SERVFAIL"; empty if there is no answer
	Records       []string       // zone-file text, in the order of the answer
	TTL           time.Duration  // of the records, the least; without records how long that may be believed, 0: not at all
	Upstream      netip.AddrPort // that answered; zero if none did
	Cached, Stale bool           // it did so earlier; and the time of its answer is over
	LeftOut       []LeftOut      // containers of the name that are not among Records
}

// Lookup returns what the zone answers to a question for name, which need not
// end in a dot. A Result that is not Ours is to be asked of an upstream.
func (z *Zone) Lookup(name string, qtype uint16) Result {
	r := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	b := respond(z, r, netip.Addr{}, true, 0)
	m := new(dns.Msg)
	if b == nil || m.Unpack(b) != nil {
		return Result{}
	}
	res := result(m)
	res.Ours = true
	var room [maxName]byte
	if q, err := queryOf(r, true, &room); err == nil {
		res.LeftOut = z.leftOut(q.name)
	}
	return res
}

// result returns what is of interest in m.
func result(m *dns.Msg) Result {
	r := Result{Authoritative: m.Authoritative, Rcode: dns.RcodeToString[m.Rcode]}
	least := uint32(0)
	for i, rr := range m.Answer {
		r.Records = append(r.Records, rr.String())
		if t := rr.Header().Ttl; i == 0 || t < least {
			least = t
		}
	}
	if len(m.Answer) == 0 {
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				least = min(soa.Hdr.Ttl, soa.Minttl)
			}
		}
	}
	r.TTL = time.Duration(least) * time.Second
	return r
}

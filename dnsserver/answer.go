package dnsserver

import (
	"github.com/miekg/dns"
)

// ednsSize is the UDP payload that we take and the most that we send: larger
// ones are fragmented on some paths (DNS flag day 2020).
const ednsSize = 1232

// respond returns the whole answer to query r as far as z and the rules give
// one; nil if the question is one to forward. It may be too long: see pack.
func respond(z *Zone, r *dns.Msg, spin uint32) *dns.Msg {
	if r.Opcode != dns.OpcodeQuery {
		return failure(r, dns.RcodeNotImplemented)
	}
	if len(r.Question) != 1 || optCount(r) > 1 { // RFC 6891, section 6.1.1
		return failure(r, dns.RcodeFormatError)
	}
	if opt := r.IsEdns0(); opt != nil && opt.Version() != 0 {
		return failure(r, dns.RcodeBadVers)
	}
	q := r.Question[0]
	if q.Qclass != dns.ClassINET || metaType(q.Qtype) {
		return failure(r, dns.RcodeRefused)
	}
	a := z.answer(q.Name, q.Qtype, spin)
	if !a.ours {
		return nil
	}
	m := failure(r, a.rcode)
	m.Authoritative = a.authoritative
	m.Answer = a.records
	if a.soa != nil {
		m.Ns = []dns.RR{a.soa}
	}
	return m
}

// failure returns an answer to r without records. It has an OPT record
// exactly if r has one (RFC 6891, section 7), with the DO bit of r (RFC 3225).
func failure(r *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg).SetReply(r)
	m.Rcode = rcode
	m.RecursionAvailable = true
	if opt := r.IsEdns0(); opt != nil {
		m.SetEdns0(ednsSize, opt.Do())
	}
	return m
}

// relay returns the answer to r that an upstream gave to the same question.
func relay(r, reply *dns.Msg) *dns.Msg {
	m := failure(r, reply.Rcode)
	m.Truncated = reply.Truncated
	m.AuthenticatedData = reply.AuthenticatedData
	m.Answer, m.Ns = reply.Answer, reply.Ns
	for _, rr := range reply.Extra {
		if t := rr.Header().Rrtype; t != dns.TypeOPT && t != dns.TypeTSIG {
			m.Extra = append(m.Extra, rr)
		}
	}
	return m
}

// metaType reports whether t is none of a record but asks for something else:
// ANY (RFC 8482 lets us refuse it), AXFR, IXFR and their like (RFC 6895, section 3.1).
func metaType(t uint16) bool {
	return t == dns.TypeOPT || t >= 128 && t <= 255
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
	if opt := r.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), dns.MinMsgSize), ednsSize)
	}
	return dns.MinMsgSize
}

// pack returns m on the wire, in at most size bytes. What does not fit is left
// out, the last first, and TC is set: resolvers that mind it ask again by TCP,
// and those that do not (musl before 1.2.4) get the nearest addresses.
func pack(m *dns.Msg, size int) ([]byte, error) {
	m.Compress = true
	b, err := m.Pack()
	if err != nil || len(b) <= size {
		return b, err
	}
	m.Truncate(size)
	m.Compress = true
	return m.Pack()
}

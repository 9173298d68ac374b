package dnsserver

import (
	"encoding/binary"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/forward"
)

const (
	ttl = 5 // seconds: of every record, and how long a negative answer may be kept (RFC 2308, section 5)

	headerSize = 12
	optSize    = 11 // of an OPT record without options
)

// A query is a message that asks one question of class IN, for records.
type query struct {
	id       uint16
	rd, cd   bool
	question []byte // as it came: name, type, class
	name     []byte // canonical
	qtype    uint16
	edns, do bool
	limit    int // bytes that the reply may have
}

// parseQuery reads a datagram that is no more than a query; nearly all are.
// Whatever else comes is not ok: the library looks at it. room is for the name.
func parseQuery(p []byte, room *[maxName]byte) (q query, ok bool) {
	const response, opcode = 0x80, 0x78
	if len(p) < headerSize+5 || p[2]&(response|opcode) != 0 {
		return q, false
	}
	counts := binary.BigEndian.Uint64(p[4:])
	if counts != 1<<48 && counts != 1<<48|1 { // one question, and one more record at most
		return q, false
	}
	name, n, ok := parseName(room[:0], p[headerSize:])
	end := headerSize + n + 4
	if !ok || len(p) < end {
		return q, false
	}
	q = query{id: binary.BigEndian.Uint16(p), rd: p[2]&1 != 0, cd: p[3]&0x10 != 0, question: p[headerSize:end], name: name}
	q.qtype = binary.BigEndian.Uint16(p[end-4:])
	if binary.BigEndian.Uint16(p[end-2:]) != dns.ClassINET || metaType(q.qtype) {
		return q, false
	}
	size := 0
	if byte(counts) == 1 {
		opt := p[end:]
		if len(opt) < optSize || opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != dns.TypeOPT || opt[6] != 0 { // another version
			return q, false
		}
		for options := opt[optSize:]; len(options) > 0; {
			if len(options) < 4 || len(options) < 4+int(binary.BigEndian.Uint16(options[2:])) {
				return q, false
			}
			options = options[4+int(binary.BigEndian.Uint16(options[2:])):]
		}
		q.edns, q.do, size = true, opt[7]&0x80 != 0, int(binary.BigEndian.Uint16(opt[3:]))
		end += optSize + int(binary.BigEndian.Uint16(opt[9:]))
	}
	q.limit = udpLimit(q.edns, size)
	return q, end == len(p)
}

// queryOf is parseQuery of a message that the library has read, and found to be one.
func queryOf(r *dns.Msg, tcp bool, room *[maxName]byte) (q query, err error) {
	q = query{id: r.Id, rd: r.RecursionDesired, cd: r.CheckingDisabled, qtype: r.Question[0].Qtype, limit: limit(r, tcp)}
	b := make([]byte, maxName+4)
	n, err := dns.PackDomainName(r.Question[0].Name, b, 0, nil, false)
	if err != nil {
		return q, err
	}
	q.name, _, _ = parseName(room[:0], b[:n])
	q.question = binary.BigEndian.AppendUint16(b[:n], q.qtype)
	q.question = binary.BigEndian.AppendUint16(q.question, dns.ClassINET)
	if opt := r.IsEdns0(); opt != nil {
		q.edns, q.do = true, opt.Do()
	}
	return q, nil
}

// parseName appends to b the canonical form of the name at the beginning of p,
// and returns how many bytes of p that is. Canonical: lower case, labels with dots
// between them and none at the end; a dot within a label is '\\', which no name
// of ours has. Where a label begins in it is where its length is in p. A name
// that is compressed, too long or cut short is not ok.
func parseName(b, p []byte) (name []byte, n int, ok bool) {
	for n < len(p) && n < maxName {
		size := int(p[n])
		n++
		if size == 0 {
			return b, n, true
		}
		if size > maxLabel || len(p) < n+size || n+size >= maxName {
			return b, n, false
		}
		if len(b) > 0 {
			b = append(b, '.')
		}
		for _, c := range p[n : n+size] {
			switch {
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			case c == '.':
				c = '\\'
			}
			b = append(b, c)
		}
		n += size
	}
	return b, n, false
}

// metaType reports whether t is none of a record but asks for something else:
// ANY (RFC 8482 lets us refuse it), AXFR, IXFR and their like (RFC 6895, section 3.1).
func metaType(t uint16) bool {
	return t == dns.TypeOPT || t >= 128 && t <= 255
}

// A reply is a message in the making. What does not fit is left out, the last
// first, and TC is set: resolvers that mind it ask again by TCP, and those that
// do not (musl before 1.2.4) get the nearest addresses.
type reply struct {
	b     []byte
	start int // of the message in b
	room  int // bytes that are left
}

// appendReply appends the reply to q that says a; spin decides which of equals
// comes first.
func (z *Zone) appendReply(b []byte, q *query, a *answer, spin uint32) []byte {
	r := reply{b: b, start: len(b), room: q.limit}
	flags := uint16(0x8080) | uint16(a.rcode) // QR, RA
	if a.authoritative {
		flags |= 0x0400
	}
	if q.rd {
		flags |= 0x0100
	}
	if q.cd {
		flags |= 0x0010
	}
	r.b = binary.BigEndian.AppendUint16(r.b, q.id)
	r.b = binary.BigEndian.AppendUint16(r.b, flags)
	r.b = binary.BigEndian.AppendUint64(r.b, 1<<48)
	r.b = append(r.b, q.question...)
	r.room -= len(r.b) - r.start
	if q.edns {
		r.room -= optSize
	}
	const answers, authority, additional = 6, 8, 10
	whole := true
	apex := pointer(headerSize + a.apex)
	rest := z.wire // of names below our own apex
	if string(q.name[min(a.apex, len(q.name)):]) == z.apex {
		rest = binary.BigEndian.AppendUint16(nil, apex)
	}
	own := pointer(headerSize)
	switch {
	case len(a.v4.ips) > 0:
		whole = r.addresses(a.v4, spin)
	case len(a.v6) > 0:
		for _, ip := range a.v6 {
			ip := ip.As16()
			whole = whole && r.record(answers, own, dns.TypeAAAA, ip[:])
		}
	case len(a.targets) > 0 && q.qtype == dns.TypePTR:
		for _, t := range a.targets {
			whole = whole && r.record(answers, own, dns.TypePTR, t.labels, z.wire)
		}
	case len(a.targets) > 0:
		whole = r.services(a.targets, z.wire, own)
	case a.ns:
		whole = r.record(answers, own, dns.TypeNS, z.soa, rest)
	case a.soa:
		whole = r.record(answers, own, dns.TypeSOA, z.soa, rest, []byte("\x0ahostmaster"), rest, z.times())
	case a.authoritative:
		whole = r.record(authority, apex, dns.TypeSOA, z.soa, rest, []byte("\x0ahostmaster"), rest, z.times())
	}
	if !whole {
		r.b[r.start+2] |= 0x02 // TC
	}
	if q.edns {
		do := uint16(0)
		if q.do {
			do = 0x8000
		}
		r.b = append(r.b, 0, 0, byte(dns.TypeOPT))
		r.b = binary.BigEndian.AppendUint16(r.b, forward.EDNSSize)
		r.b = binary.BigEndian.AppendUint16(r.b, 0) // extended rcode, version
		r.b = binary.BigEndian.AppendUint16(r.b, do)
		r.b = binary.BigEndian.AppendUint16(r.b, 0)
		r.count(additional)
	}
	return r.b
}

// times are the numbers of an SOA record.
func (z *Zone) times() []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 20), z.serial)
	for _, seconds := range [...]uint32{3600, 600, 86400, ttl} { // nobody transfers this zone
		b = binary.BigEndian.AppendUint32(b, seconds)
	}
	return b
}

// pointer returns a name of which the message has a copy there (RFC 1035, section 4.1.4).
func pointer(at int) uint16 { return 0xc000 | uint16(at) }

// count adds one to a count of the header.
func (r *reply) count(at int) {
	at += r.start
	binary.BigEndian.PutUint16(r.b[at:], binary.BigEndian.Uint16(r.b[at:])+1)
}

// record appends a record to the section whose count is there, and reports
// whether it fits.
func (r *reply) record(section int, owner, rrtype uint16, data ...[]byte) bool {
	size := 0
	for _, d := range data {
		size += len(d)
	}
	if r.room < headerSize+size { // a record's own header is as long
		return false
	}
	r.room -= headerSize + size
	r.b = binary.BigEndian.AppendUint16(r.b, owner)
	r.b = binary.BigEndian.AppendUint16(r.b, rrtype)
	r.b = binary.BigEndian.AppendUint16(r.b, dns.ClassINET)
	r.b = binary.BigEndian.AppendUint32(r.b, ttl)
	r.b = binary.BigEndian.AppendUint16(r.b, uint16(size))
	for _, d := range data {
		r.b = append(r.b, d...)
	}
	r.count(section)
	return true
}

// addresses appends A records, each run of equals rotated by spin. It reports
// whether all fit.
func (r *reply) addresses(s set, spin uint32) bool {
	const size = headerSize + 4
	want := min(len(s.ips), maxAddrs)
	n := min(want, max(0, r.room/size))
	r.room -= n * size
	binary.BigEndian.PutUint16(r.b[r.start+6:], uint16(n))
	from := 0
	for _, end := range s.runs {
		equals := s.ips[from:end]
		first := int(spin % uint32(len(equals)))
		for i := range equals {
			if n == 0 {
				return want == r.written()
			}
			if i += first; i >= len(equals) {
				i -= len(equals)
			}
			ip := &equals[i]
			r.b = append(r.b, 0xc0, headerSize, 0, byte(dns.TypeA), 0, dns.ClassINET, 0, 0, 0, ttl, 0, 4, ip[0], ip[1], ip[2], ip[3])
			n--
		}
		from = end
	}
	return want == r.written()
}

// written returns how many answers there are.
func (r *reply) written() int { return int(binary.BigEndian.Uint16(r.b[r.start+6:])) }

// services appends SRV records, whose targets are not compressed (RFC 2782), and
// the addresses of these as far as there is room.
func (r *reply) services(targets []target, apex []byte, owner uint16) bool {
	const answers, additional = 6, 10
	names := make([]int, 0, len(targets)) // where the targets are in the message
	for _, t := range targets {
		head := binary.BigEndian.AppendUint16(make([]byte, 0, 6), t.priority)
		head = binary.BigEndian.AppendUint16(head, 0)
		head = binary.BigEndian.AppendUint16(head, t.port)
		if !r.record(answers, owner, dns.TypeSRV, head, t.labels, apex) {
			return false
		}
		names = append(names, len(r.b)-r.start-len(t.labels)-len(apex))
	}
	for i, at := range names {
		if at >= 1<<14 || !r.record(additional, pointer(at), dns.TypeA, targets[i].ip[:]) {
			break
		}
	}
	return true
}

package forward

import (
	"container/list"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	maxTTL      = 3600 // seconds: whatever an upstream says
	maxNegative = 300  // of an answer that there is nothing (RFC 2308, section 5)
	staleTTL    = 30   // of an answer that is told past its time (RFC 8767, section 4)

	failureTTL = time.Second      // no question is asked again sooner after a failure (RFC 9520, section 3.2)
	recheck    = 30 * time.Second // the same, where there is a stale answer to tell (RFC 8767, section 5)
	maxStale   = 24 * time.Hour   // past its time; then an answer is of no use any more

	cacheSize = 8 << 20        // bytes
	maxEntry  = cacheSize / 64 // larger ones are not kept
	overhead  = 450            // bytes of an entry besides name and message, see TestCacheIsBounded
)

const (
	flagRD uint8 = 1 << iota
	flagCD
	flagDO
)

// A key is what answers depend on.
type key struct {
	name  string // canonical
	qtype uint16 // of class IN
	flags uint8
}

// keyOf returns the key of r, which has one question.
func keyOf(r *dns.Msg) key {
	k := key{name: dns.CanonicalName(r.Question[0].Name), qtype: r.Question[0].Qtype}
	if r.RecursionDesired {
		k.flags |= flagRD
	}
	if r.CheckingDisabled {
		k.flags |= flagCD
	}
	if opt := r.IsEdns0(); opt != nil && opt.Do() {
		k.flags |= flagDO
	}
	return k
}

// An answer is what an upstream said, to be told to whoever asks the same. It
// is immutable.
type answer struct {
	wire  []byte // a packed message without OPT; its question is in lower case
	rcode int
	none  bool           // there is no such record
	from  netip.AddrPort // the upstream
	at    time.Time      // when it said so: TTLs are counted from then
	ttl   time.Duration  // how long it may be told; 0: only to those who wait for it
	cause error          // why there is no upstream; nil: there is
}

// newAnswer returns the answer to k that upstream from gave at now with m,
// whose records it may change.
func newAnswer(k key, m *dns.Msg, from netip.AddrPort, now time.Time) (*answer, error) {
	keep := &dns.Msg{Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}}, Compress: true}
	keep.Response = true
	keep.AuthenticatedData = m.AuthenticatedData
	keep.Rcode = m.Rcode
	if keep.Rcode > 0xf {
		keep.Rcode = dns.RcodeServerFailure // it is about the EDNS of two others
	}
	a := &answer{rcode: keep.Rcode, from: from, at: now}
	if good(m.Rcode) {
		seconds, negative := lifetime(m, k.qtype)
		a.ttl, a.none = time.Duration(seconds)*time.Second, negative
		keep.Answer = m.Answer
		if negative || k.flags&flagDO != 0 { // else it is of use to nobody
			keep.Ns = m.Ns
		}
		limit := uint32(maxTTL)
		if negative {
			limit = maxNegative
		}
		for _, rr := range append(keep.Answer[:len(keep.Answer):len(keep.Answer)], keep.Ns...) {
			h := rr.Header()
			h.Ttl = min(h.Ttl, limit)
			if soa, ok := rr.(*dns.SOA); ok && negative {
				h.Ttl = min(h.Ttl, soa.Minttl)
			}
			if strings.EqualFold(h.Name, k.name) {
				h.Name = k.name
			}
		}
	}
	var err error
	if a.wire, err = keep.Pack(); err == nil {
		err = new(dns.Msg).Unpack(a.wire) // a record without data is packed to something else
	}
	if err != nil {
		return nil, fmt.Errorf("answer for %s: %w", k.name, err)
	}
	return a, nil
}

// failed returns what to tell about k for a moment after now, when upstreams
// said nothing of use: a, or nil and why.
func failed(k key, a *answer, cause error, now time.Time) (*answer, error) {
	if a == nil {
		m := new(dns.Msg)
		m.Rcode = dns.RcodeServerFailure
		var err error
		if a, err = newAnswer(k, m, netip.AddrPort{}, now); err != nil {
			return nil, err
		}
	}
	kept := *a
	kept.at, kept.ttl, kept.cause = now, failureTTL, cause
	return &kept, nil
}

// good reports whether rcode tells something about the name, not about who was asked.
func good(rcode int) bool { return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError }

// lifetime returns for how many seconds m may be told to others, and whether
// it says that there is nothing. That counts only with a SOA (RFC 2308, section 5).
func lifetime(m *dns.Msg, qtype uint16) (seconds uint32, negative bool) {
	negative = true
	seconds = maxTTL
	for _, rr := range m.Answer {
		seconds = min(seconds, rr.Header().Ttl)
		if rr.Header().Rrtype == qtype && m.Rcode == dns.RcodeSuccess {
			negative = false
		}
	}
	if !negative {
		return seconds, false
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(seconds, maxNegative, soa.Hdr.Ttl, soa.Minttl), true
		}
	}
	return 0, true
}

func (a *answer) fresh(now time.Time) bool { return now.Sub(a.at) < a.ttl }

// usable reports whether a may be told at now if nothing newer is to be had.
func (a *answer) usable(now time.Time) bool {
	return a.fresh(now) || good(a.rcode) && now.Sub(a.at) < a.ttl+maxStale
}

// dueSoon reports whether a is in its last tenth, when hot names are asked for again,
// but for failures.
func (a *answer) dueSoon(now time.Time) bool { return good(a.rcode) && now.Sub(a.at) >= a.ttl-a.ttl/10 }

// reply returns a as the answer to r, which has a's key. Records count down;
// those of a stale answer are to be asked for again soon.
func (a *answer) reply(r *dns.Msg, now time.Time, stale bool) (*dns.Msg, error) {
	b := make([]byte, len(a.wire))
	copy(b, a.wire)
	// Names that refer to the question take its case.
	if _, err := dns.PackDomainName(r.Question[0].Name, b, headerSize, nil, false); err != nil {
		return nil, err
	}
	kept := new(dns.Msg)
	if err := kept.Unpack(b); err != nil {
		return nil, err
	}
	age := uint32(now.Sub(a.at) / time.Second)
	m := Failure(r, a.rcode)
	m.Answer, m.Ns = kept.Answer, kept.Ns
	opt := r.IsEdns0()
	m.AuthenticatedData = kept.AuthenticatedData && !stale && (r.AuthenticatedData || opt != nil && opt.Do()) // RFC 6840, section 5.8
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range rrs {
			h := rr.Header()
			if stale {
				h.Ttl = staleTTL
			} else {
				h.Ttl -= min(h.Ttl, age)
			}
		}
	}
	if out := m.IsEdns0(); stale && out != nil {
		code := dns.ExtendedErrorCodeStaleAnswer
		if a.rcode == dns.RcodeNameError {
			code = dns.ExtendedErrorCodeStaleNXDOMAINAnswer
		}
		out.Option = append(out.Option, &dns.EDNS0_EDE{InfoCode: code})
	}
	return m, nil
}

// Failure returns an answer to r without records. It has an OPT record exactly if
// r has one (RFC 6891, section 7), with the DO bit of r (RFC 3225).
func Failure(r *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg).SetReply(r)
	m.Rcode = rcode
	m.RecursionAvailable = true
	if opt := r.IsEdns0(); opt != nil {
		m.SetEdns0(EDNSSize, opt.Do())
	}
	return m
}

// A cache keeps answers, those used last, in so many bytes.
type cache struct {
	limit   int
	bytes   int
	entries map[key]*list.Element
	order   list.List // of *entry, used last first
}

type entry struct {
	key    key
	answer *answer
	hits   int       // of this answer while it was fresh
	after  time.Time // not to be asked for again before; zero: no failure since the answer
	old    bool      // stale whatever its time: other upstreams are in use
}

func (e *entry) fresh(now time.Time) bool { return !e.old && e.answer.fresh(now) }

func (e *entry) size() int { return overhead + len(e.key.name) + len(e.answer.wire) }

// get returns the entry of k if it is usable at now, else nil.
func (c *cache) get(k key, now time.Time) *entry {
	at := c.entries[k]
	if at == nil {
		return nil
	}
	e := at.Value.(*entry)
	if !e.answer.usable(now) {
		c.remove(at)
		return nil
	}
	c.order.MoveToFront(at)
	return e
}

// put keeps a, which is fresh, in place of what there was.
func (c *cache) put(k key, a *answer) {
	if at := c.entries[k]; at != nil {
		c.remove(at)
	}
	e := &entry{key: k, answer: a}
	if e.size() > maxEntry {
		return
	}
	c.entries[k] = c.order.PushFront(e)
	c.bytes += e.size()
	for c.bytes > c.limit {
		c.remove(c.order.Back())
	}
}

// outdate makes all entries stale, to be asked for again at once, and forgets
// failures.
func (c *cache) outdate() {
	for _, at := range c.entries {
		e := at.Value.(*entry)
		if e.old, e.after = true, (time.Time{}); !good(e.answer.rcode) {
			c.remove(at)
		}
	}
}

func (c *cache) remove(at *list.Element) {
	e := c.order.Remove(at).(*entry)
	delete(c.entries, e.key)
	c.bytes -= e.size()
}

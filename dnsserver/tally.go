package dnsserver

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// A Source is what a query was answered from.
type Source int

const (
	Mesh      Source = iota // the zone, in whatever way
	Forwarded               // the forwarder: its cache, an upstream, or their failure
	Refused                 // nothing: it arrived on an interface that is not answered
	sources
)

func (s Source) String() string { return [...]string{"mesh", "forwarded", "refused"}[s] }

// Types and codes that are counted apart; the others are counted together, so that
// nobody makes the tally grow by what he asks.
var (
	countedTypes = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeSRV, dns.TypeSOA, dns.TypeNS, dns.TypeCNAME, dns.TypeMX, dns.TypeTXT, dns.TypeHTTPS, dns.TypeANY}
	countedCodes = [...]int{dns.RcodeSuccess, dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNameError, dns.RcodeNotImplemented, dns.RcodeRefused}
)

// The time that a query took falls into one of these buckets: the first is up to
// leastTime, each other one to twice the one before it, the last without end.
const (
	leastTime = 16 * time.Microsecond
	buckets   = 20 // up to 4.2 s, which is longer than a forwarded query may take, and more
)

// A tally counts the queries that were answered.
type tally [sources][len(countedTypes) + 1][len(countedCodes) + 1]cell

// A cell counts those of one source, type and code.
type cell struct {
	took [buckets]atomic.Uint64
	sum  atomic.Uint64 // nanoseconds
}

// at returns the cell for a type and a code.
func (t *tally) at(s Source, qtype uint16, rcode int) *cell {
	return &t[s][place(countedTypes[:], qtype)][place(countedCodes[:], rcode)]
}

// place is where v is in list, its length if it is not there.
func place[T comparable](list []T, v T) int {
	if i := slices.Index(list, v); i >= 0 {
		return i
	}
	return len(list)
}

func (c *cell) add(took time.Duration) {
	took = max(took, 1)
	c.took[min(bits.Len64(uint64(took-1)/uint64(leastTime)), buckets-1)].Add(1)
	c.sum.Add(uint64(took))
}

// count returns how many queries were counted.
func (c *cell) count() (n uint64) {
	for i := range c.took {
		n += c.took[i].Load()
	}
	return n
}

// An Answers is how many queries of one kind were answered, and how fast: from when
// they were read to when the answer was given to the kernel.
type Answers struct {
	Source      Source
	Type, Rcode string // mnemonics such as "AAAA" and "NXDOMAIN", or "other"
	Count       uint64
	Sum         time.Duration            // that all of them took
	Within      map[time.Duration]uint64 // how many took no longer than that
}

// Answers returns what was counted since Listen, without the kinds that did not occur.
func (s *Server) Answers() []Answers {
	var list []Answers
	for source := range s.tally {
		for t := range s.tally[source] {
			for code := range s.tally[source][t] {
				a := Answers{Source: Source(source), Type: "other", Rcode: "other", Within: make(map[time.Duration]uint64, buckets-1)}
				c := &s.tally[source][t][code]
				a.Sum = time.Duration(c.sum.Load())
				for i := range c.took {
					a.Count += c.took[i].Load()
					if i < buckets-1 {
						a.Within[leastTime<<i] = a.Count
					}
				}
				if a.Count == 0 {
					continue
				}
				if t < len(countedTypes) {
					a.Type = dns.TypeToString[countedTypes[t]]
				}
				if code < len(countedCodes) {
					a.Rcode = dns.RcodeToString[countedCodes[code]]
				}
				list = append(list, a)
			}
		}
	}
	return list
}

// counted returns how many queries were answered from a source.
func (t *tally) counted(s Source) (n uint64) {
	for i := range t[s] {
		for j := range t[s][i] {
			n += t[s][i][j].count()
		}
	}
	return n
}

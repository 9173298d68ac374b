package dnsserver

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver/forward"
)

const watched = 256 // queries that wait for a watcher

// A Query is one that was answered.
type Query struct {
	At        time.Time // it was read
	Took      time.Duration
	Client    netip.AddrPort
	Proto     string // "udp" or "tcp"
	Name      string // as it was written; empty of what asks nothing
	Type      string // mnemonic
	Rcode     string // mnemonic
	Source    Source
	Upstream  netip.AddrPort // whose answer it is, of now or of earlier; zero if it is no upstream's
	Cached    bool           // it is of earlier
	Stale     bool           // and past its time
	Answers   int            // records in the answer section
	Truncated bool           // TC
	Size      int            // bytes of the answer
	Err       error          // why an upstream gave no newer answer, or none
}

// A Filter says which queries to watch; the zero value says all.
type Filter struct {
	Name   string       // only this name and those below it, in any case, with or without its last dot
	Client netip.Prefix // only of clients in it
	Every  int          // only one in as many of those; up to 1: each
}

// A Watch is somebody who looks at queries. Close ends it.
type Watch struct {
	C <-chan Query // what a reader is too slow for is left out, see Missed

	s      *Server
	filter Filter
	name   string // of filter, canonical; "" for all
	seen   atomic.Uint64
	missed atomic.Uint64
	c      chan Query
}

// Watch has queries from now on told to the Watch that it returns. They cost the
// server something only while somebody watches.
func (s *Server) Watch(f Filter) *Watch {
	w := &Watch{s: s, filter: f, name: dns.CanonicalName(f.Name), c: make(chan Query, watched)}
	if f.Name == "" || w.name == "." {
		w.name = ""
	}
	w.C = w.c
	s.edit(func(list []*Watch) []*Watch { return append(slices.Clone(list), w) })
	return w
}

// Close ends w; C stays open.
func (w *Watch) Close() {
	w.s.edit(func(list []*Watch) []*Watch {
		return slices.DeleteFunc(slices.Clone(list), func(o *Watch) bool { return o == w })
	})
}

// Missed returns how many queries were left out because C was full.
func (w *Watch) Missed() uint64 { return w.missed.Load() }

// edit changes the list of those who watch, which is never changed in place.
func (s *Server) edit(change func([]*Watch) []*Watch) {
	for {
		old := s.watches.Load()
		var list []*Watch
		if old != nil {
			list = *old
		}
		list = change(list)
		next := &list
		if len(list) == 0 {
			next = nil
		}
		if s.watches.CompareAndSwap(old, next) {
			return
		}
	}
}

// tell tells those who watch of the query to which b is the reply.
func (s *Server) tell(o *origin, from Source, b []byte, code int, took time.Duration, reply *forward.Reply) {
	list := s.watches.Load()
	if list == nil {
		return
	}
	q := Query{
		At: o.at, Took: took, Client: o.client, Proto: o.Network(), Source: from, Size: len(b),
		Rcode: codeName(code), Answers: int(binary.BigEndian.Uint16(b[6:])), Truncated: b[2]&2 != 0,
	}
	if binary.BigEndian.Uint16(b[4:]) > 0 {
		name, end, err := dns.UnpackDomainName(b, headerSize)
		if err != nil || len(b) < end+2 {
			return // impossible: we have written it
		}
		q.Name, q.Type = name, dns.Type(binary.BigEndian.Uint16(b[end:])).String()
	}
	if reply != nil {
		q.Upstream, q.Cached, q.Stale, q.Err = reply.Upstream, reply.Cached, reply.Stale, reply.Err
	}
	lower := strings.ToLower(q.Name)
	for _, w := range *list {
		w.take(q, lower)
	}
}

// codeName is the mnemonic of a response code, or RCODE and its number (RFC 3597's way
// with types).
func codeName(code int) string {
	if code == dns.RcodeBadVers {
		return "BADVERS" // not BADSIG, which has the same number
	}
	if name, ok := dns.RcodeToString[code]; ok {
		return name
	}
	return fmt.Sprintf("RCODE%d", code)
}

func (w *Watch) take(q Query, lower string) {
	switch f := w.filter; {
	case w.name != "" && lower != w.name && !strings.HasSuffix(lower, "."+w.name):
	case f.Client.IsValid() && !f.Client.Contains(q.Client.Addr().Unmap().WithZone("")):
	case f.Every > 1 && (w.seen.Add(1)-1)%uint64(f.Every) != 0:
	default:
		select {
		case w.c <- q:
		default:
			w.missed.Add(1)
		}
	}
}

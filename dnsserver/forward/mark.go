package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// A question that comes back to the node that asked it would go round for
// ever. Three things keep it from that:
//
//   - Each question that is being asked has a mark, a random number. It goes
//     along in an EDNS option of ours, behind those of the nodes before: a node
//     that reads a mark of its own says SERVFAIL at once.
//   - Resolvers of others leave options out, but most keep the case of a name,
//     which is random: a question in the very case in which it is being asked is
//     our own.
//   - What still goes round joins the question that waits for it, and ends
//     with it.
//
// The numbers are new for each question, so that they tell nobody who asks.
// Public resolvers do not get them: what comes back through one of those comes
// back over an uplink, where nobody is answered.

const (
	markCode  = 65310 // of those for local use (RFC 6891, section 9)
	maxMarks  = 8     // nodes that a question may go through
	minLetter = 8     // in a name, before its case alone counts: others may have 256 spellings of it
)

var markMagic = []byte("jiji") // others use the code, too

// A mark is a question that is being asked by some node.
type mark uint64

func option(marks []mark) *dns.EDNS0_LOCAL {
	b := bytes.Clone(markMagic)
	for _, m := range marks {
		b = binary.BigEndian.AppendUint64(b, uint64(m))
	}
	return &dns.EDNS0_LOCAL{Code: markCode, Data: b}
}

// marksOf returns the marks that r carries; none if it comes from no node.
func marksOf(r *dns.Msg) []mark {
	opt := r.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		local, ok := o.(*dns.EDNS0_LOCAL)
		if !ok || local.Code != markCode {
			continue
		}
		b, ok := bytes.CutPrefix(local.Data, markMagic)
		if !ok || len(b)%8 != 0 {
			continue
		}
		var marks []mark
		for m := range slices.Chunk(b, 8) {
			marks = append(marks, mark(binary.BigEndian.Uint64(m)))
		}
		return marks
	}
	return nil
}

// marked reports whether queries to up carry their marks.
func (f *Forwarder) marked(up netip.Addr) bool {
	up = up.Unmap().WithZone("")
	return up.IsPrivate() || up.IsLoopback() || up.IsLinkLocalUnicast() || shared.Contains(up) ||
		slices.ContainsFunc(f.cfg.Mesh, func(p netip.Prefix) bool { return p.Contains(up) })
}

var shared = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10) // RFC 6598

// letters returns how many letters name has.
func letters(name string) int {
	n := 0
	for i := range len(name) {
		if c := name[i] | 0x20; c >= 'a' && c <= 'z' {
			n++
		}
	}
	return n
}

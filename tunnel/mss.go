package tunnel

import (
	"encoding/binary"
	"math/bits"
)

// What limitMSS has to know of the headers of IPv4 (RFC 791), IPv6 (RFC 8200)
// and TCP (RFC 9293).
const (
	ipv4Header = 20 // bytes, without options
	ipv6Header = 40
	tcpHeader  = 20 // without options

	protocolTCP = 6

	hopByHop        = 0 // IPv6 extension headers that may stand before TCP
	routing         = 43
	fragment        = 44
	destination     = 60
	maxExtHeaders   = 8 // far more than anybody sends
	fragmentHeader  = 8
	moreFragments   = 0x2000
	fragmentOffset4 = 0x1fff
	fragmentOffset6 = 0xfff8

	tcpFlags   = 13 // where in the header they are
	fin        = 0x01
	syn        = 0x02
	rst        = 0x04
	tcpSum     = 16
	optionEnd  = 0
	optionNop  = 1
	optionMSS  = 2
	lengthMSS  = 4
	mssWithin4 = ipv4Header + tcpHeader // what a segment of the maximum size adds up to with its headers, less the MSS
	mssWithin6 = ipv6Header + tcpHeader
)

// mayLimitMSS reports whether b may be one of the few packets that limitMSS
// changes: it is asked for each packet, limitMSS for those that open a
// connection.
func mayLimitMSS(b []byte) bool {
	if len(b) < ipv4Header+tcpHeader {
		return false
	}
	switch b[0] >> 4 {
	case 4:
		if b[9] != protocolTCP {
			return false
		}
		at := int(b[0]&0xf)*4 + tcpFlags
		return at < len(b) && b[at]&syn != 0
	case 6:
		if b[6] != protocolTCP {
			return b[6] == hopByHop || b[6] == routing || b[6] == fragment || b[6] == destination
		}
		return len(b) >= ipv6Header+tcpHeader && b[ipv6Header+tcpFlags]&syn != 0
	}
	return false
}

// limitMSS makes a TCP SYN or SYN-ACK that announces a larger maximum segment
// size announce one whose packets fit: fit says how large one of so many bytes may
// be. The checksum is then as right as it was. All else stays as it is: what
// announces less or nothing (the far end assumes 536 then, 1220 in IPv6: RFC 9293,
// section 3.7.1), fragments but for a first one with the whole TCP header, what is
// malformed.
func limitMSS(b []byte, fit func(packet int) int) {
	tcp, headers := findTCP(b)
	if len(tcp) < tcpHeader || tcp[tcpFlags]&(syn|rst|fin) != syn {
		return
	}
	length := int(tcp[12]>>4) * 4
	if length < tcpHeader || length > len(tcp) {
		return
	}
	for at := tcpHeader; at < length; {
		switch tcp[at] {
		case optionEnd:
			return
		case optionNop:
			at++
			continue
		}
		if at+1 >= length {
			return
		}
		size := int(tcp[at+1])
		if size < 2 || at+size > length {
			return
		}
		if tcp[at] == optionMSS && size == lengthMSS {
			old := binary.BigEndian.Uint16(tcp[at+2:])
			if limit := uint16(min(max(fit(int(old)+headers)-headers, 0), 1<<16-1)); old > limit {
				binary.BigEndian.PutUint16(tcp[at+2:], limit)
				adjustSum(tcp[tcpSum:], at+2, old, limit)
			}
		}
		at += size
	}
}

// findTCP returns what of packet b is TCP, header first, and by how much a
// packet is larger than the segment size that TCP counts with; nil if b does not
// have the beginning of a TCP header, or says that it is longer than it is.
func findTCP(b []byte) (tcp []byte, headers int) {
	if len(b) < ipv4Header {
		return nil, 0
	}
	switch b[0] >> 4 {
	case 4:
		start, end := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
		if b[9] != protocolTCP || binary.BigEndian.Uint16(b[6:])&fragmentOffset4 != 0 || start < ipv4Header || start > end || end > len(b) {
			return nil, 0
		}
		return b[start:end], mssWithin4
	case 6:
		if len(b) < ipv6Header {
			return nil, 0
		}
		next, rest := b[6], b[ipv6Header:]
		size := int(binary.BigEndian.Uint16(b[4:]))
		if size > len(rest) {
			return nil, 0
		}
		return skipExtensions(next, rest[:size]), mssWithin6
	}
	return nil, 0
}

// skipExtensions returns the TCP segment behind IPv6 extension headers, of which
// next is the kind of the first; nil if there is none, or no beginning of it.
func skipExtensions(next byte, b []byte) []byte {
	for range maxExtHeaders {
		if next == protocolTCP {
			return b
		}
		if len(b) < fragmentHeader {
			return nil
		}
		size := fragmentHeader
		switch next {
		case fragment:
			if binary.BigEndian.Uint16(b[2:])&fragmentOffset6 != 0 {
				return nil
			}
		case hopByHop, routing, destination:
			size = int(b[1])*8 + 8
		default:
			return nil
		}
		if size > len(b) {
			return nil
		}
		next, b = b[0], b[size:]
	}
	return nil
}

// adjustSum adjusts an Internet checksum (RFC 1624, section 3) to a 16-bit value
// that changed, at bytes after the beginning of what is summed.
func adjustSum(sum []byte, at int, from, to uint16) {
	if at%2 != 0 {
		from, to = bits.ReverseBytes16(from), bits.ReverseBytes16(to)
	}
	s := uint32(^binary.BigEndian.Uint16(sum)) + uint32(^from) + uint32(to)
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}

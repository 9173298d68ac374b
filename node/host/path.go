package host

const (
	minPeerMTU = 576 // what everything takes that speaks IPv4 (RFC 1122, section 3.3.2)
	padding    = 16  // WireGuard fills packets up to a multiple of it, or to the MTU of its interface
)

// PeerMTU returns how large a packet may be for WireGuard to carry it in one
// datagram of IPv4 or IPv6 on a path of the given MTU, at least 576; 0 if that is
// no less than the tunnel's own MTU.
func PeerMTU(tunnel, path int, ipv6 bool) int {
	room := path - overhead(ipv6)
	if room >= tunnel {
		return 0
	}
	return max(room/padding*padding, minPeerMTU)
}

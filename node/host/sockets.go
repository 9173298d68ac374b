package host

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Socket is a local address that somebody holds: a UDP socket's, or a TCP
// listener's.
type Socket struct {
	Proto string         // "udp" or "tcp"
	Local netip.AddrPort // IPv4-in-IPv6 is written as IPv4
	UID   int            // of who opened it
	Inode uint64         // 0: the kernel's own, or one without a descriptor
	Owner string         // "named (pid 812, named.service)"; empty: not known
}

const tcpListen = "0A" // include/net/tcp_states.h

// parseSockets reads /proc/net/udp, udp6, tcp or tcp6 (proc_net(5)): of TCP the
// listeners. A line that is not understood is an error that quotes it.
func parseSockets(proto, table string) ([]Socket, error) {
	_, table, _ = strings.Cut(table, "\n") // the heading
	var out []Socket
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) < 10 {
			return nil, fmt.Errorf("%s socket %q: expected at least 10 fields", proto, line)
		}
		local, err := parseLocal(f[1])
		if err != nil {
			return nil, fmt.Errorf("%s socket %q: %w", proto, line, err)
		}
		uid, err := strconv.ParseUint(f[7], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s socket %q: uid: %w", proto, line, err)
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s socket %q: inode: %w", proto, line, err)
		}
		if proto == "tcp" && f[3] != tcpListen {
			continue
		}
		out = append(out, Socket{Proto: proto, Local: local, UID: int(uid), Inode: inode})
	}
	return out, nil
}

// parseLocal reads address and port: "0100007F:0035". The kernel prints each 32
// bits of the address as the number they are in its own byte order.
func parseLocal(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("address %q: expected 8 or 32 hexadecimal digits", host)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: expected hexadecimal digits", port)
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(p)), nil
}

// unit names the systemd unit or the container that a path in the cgroup tree
// belongs to, as "named.service" or "container 0123456789ab"; empty if neither.
func unit(cgroup string) string {
	var found string
	for part := range strings.SplitSeq(cgroup, "/") {
		name, isScope := strings.CutSuffix(part, ".scope")
		// docker-<id>.scope, libpod-<id>.scope, cri-containerd-<id>.scope; with the cgroupfs driver <id> alone
		id := name[strings.LastIndexByte(name, '-')+1:]
		if _, err := hex.DecodeString(id); err == nil && len(id) == 64 {
			return "container " + id[:12]
		}
		if isScope || strings.HasSuffix(part, ".service") {
			found = part
		}
	}
	return found
}

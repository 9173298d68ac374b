package peerlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

const (
	magic      = "jiji"
	version    = 1
	noticeSize = len(magic) + 1 + 16 + 8
)

// errVersion says that a datagram is of a format that this node does not know.
var errVersion = errors.New("another version of the format")

// append appends the datagram of n to b.
func (n Notice) append(b []byte) []byte {
	b = append(append(b, magic...), version)
	return binary.BigEndian.AppendUint64(append(b, n.Writer[:]...), uint64(n.Version))
}

// parseNotice reads a datagram. The error is errVersion if another version of
// this program may understand it.
func parseNotice(b []byte) (Notice, error) {
	if len(b) <= len(magic) || string(b[:len(magic)]) != magic {
		return Notice{}, fmt.Errorf("datagram of %d bytes: expected it to begin with %q", len(b), magic)
	}
	if v := b[len(magic)]; v != version {
		return Notice{}, errVersion
	}
	if len(b) != noticeSize {
		return Notice{}, fmt.Errorf("datagram of %d bytes: expected %d", len(b), noticeSize)
	}
	b = b[len(magic)+1:]
	n := Notice{Writer: [16]byte(b)}
	if n.Writer == [16]byte{} {
		return Notice{}, errors.New("writer is zero: expected a site id")
	}
	v := binary.BigEndian.Uint64(b[16:])
	if v == 0 || v > math.MaxInt64 {
		return Notice{}, fmt.Errorf("version %d: expected 1 to %d", v, int64(math.MaxInt64))
	}
	n.Version = int64(v)
	return n, nil
}

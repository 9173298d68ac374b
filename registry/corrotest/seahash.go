package corrotest

import "encoding/binary"

// seahash is the hash whose hex digits are the header corro-query-hash:
// docs.rs/seahash, in its portable form.
func seahash(b []byte) uint64 {
	state := [4]uint64{0x16f11fe89b0d677c, 0xb480a793d8e6c86c, 0x6fe2e5aaf078ebc9, 0x14f994a4c5259381}
	size := uint64(len(b))
	for len(b) > 0 {
		var chunk [8]byte
		b = b[copy(chunk[:], b):]
		mixed := diffuse(state[0] ^ binary.LittleEndian.Uint64(chunk[:]))
		state = [4]uint64{state[1], state[2], state[3], mixed}
	}
	return diffuse(state[0] ^ state[1] ^ state[2] ^ state[3] ^ size)
}

func diffuse(x uint64) uint64 {
	x *= 0x6eed0e9da4d94a4f
	x ^= (x >> 32) >> (x >> 60)
	return x * 0x6eed0e9da4d94a4f
}

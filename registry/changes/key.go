// Package changes reads what cr-sqlite's table crsql_changes says about rows
// that were written.
package changes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// MaxKey is how long a packed key may be, in bytes. Ours have some hundred.
const MaxKey = 64 << 10

// Types of a packed value, in the lower three bits of its first byte. The upper
// five count the bytes of the big-endian number that follows: of an integer its
// value, of text and a blob its length.
const (
	typeInteger = iota + 1
	typeFloat
	typeText
	typeBlob
	typeNull

	typeBits = 3
)

// DecodeKey reads a packed primary key, the column pk of crsql_changes, and
// returns the key's columns in their order: int64, float64, string, []byte or
// nil. The slices share nothing with b. An error is one line without the key's
// values.
func DecodeKey(b []byte) ([]any, error) {
	if len(b) > MaxKey {
		return nil, fmt.Errorf("packed key of %d bytes: expected at most %d", len(b), MaxKey)
	}
	if len(b) == 0 || b[0] == 0 {
		return nil, errors.New("packed key without columns: expected at least one")
	}
	cells := make([]any, 0, min(int(b[0]), len(b)-1)) // of a byte each, at least
	rest := b[1:]
	for i := range int(b[0]) {
		cell, size, err := decodeCell(rest)
		if err != nil {
			return nil, fmt.Errorf("packed key of %d bytes: column %d of %d: %w", len(b), i+1, b[0], err)
		}
		cells, rest = append(cells, cell), rest[size:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("packed key of %d bytes: %d more than its %d columns have", len(b), len(rest), b[0])
	}
	return cells, nil
}

var errShort = errors.New("ends too soon")

// decodeCell reads the value at the beginning of b, and returns its size there.
func decodeCell(b []byte) (cell any, size int, err error) {
	if len(b) == 0 {
		return nil, 0, errShort
	}
	kind, width := b[0]&(1<<typeBits-1), int(b[0]>>typeBits)
	most := map[byte]int{typeInteger: 8, typeText: 4, typeBlob: 4}[kind]
	if kind == 0 || kind > typeNull {
		return nil, 0, fmt.Errorf("type %d: expected 1 to %d", kind, typeNull)
	}
	if width > most {
		return nil, 0, fmt.Errorf("type %d has a number of %d bytes: expected at most %d", kind, width, most)
	}
	if b = b[1:]; len(b) < width {
		return nil, 0, errShort
	}
	var wide [8]byte
	copy(wide[8-width:], b)
	number, b := binary.BigEndian.Uint64(wide[:]), b[width:] // never sign-extended: -1 has all 8 bytes
	size = 1 + width
	switch kind {
	case typeInteger:
		return int64(number), size, nil
	case typeNull:
		return nil, size, nil
	case typeFloat:
		if len(b) < 8 {
			return nil, 0, errShort
		}
		return math.Float64frombits(binary.BigEndian.Uint64(b)), size + 8, nil
	}
	if number > uint64(len(b)) {
		return nil, 0, errShort
	}
	b, size = b[:number], size+int(number)
	if kind == typeBlob {
		return append([]byte{}, b...), size, nil
	}
	if !utf8.Valid(b) {
		return nil, 0, errors.New("text is not UTF-8")
	}
	return string(b), size, nil
}

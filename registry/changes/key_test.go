package changes

import (
	"encoding/hex"
	"math"
	"reflect"
	"strings"
	"testing"
)

// What an agent packed (klukai 0.1.4, by TestDecodeKeyOfAgent), but for the last five.
func TestDecodeKey(t *testing.T) {
	x := strings.Repeat("78", 300)
	for _, c := range []struct {
		packed string
		want   []any
	}{
		{"0103", []any{""}},
		{"010b0178", []any{"x"}},
		{"010b0dc5bcc3b3c582772d002de280a8", []any{"żółw-\x00-\u2028"}},
		{"0113012c" + x, []any{strings.Repeat("x", 300)}},
		{"0101", []any{int64(0)}},
		{"010901", []any{int64(1)}},
		{"010980", []any{int64(128)}},
		{"0109ff", []any{int64(255)}},
		{"01118000", []any{int64(32768)}},
		{"012180000000", []any{int64(1) << 31}},
		{"0139ffffffffffffff", []any{int64(1)<<56 - 1}},
		{"0141ffffffffffffffff", []any{int64(-1)}},
		{"01418000000000000000", []any{int64(math.MinInt64)}},
		{"020b047465787411012c", []any{"text", int64(300)}},
		{"04010402000000000000000003", []any{int64(0), []byte{}, 0.0, ""}},
		{"010c03ff0001", []any{[]byte{255, 0, 1}}},
		{"01023ff8000000000000", []any{1.5}},
		{"0105", []any{nil}},
		{"03050505", []any{nil, nil, nil}},
		{"011b00000178", []any{"x"}}, // a longer number than it takes
	} {
		packed := unhex(t, c.packed)
		got, err := DecodeKey(packed)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%.60s: %.80v, %v, want %.80v", c.packed, got, err, c.want)
		}
		clear(packed)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%.60s: shares its bytes", c.packed)
		}
		for cut := range len(c.packed) / 2 {
			if got, err := DecodeKey(unhex(t, c.packed[:2*cut])); err == nil || got != nil {
				t.Errorf("the first %d bytes of %.60s: %v", cut, c.packed, got)
			}
		}
		if _, err := DecodeKey(unhex(t, c.packed+"05")); err == nil || !strings.Contains(err.Error(), "1 more than") {
			t.Errorf("%.60s05: %v", c.packed, err)
		}
	}
}

func TestDecodeKeyRefuses(t *testing.T) {
	for _, c := range []struct{ packed, want string }{
		{"", "without columns"},
		{"00", "without columns"},
		{"0005", "without columns"},
		{"0100", "column 1 of 1: type 0: expected 1 to 5"},
		{"020506", "column 2 of 2: type 6"},
		{"0107", "type 7"},
		{"ff05", "column 2 of 255: ends too soon"},
		{"0149010203040506070809", "number of 9 bytes: expected at most 8"},
		{"012b000000000178", "number of 5 bytes: expected at most 4"},
		{"012c000000000178", "number of 5 bytes: expected at most 4"},
		{"010d05", "type 5 has a number of 1 bytes: expected at most 0"},
		{"010a3ff8000000000000", "type 2 has a number"},
		{"0123ffffffff78", "ends too soon"},
		{"0124ffffffff78", "ends too soon"},
		{"010b02c328", "not UTF-8"},
		{strings.Repeat("01", MaxKey+1), "packed key of 65537 bytes: expected at most 65536"},
	} {
		got, err := DecodeKey(unhex(t, c.packed))
		if err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: %v, %v, want %q", c.packed, got, err, c.want)
		}
	}
}

func FuzzDecodeKey(f *testing.F) {
	for _, seed := range []string{"010b0178", "04010402000000000000000003", "0141ffffffffffffffff", "ff", "0105"} {
		b, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cells, err := DecodeKey(b)
		if err != nil {
			if cells != nil || strings.Contains(err.Error(), "\n") || len(err.Error()) > 200 {
				t.Errorf("%x: %v, %q", b, cells, err)
			}
			return
		}
		size := 1
		for _, c := range cells {
			switch c := c.(type) {
			case string:
				size += 1 + len(c)
			case []byte:
				size += 1 + len(c)
			case float64:
				size += 9
			case int64, nil:
				size++
			default:
				t.Errorf("%x: a %T", b, c)
			}
		}
		if len(cells) != int(b[0]) || size > len(b) {
			t.Errorf("%x: %v", b, cells)
		}
	})
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

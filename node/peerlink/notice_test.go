package peerlink

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
)

var writerA, writerB = [16]byte{0: 0xa, 15: 1}, [16]byte{0: 0xb}

func TestParseNotice(t *testing.T) {
	const good = "6a696a69" + "01" + "000102030405060708090a0b0c0d0e0f" + "0000000000000102"
	for _, c := range []struct{ name, datagram, want string }{
		{"as documented", good, ""},
		{"the largest version", good[:42] + "7fffffffffffffff", ""},
		{"empty", "", "0 bytes: expected it to begin"},
		{"magic alone", good[:8], "4 bytes: expected it to begin"},
		{"another magic", "00" + good[2:], "29 bytes: expected it to begin"},
		{"another version", good[:8] + "02" + good[10:], "another version"},
		{"another version, of another length", good[:8] + "02", "another version"},
		{"short", good[:56], "28 bytes: expected 29"},
		{"long", good + "00", "30 bytes: expected 29"},
		{"no writer", good[:10] + strings.Repeat("00", 16) + good[42:], "writer is zero"},
		{"version 0", good[:42] + "0000000000000000", "version 0: expected 1 to 9223372036854775807"},
		{"version beyond", good[:42] + "8000000000000000", "version 9223372036854775808"},
	} {
		b, err := hex.DecodeString(c.datagram)
		if err != nil {
			t.Fatal(err)
		}
		n, err := parseNotice(b)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want == "":
			if got := n.append(nil); !bytes.Equal(got, b) {
				t.Errorf("%s: %x became %x", c.name, b, got)
			}
		case err == nil || !strings.Contains(err.Error(), c.want) || n != (Notice{}):
			t.Errorf("%s: %v, %v, want %q", c.name, n, err, c.want)
		}
		if errors.Is(err, errVersion) != strings.HasPrefix(c.name, "another version") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzParseNotice(f *testing.F) {
	f.Add(Notice{writerA, 7}.append(nil))
	f.Add(Notice{writerA, math.MaxInt64}.append(nil))
	f.Add([]byte("jiji\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseNotice(b)
		if err == nil && (n.Version < 1 || n.Writer == [16]byte{} || !bytes.Equal(n.append(nil), b)) {
			t.Errorf("%x became %v", b, n)
		}
		if err != nil && (n != Notice{} || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%x: %v, %q", b, n, err)
		}
	})
}

func TestParseVersions(t *testing.T) {
	const a, b = "0a000000000000000000000000000001", "0b000000000000000000000000000000"
	got, err := parseVersions([]byte(`{"versions":{"` + a + `":7,"` + b + `":0},"more":[1]}`))
	if err != nil || len(got) != 2 || got[writerA] != 7 || got[writerB] != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parseVersions([]byte(`{"versions":{}}`)); err != nil || got == nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	many := `{"versions":{"` + a + `":1` + strings.Repeat(`,"`+a+`":1`, maxWriters) + `}}`
	if len(many) > maxAnswer {
		t.Errorf("an answer of %d writers has %d bytes, and %d are allowed", maxWriters, len(many), maxAnswer)
	}
	for _, c := range []struct{ body, want string }{
		{``, "unexpected end"},
		{`null`, `no "versions"`},
		{`{}`, `no "versions"`},
		{`[]`, "cannot unmarshal"},
		{`{"versions":{}} {}`, "after top-level value"},
		{`{"versions":{"0a":1}}`, `writer "0a": expected 32`},
		{`{"versions":{"` + strings.ToUpper(a) + `":1}}`, "lower-case"},
		{`{"versions":{"` + strings.Repeat("z", 5000) + `":1}}`, `writer "zzzz`},
		{`{"versions":{"` + a + `":-1}}`, "writer " + a + ": expected a version"},
		{`{"versions":{"` + a + `":null}}`, "writer " + a + ": expected a version"},
		{`{"versions":{"` + a + `":1.5}}`, "cannot unmarshal"},
		{`{"versions":{"` + a + `":9223372036854775808}}`, "cannot unmarshal"},
		{strings.Repeat(" ", maxAnswer+1), "more than 4194304 bytes"},
	} {
		got, err := parseVersions([]byte(c.body))
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 300 || got != nil {
			t.Errorf("%.60s: %v, %v, want %q", c.body, got, err, c.want)
		}
	}
}

func FuzzParseVersions(f *testing.F) {
	f.Add([]byte(`{"versions":{"0a000000000000000000000000000001":7}}`))
	f.Add([]byte(`{"versions":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseVersions(b)
		if (err == nil) != (got != nil) || len(got) > maxWriters {
			t.Errorf("%q: %v, %v", b, got, err)
		}
		for _, v := range got {
			if v < 0 {
				t.Errorf("%q: %v", b, got)
			}
		}
	})
}

func FuzzBoots(f *testing.F) {
	f.Add([]byte(`{"others":[{"boot":"00000000000000aa","ageMs":5}]}`))
	f.Add([]byte(`{"others":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		boots, err := parseBoots(b)
		for _, o := range boots {
			if err != nil || !isBoot(o.ID) || o.Age < 0 || o.Age > bootsKept {
				t.Errorf("%+v, %v", o, err)
			}
		}
	})
}

func FuzzAgent(f *testing.F) {
	f.Add([]byte(`{"version":"klukai 0.1.4","managed":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAgent(b)
		if err != nil && a != (Agent{}) || len(a.Version) > maxVersion || strings.ContainsAny(a.Version, "\n\x1b") {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

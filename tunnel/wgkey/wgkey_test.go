package wgkey

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestParsePublic(t *testing.T) {
	const good = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	k, err := ParsePublic(good)
	if err != nil || k.String() != good || k[31] != 31 {
		t.Errorf("ParsePublic(%q) = %v, %v", good, k, err)
	}
	for _, bad := range []string{"", "AAEC", good + "=", strings.Replace(good, "A", "!", 1), strings.Replace(good, "h8=", "h9=", 1), strings.Repeat("A", 44), "\n" + good[1:]} {
		if _, err := ParsePublic(bad); err == nil {
			t.Errorf("ParsePublic(%q) succeeded", bad)
		}
	}
}

// The pair is from RFC 7748, section 6.1 (Alice).
func TestPublicOfPrivate(t *testing.T) {
	priv, err := ParsePrivate("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := priv.Public().String(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="; got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
}

func TestPrivateIsNeverPrinted(t *testing.T) {
	k := NewPrivate()
	secret := k.Base64()
	raw := k.Bytes()
	type holder struct{ Key Private }
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, k, &k, holder{k})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "key", k, "holder", holder{k})
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", k, "holder", holder{k})
	if b, err := json.Marshal(holder{k}); err == nil {
		t.Errorf("json.Marshal wrote %s", b)
	}
	for _, leak := range []string{secret, fmt.Sprintf("%x", raw[:]), fmt.Sprint(raw)[1:20]} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is in the output:\n%s", leak, out.String())
		}
	}
	if _, err := ParsePrivate(secret[:43]); err == nil || strings.Contains(err.Error(), secret[:8]) {
		t.Errorf("error is %v", err)
	}
	if NewPrivate() == k {
		t.Error("two new keys are equal")
	}
}

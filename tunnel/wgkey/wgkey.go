// Package wgkey holds WireGuard's Curve25519 keys as two types that nobody can
// confuse, of which the private one cannot be printed by accident.
package wgkey

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
)

const textLen = 44 // base64 of 32 bytes, padded

// A Public is a peer's public key. It is comparable; the zero value means none.
type Public [32]byte

// ParsePublic reads the 44 characters of standard base64 that wg(8) prints.
func ParsePublic(text string) (Public, error) {
	b, err := parse(text)
	if err != nil {
		return Public{}, fmt.Errorf("public key %q: %w", text, err)
	}
	return Public(b), nil
}

// String returns the key in standard base64.
func (k Public) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether k is the zero value, which means none.
func (k Public) IsZero() bool { return k == Public{} }

// MarshalText returns the key in standard base64, or nothing for the zero value.
func (k Public) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return []byte{}, nil
	}
	return []byte(k.String()), nil
}

// UnmarshalText is the reverse of MarshalText.
func (k *Public) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*k = Public{}
		return nil
	}
	p, err := ParsePublic(string(text))
	if err != nil {
		return err
	}
	*k = p
	return nil
}

// A Private is this node's private key. Every way of formatting it hides it;
// Base64 and Bytes are the two that do not. The zero value means none.
type Private struct{ b [32]byte }

// NewPrivate returns a new random key, clamped as Curve25519 wants it.
func NewPrivate() Private {
	var k Private
	rand.Read(k.b[:]) // never fails: crypto/rand aborts the program instead
	k.clamp()
	return k
}

// ParsePrivate reads the 44 characters of standard base64 that `wg genkey`
// prints. Its errors do not quote the text.
func ParsePrivate(text string) (Private, error) {
	b, err := parse(text)
	if err != nil {
		return Private{}, fmt.Errorf("private key: %w", err)
	}
	if b == [32]byte{} {
		return Private{}, fmt.Errorf("private key: all zero")
	}
	k := Private{b}
	k.clamp()
	return k, nil
}

// Public returns the public key that belongs to k, which must not be zero.
func (k Private) Public() Public {
	key, err := ecdh.X25519().NewPrivateKey(k.b[:])
	if err != nil { // impossible: the length is right, and nothing else is checked
		panic("wgkey: " + err.Error())
	}
	return Public(key.PublicKey().Bytes())
}

// IsZero reports whether k is the zero value, which means none.
func (k Private) IsZero() bool { return k == Private{} }

// Base64 reveals the key, for its file.
func (k Private) Base64() string { return base64.StdEncoding.EncodeToString(k.b[:]) }

// Bytes reveals the key, for the WireGuard device.
func (k Private) Bytes() [32]byte { return k.b }

const hidden = "(private key)"

// String, GoString, Format and LogValue hide the key; MarshalText and
// MarshalJSON refuse to write it.
func (k Private) String() string             { return hidden }
func (k Private) GoString() string           { return hidden }
func (k Private) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, hidden) }
func (k Private) LogValue() slog.Value       { return slog.StringValue(hidden) }
func (k Private) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("wgkey: refusing to write a private key")
}

func (k *Private) clamp() {
	k.b[0] &= 248
	k.b[31] = k.b[31]&127 | 64
}

func parse(text string) ([32]byte, error) {
	if len(text) != textLen {
		return [32]byte{}, fmt.Errorf("has %d characters, want %d of base64", len(text), textLen)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return [32]byte{}, fmt.Errorf("is not base64")
	}
	if len(b) != 32 {
		return [32]byte{}, fmt.Errorf("has %d bytes, want 32", len(b))
	}
	return [32]byte(b), nil
}

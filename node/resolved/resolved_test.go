package resolved

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// A bus answers as the system's bus with a systemd-resolved on it does.
type bus struct {
	silent string            // the step that it does not answer: "AUTH" or a method
	fault  map[string]string // errors, by method

	mu    sync.Mutex              // guards the rest
	have  map[string]dbus.Variant // properties of the link
	calls []string                // of properties, in their order
}

// took returns the properties that were set since it was called last.
func (b *bus) took() (calls []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls, b.calls = b.calls, nil
	return calls
}

func (b *bus) set(property string, value any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, property)
	b.have[property] = dbus.MakeVariant(value)
}

func (b *bus) listen(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Skip(err) // a system without
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return socket
}

// serve serves one connection until it ends.
func (b *bus) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		word := strings.Trim(line, "\x00\r\n")
		switch {
		case b.silent == "AUTH" && strings.HasPrefix(word, "AUTH"):
		case word == "AUTH":
			c.Write([]byte("REJECTED EXTERNAL\r\n"))
		case strings.HasPrefix(word, "AUTH EXTERNAL") && b.fault["AUTH"] != "":
			c.Write([]byte("REJECTED\r\n"))
		case strings.HasPrefix(word, "AUTH EXTERNAL"):
			c.Write([]byte("OK 1234deadbeef\r\n"))
		}
		if word == "BEGIN" {
			break
		}
	}
	for {
		call, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		method := call.Headers[dbus.FieldMember].Value().(string)
		if b.silent == method {
			continue
		}
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(call.Serial())}}
		switch name := b.fault[method]; {
		case call.Flags&dbus.FlagNoAutoStart == 0 && method != "Hello":
			name = "test.WouldStartIt"
			fallthrough
		case name != "":
			reply.Type = dbus.TypeError
			reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant(name)
			reply.Body = []any{"so it says"}
		case method == "Hello":
			reply.Body = []any{":1.7"}
		case method == "GetLink":
			reply.Body = []any{dbus.ObjectPath("/org/freedesktop/resolve1/link/_37")}
		case method == "GetAll":
			b.mu.Lock()
			reply.Body = []any{maps.Clone(b.have)}
			b.mu.Unlock()
		default:
			property, value := strings.TrimPrefix(method, "SetLink"), call.Body[1]
			switch property {
			case "DNS":
				value = stored[[]server](value)
			case "DNSEx":
				value = stored[[]serverEx](value)
			case "Domains":
				value = stored[[]domain](value)
			}
			b.set(property, value)
		}
		if len(reply.Body) > 0 {
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(reply.Body...))
		}
		if reply.EncodeTo(c, binary.LittleEndian) != nil {
			return
		}
	}
}

// stored is a value of a message in a type that stands for it.
func stored[T any](value any) (v T) {
	if err := dbus.Store([]any{value}, &v); err != nil {
		panic(err)
	}
	return v
}

var link = Link{Index: 7, Server: netip.MustParseAddrPort("10.210.0.1:53"), Domains: []string{"jiji", "210.10.in-addr.arpa"}}

// fresh are the properties of a link that nobody has told systemd-resolved of, but
// those that a version lacks.
func fresh(lacks ...string) map[string]dbus.Variant {
	have := map[string]dbus.Variant{
		"ScopesMask": dbus.MakeVariant(uint64(0)), "DNS": dbus.MakeVariant([]server{}), "DNSEx": dbus.MakeVariant([]serverEx{}), "Domains": dbus.MakeVariant([]domain{}),
		"DefaultRoute": dbus.MakeVariant(true), "LLMNR": dbus.MakeVariant("yes"), "MulticastDNS": dbus.MakeVariant("no"),
		"DNSOverTLS": dbus.MakeVariant("no"), "DNSSEC": dbus.MakeVariant("allow-downgrade"),
	}
	for _, l := range lacks {
		delete(have, l)
	}
	return have
}

func TestApply(t *testing.T) {
	all := []string{"DefaultRoute", "Domains", "LLMNR", "MulticastDNS", "DNSOverTLS", "DNSSEC", "DNSEx"}
	for _, c := range []struct {
		name           string
		have           map[string]dbus.Variant
		changed, calls []string
		lost           string
	}{
		{"current", fresh(), []string{"DefaultRoute", "Domains", "LLMNR", "DNSSEC", "DNSEx"}, all, "DNSEx"},
		{"version 245", fresh("DNSEx"), []string{"DefaultRoute", "Domains", "LLMNR", "DNSSEC", "DNS"}, append(slices.Clone(all[:6]), "DNS"), "DNS"},
		{"version 239", fresh("DNSEx", "DefaultRoute"), []string{"Domains", "LLMNR", "DNSSEC", "DNS"}, append(slices.Clone(all[1:6]), "DNS"), "DNS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bus{have: c.have}
			socket := b.listen(t)
			for _, step := range []struct{ changed, calls []string }{{c.changed, c.calls}, {nil, nil}} {
				changed, err := Apply(t.Context(), socket, link)
				calls := b.took()
				if err != nil || !slices.Equal(changed, step.changed) || !slices.Equal(calls, step.calls) {
					t.Fatalf("changed %q by %q, %v; want %q by %q", changed, calls, err, step.changed, step.calls)
				}
			}
			if c.lost == "DNSEx" {
				b.set(c.lost, []serverEx{{inet, []byte{10, 210, 0, 1}, 5300, ""}})
			} else {
				b.set(c.lost, []server{{inet, []byte{192, 0, 2, 1}}})
			}
			if changed, err := Apply(t.Context(), socket, link); err != nil || !slices.Equal(changed, []string{c.lost}) {
				t.Errorf("changed %q, %v; want %q", changed, err, c.lost)
			}
		})
	}
}

// Everything that can be wrong is said in one line, within the time limit.
func TestApplyFails(t *testing.T) {
	refused := func(method, name string) *bus { return &bus{have: fresh(), fault: map[string]string{method: name}} }
	for _, c := range []struct {
		name string
		bus  *bus
		port uint16
		want string
	}{
		{name: "no bus", want: ErrAbsent.Error()},
		{name: "not on the bus", bus: refused("GetLink", "org.freedesktop.DBus.Error.ServiceUnknown"), want: ErrAbsent.Error()},
		{name: "nor is its name", bus: refused("GetLink", "org.freedesktop.DBus.Error.NameHasNoOwner"), want: ErrAbsent.Error()},
		{name: "ended meanwhile", bus: refused("SetLinkDNSEx", "org.freedesktop.DBus.Error.NameHasNoOwner"), want: ErrAbsent.Error()},
		{name: "no link", bus: refused("GetLink", "org.freedesktop.resolve1.NoSuchLink"), want: ErrNoLink.Error()},
		{name: "no link any more", bus: refused("GetAll", "org.freedesktop.DBus.Error.UnknownObject"), want: ErrNoLink.Error()},
		{name: "networkd has it", bus: refused("SetLinkDomains", "org.freedesktop.resolve1.LinkBusy"), want: "set Domains of systemd-resolved: systemd-networkd manages the interface"},
		{name: "denied", bus: refused("SetLinkLLMNR", "org.freedesktop.DBus.Error.AccessDenied"), want: "set LLMNR of systemd-resolved: so it says"},
		{name: "denied by the bus", bus: refused("AUTH", "x"), want: "connect to the system bus: dbus: authentication failed"},
		{name: "too old for a port", bus: &bus{have: fresh("DNSEx")}, port: 5300, want: "systemd-resolved's DNSEx: it has none: it is too old"},
		{name: "of another type", bus: &bus{have: map[string]dbus.Variant{"Domains": dbus.MakeVariant("jiji")}}, want: "systemd-resolved's Domains: dbus.Store: type mismatch"},
		{name: "silent bus", bus: &bus{silent: "AUTH"}, want: "connect to the system bus: no answer within 2s"},
		{name: "silent later", bus: &bus{silent: "Hello"}, want: "connect to the system bus: no answer within 2s"},
		{name: "silent resolved", bus: &bus{silent: "GetLink", have: fresh()}, want: "ask systemd-resolved for the interface: no answer within 2s"},
		{name: "silent at the end", bus: &bus{silent: "SetLinkDNSEx", have: fresh()}, want: "set DNSEx of systemd-resolved: no answer within 2s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(t.TempDir(), "absent")
			if c.bus != nil {
				socket = c.bus.listen(t)
			}
			l := link
			if c.port != 0 {
				l.Server = netip.AddrPortFrom(l.Server.Addr(), c.port)
			}
			start := time.Now()
			_, err := Apply(t.Context(), socket, l)
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %s", err, c.want)
			}
			if took := time.Since(start); took > patience+time.Second {
				t.Errorf("after %v", took)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Apply(ctx, filepath.Join(t.TempDir(), "absent"), link); err == nil || errors.Is(err, ErrNoLink) {
		t.Errorf("told to end: %v", err)
	}
}

// Watch tells of a row of changes, and of many at one time once.
func TestWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "resolve")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var times atomic.Int32
	news := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- watch(ctx, dir, func() { times.Add(1); news <- struct{}{} }) }()
	write := func() {
		if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	start, end := time.Now(), time.After(10*time.Second)
	for heard := false; !heard; { // the watch begins some time
		write()
		select {
		case <-news:
			heard = true
		case <-time.After(10 * time.Millisecond):
		case <-end:
			t.Fatal("nothing was told")
		}
	}
	if n, took := times.Load(), time.Since(start); n > int32(took/settle) {
		t.Errorf("told %d times in %v, want once in %v at most", n, took, settle)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

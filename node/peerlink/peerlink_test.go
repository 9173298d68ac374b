package peerlink

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const patienceOfTest = 10 * time.Second // for what takes milliseconds

var loopback6 = netip.MustParseAddr("::1")

// freePort returns one that nobody has on addr, neither for TCP nor for UDP.
func freePort(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			t.Skipf("no such loopback address here: %v", err)
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		u, err := net.ListenPacket("udp", at.String())
		l.Close()
		if err == nil {
			u.Close()
			return at
		}
	}
	t.Fatal("no port is free for both protocols")
	panic("unreachable")
}

// A buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// running returns a Link that runs until the test ends.
func running(t *testing.T, cfg Config) (*Link, *buffer) {
	t.Helper()
	log := &buffer{}
	cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	l, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l, log
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patienceOfTest); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patienceOfTest, what)
		}
	}
}

func peers(a ...netip.Addr) func() []netip.Addr { return func() []netip.Addr { return a } }

// Two nodes on two addresses: what one tells the other hears, and asks for.
func TestTwoNodes(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs 127.0.0.2, as Linux has it")
	}
	a, b := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	atA := freePort(t, a)
	type said struct {
		from netip.Addr
		n    Notice
	}
	heard := make(chan said, 10)
	has := map[[16]byte]int64{writerA: 7, writerB: 1 << 62}
	la, _ := running(t, Config{Addr: atA, Peers: peers(a, b)})
	lb, _ := running(t, Config{Addr: netip.AddrPortFrom(b, atA.Port()), Peers: peers(a, b),
		Heard:    func(from netip.Addr, n Notice) { heard <- said{from, n} },
		Versions: func(context.Context) (map[[16]byte]int64, error) { return has, nil }})

	began := time.Now()
	la.Tell(Notice{writerA, 8})
	for range 2 { // and the repetition
		select {
		case got := <-heard:
			if got != (said{a, Notice{writerA, 8}}) {
				t.Errorf("heard %v", got)
			}
			t.Logf("after %v", time.Since(began))
		case <-time.After(patienceOfTest):
			t.Fatal("heard nothing")
		}
	}
	got, err := la.Versions(t.Context(), b)
	if err != nil || !maps.Equal(got, has) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := lb.Versions(t.Context(), a); err == nil || !strings.Contains(err.Error(), "127.0.0.2 for its versions: it answered \"503 Service Unavailable\": \"this node's registry has no versions") {
		t.Errorf("%v, %v", got, err)
	}
	if s := lb.Stats(); s.Heard != 2 || s.Answered != 1 {
		t.Errorf("%+v", s)
	}
}

func TestVersionsFail(t *testing.T) {
	at := freePort(t, loopback6)
	stuck := func(ctx context.Context) (map[[16]byte]int64, error) { <-ctx.Done(); return nil, ctx.Err() }
	var answer atomic.Pointer[func(ctx context.Context) (map[[16]byte]int64, error)]
	l, _ := running(t, Config{Addr: at, Peers: peers(loopback6),
		Versions: func(ctx context.Context) (map[[16]byte]int64, error) { return (*answer.Load())(ctx) }})
	for _, c := range []struct {
		name   string
		answer func(ctx context.Context) (map[[16]byte]int64, error)
		limit  time.Duration // 0: the default
		want   string
	}{
		{"an error", func(context.Context) (map[[16]byte]int64, error) { return nil, errors.New("registry is closed") }, 0, "registry is closed"},
		{"stuck", stuck, 0, "deadline exceeded"},
		{"stuck, and the caller in a hurry", stuck, 100 * time.Millisecond, "deadline exceeded"},
		{"a version below 0", func(context.Context) (map[[16]byte]int64, error) { return map[[16]byte]int64{writerA: -1}, nil }, 0, "parse the answer: writer 0a000000000000000000000000000001"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if c.limit > 0 {
			ctx, cancel = context.WithTimeout(t.Context(), c.limit)
		}
		answer.Store(&c.answer)
		began := time.Now()
		got, err := l.Versions(ctx, loopback6)
		cancel()
		if took := time.Since(began); err == nil || got != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "ask peer ::1 for its versions: ") || took > 2*askTimeout {
			t.Errorf("%s: %v, %v, after %v", c.name, got, err, took)
		}
	}
	if _, err := l.Versions(t.Context(), netip.MustParseAddr("::")); err == nil {
		t.Error("the unspecified address answered")
	}
}

// A peer may answer whatever it likes.
func TestHostileAnswers(t *testing.T) {
	forever := func(prefix, endless string) func(net.Conn) {
		return func(c net.Conn) {
			_, err := io.WriteString(c, prefix)
			for err == nil {
				_, err = io.WriteString(c, endless)
			}
		}
	}
	once := func(answer string) func(net.Conn) { return func(c net.Conn) { io.WriteString(c, answer) } }
	for _, c := range []struct {
		name   string
		answer func(net.Conn)
		want   string
	}{
		{"closes", func(net.Conn) {}, "EOF"},
		{"no HTTP", once("SSH-2.0-OpenSSH_9.9\r\n"), "malformed HTTP"},
		{"endless headers", forever("HTTP/1.1 200 OK\r\n", "X-A: "+strings.Repeat("a", 1000)+"\r\n"), "exceeded"},
		{"endless body", forever("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat(" ", 65536)), "more than 4194304 bytes"},
		{"redirect", once("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:8080/v1/queries\r\nContent-Length: 0\r\n\r\n"), "302 Found"},
		{"cut short", once("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "unexpected EOF"},
		{"compressed", once("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n\x1f\x8b"), "parse the answer"},
		{"endless failure", forever("HTTP/1.1 500 No\r\n\r\n", "\n\x1b[2J"), `500 No`},
		{"silent", func(c net.Conn) { io.Copy(io.Discard, c) }, "deadline exceeded"},
		{"drips", func(c net.Conn) {
			for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err == nil; time.Sleep(20 * time.Millisecond) {
				_, err = io.WriteString(c, " ")
			}
		}, "deadline exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			at := freePort(t, loopback6)
			streams, err := net.Listen("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer streams.Close()
			go func() {
				for {
					s, err := streams.Accept()
					if err != nil {
						return
					}
					go func() {
						defer s.Close()
						_, _ = http.ReadRequest(bufio.NewReader(s))
						c.answer(s)
					}()
				}
			}()
			l := linkOf()
			l.cfg.Addr = at
			got, err := l.Versions(t.Context(), loopback6)
			if err == nil || got != nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 2000 || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// dial connects to a Link, and ends with the test.
func dial(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", at.String(), patienceOfTest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patienceOfTest))
	return c
}

func TestRequests(t *testing.T) {
	for _, c := range []struct{ name, request, want string }{
		{"good", "GET /v1/versions HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK|{\"versions\":{\"0a000000000000000000000000000001\":7}}"},
		{"another path", "GET /v1/../ HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"head", "HEAD /v1/versions HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		{"post", "POST /v1/versions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", "405"},
		{"options", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"proxy", "CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"garbage", "\x16\x03\x01\x02\x00\x01\r\n\r\n", "400"},
		{"large header", "GET /v1/versions HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 16<<10) + "\r\n\r\n", "431"},
		{"large target", "GET /" + strings.Repeat("a", 16<<10) + " HTTP/1.1\r\n\r\n", "431"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			at := freePort(t, loopback6)
			running(t, Config{Addr: at, Peers: peers(loopback6), Versions: func(context.Context) (map[[16]byte]int64, error) {
				return map[[16]byte]int64{writerA: 7}, nil
			}})
			s := dial(t, at)
			io.WriteString(s, c.request+c.request) // one is answered
			got, _ := io.ReadAll(s)                // which may end by a reset
			for part := range strings.SplitSeq(c.want, "|") {
				if !strings.Contains(string(got), part) || strings.Count(string(got), "HTTP/1.") != 1 {
					t.Errorf("%q, want %q once", got, part)
				}
			}
		})
	}
}

// Somebody who is no member learns nothing and is not listened to.
func TestStrangers(t *testing.T) {
	at := freePort(t, loopback6)
	l, log := running(t, Config{Addr: at, Peers: peers(netip.MustParseAddr("fdcc::a")), Heard: func(netip.Addr, Notice) { t.Error("heard a stranger") }})
	s := dial(t, at)
	io.WriteString(s, "GET /v1/versions HTTP/1.1\r\nHost: x\r\n\r\n")
	if got, _ := io.ReadAll(s); len(got) > 0 {
		t.Errorf("answered %q", got)
	}
	u, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write(Notice{writerA, 1}.append(nil))
	eventually(t, "both are counted", func() bool { return l.Stats().Strangers == 2 })
	if text := log.String(); text != "" {
		t.Errorf("logged %s", text)
	}
}

// Connections that send nothing, or a byte now and then, end soon, and there are few of them.
func TestSlowRequests(t *testing.T) {
	at := freePort(t, loopback6)
	l, _ := running(t, Config{Addr: at, Peers: peers(loopback6), Versions: func(context.Context) (map[[16]byte]int64, error) { return nil, nil }})
	began := time.Now()
	var all sync.WaitGroup
	for range 2 * maxPerPeer {
		s := dial(t, at)
		all.Go(func() {
			for b := []byte("G"); ; b[0] = 'E' {
				if _, err := s.Write(b); err != nil {
					return
				}
				s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := io.ReadAll(s); !isTimeout(err) {
					return // it was closed
				}
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > 5*headerTimeout {
		t.Errorf("the last one was closed after %v, want about %v", took, headerTimeout)
	}
	if s := l.Stats(); s.Rejected != maxPerPeer {
		t.Errorf("%+v", s)
	}
	// Those are gone: others have their places.
	eventually(t, "answered again", func() bool { _, err := l.Versions(t.Context(), loopback6); return err == nil })
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// The sockets die under a running Link; it opens others, and says so once.
func TestRunReopens(t *testing.T) {
	at := freePort(t, loopback6)
	for _, which := range []string{"packets", "streams"} {
		t.Run(which, func(t *testing.T) {
			l, log := running(t, Config{Addr: at, Peers: peers(loopback6), Versions: func(context.Context) (map[[16]byte]int64, error) { return nil, nil }})
			if which == "packets" {
				l.opened.packets.Close()
			} else {
				l.opened.streams.Close()
			}
			eventually(t, "opened again", func() bool { return l.Stats().Reopenings == 1 })
			if _, err := l.Versions(t.Context(), loopback6); err != nil {
				t.Error(err)
			}
			if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "lost the sockets") || !strings.Contains(text, "listening for peers again") {
				t.Errorf("logged\n%s", text)
			}
		})
	}
	t.Run("somebody else is there meanwhile", func(t *testing.T) {
		l, log := running(t, Config{Addr: at, Peers: peers(loopback6)})
		l.opened.Close()
		other := retryListen(t, at) // may lose the race against the first retry
		if other == nil {
			t.Skip("the link was back at once")
		}
		time.Sleep(5 * firstRetry) // a few attempts fail
		if l.Stats().Reopenings != 0 {
			t.Error("opened what somebody else has")
		}
		other.Close()
		eventually(t, "opened again", func() bool { return l.Stats().Reopenings == 1 })
		if text := log.String(); strings.Count(text, "\n") != 2 {
			t.Errorf("logged\n%s", text)
		}
	})
}

func retryListen(t *testing.T, at netip.AddrPort) net.Listener {
	for range 10 {
		if l, err := net.Listen("tcp", at.String()); err == nil {
			return l
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func TestListen(t *testing.T) {
	at := freePort(t, loopback6)
	for _, bad := range []string{"[::]:8786", "0.0.0.0:8786", "[fdcc::1]:0", "[::ffff:127.0.0.1]:8786"} {
		if _, err := Listen(Config{Addr: netip.MustParseAddrPort(bad), Peers: peers()}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := Listen(Config{Peers: peers()}); err == nil {
		t.Error("no address was accepted")
	}
	if _, err := Listen(Config{Addr: at}); err == nil || !strings.Contains(err.Error(), "Peers") {
		t.Errorf("without Peers: %v", err)
	}
	for _, proto := range []string{"tcp", "udp"} {
		t.Run(proto, func(t *testing.T) {
			l, err := Listen(Config{Addr: at, Peers: peers()})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil { // and frees both
				t.Error(err)
			}
			var other io.Closer
			if proto == "tcp" {
				other, err = net.Listen("tcp", at.String())
			} else {
				other, err = net.ListenPacket("udp", at.String())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			_, err = Listen(Config{Addr: at, Peers: peers()})
			if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("listen for peers: listen %s6 %v: ", proto, at)) {
				t.Errorf("%v", err)
			}
		})
	}
	if runtime.GOOS == "linux" {
		// jiji0 may not have its address yet, or have lost it.
		l, err := Listen(Config{Addr: netip.AddrPortFrom(netip.MustParseAddr("fdcc:1:2:3::4"), at.Port()), Peers: peers()})
		if err != nil {
			t.Fatalf("on an address that is not there: %v", err)
		}
		l.Close()
	}
}

func TestBoots(t *testing.T) {
	here := netip.IPv6Loopback()
	at := freePort(t, here)
	l, _ := running(t, Config{Addr: at, Peers: peers(here)})
	const first, second = "00000000000000aa", "00000000000000bb"
	ask := func(boot string) []Boot {
		t.Helper()
		others, err := l.Boots(t.Context(), here, boot)
		if err != nil {
			t.Fatal(err)
		}
		return others
	}
	if others := ask(first); len(others) != 0 {
		t.Errorf("others before anybody asked: %v", others)
	}
	if others := ask(first); len(others) != 0 {
		t.Errorf("a process is its own other: %v", others)
	}
	if others := ask(second); len(others) != 1 || others[0].ID != first || others[0].Age > time.Minute {
		t.Errorf("others of the second: %v, want the first", others)
	}
	if others := ask(first); len(others) != 1 || others[0].ID != second {
		t.Errorf("others of the first: %v, want the second", others)
	}
	for _, boot := range []string{"", "aa", "00000000000000AA", "zz00000000000000", first + "00"} {
		if _, err := l.Boots(t.Context(), here, boot); err == nil {
			t.Errorf("boot %q was taken", boot)
		}
	}
	c := dial(t, at)
	io.WriteString(c, "GET /v1/boots?boot=nonsense HTTP/1.1\r\nHost: x\r\n\r\n")
	if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != http.StatusBadRequest {
		t.Errorf("a boot that is none: %v, %v", answer, err)
	}
}

func TestAgent(t *testing.T) {
	here := netip.IPv6Loopback()
	tells := Agent{Version: "corrosion 0.2.0-beta.0 (11edb1e2)", Managed: true}
	l, _ := running(t, Config{Addr: freePort(t, here), Peers: peers(here), Agent: func() Agent { return tells }})
	for _, want := range []Agent{tells, {}} {
		tells = want
		if got, err := l.Agent(t.Context(), here); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	silent, _ := running(t, Config{Addr: freePort(t, here), Peers: peers(here)})
	if _, err := silent.Agent(t.Context(), here); err == nil || !strings.Contains(err.Error(), "tells nothing of its agent") {
		t.Errorf("of a node that does not tell: %v", err)
	}
}

func TestParseAgent(t *testing.T) {
	for _, body := range []string{"", "null", "[]", "{}", `{"version":7}`, `{"version":null}`, `{"version":"a\nb"}`, `{"version":"\u001b[31m"}`,
		`{"version":"` + strings.Repeat("x", maxVersion+1) + `"}`, `{"version":"x","managed":1}`} {
		if a, err := parseAgent([]byte(body)); err == nil || a != (Agent{}) || len(err.Error()) > 300 {
			t.Errorf("%.60s: %+v, %v", body, a, err)
		}
	}
	if a, err := parseAgent([]byte(`{"version":"klukai 0.1.4","more":[]}`)); err != nil || a != (Agent{Version: "klukai 0.1.4"}) {
		t.Errorf("%+v, %v", a, err)
	}
}

// Of a flood of boots a few are remembered, and none for ever.
func TestGuestbook(t *testing.T) {
	var g guestbook
	a := netip.MustParseAddr("fdcc::1")
	now := time.Now()
	for i := range 1000 {
		if n := len(g.enter(a, fmt.Sprintf("%016x", i), now)); n > maxBoots {
			t.Fatalf("%d others, want at most %d", n, maxBoots)
		}
	}
	if others := g.enter(netip.MustParseAddr("fdcc::2"), "00000000000000ff", now); len(others) != 0 {
		t.Errorf("others of another address: %v", others)
	}
	if others := g.enter(a, "00000000000000ff", now.Add(bootsKept+time.Second)); len(others) != 0 {
		t.Errorf("others after %v: %v", bootsKept, others)
	}
}

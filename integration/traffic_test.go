//go:build linux

package integration_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
)

func runHere(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// listenTCP listens on a free port of an address of the host, until the test ends.
func listenTCP(t *testing.T, h *lab.Host, addr netip.Addr) *net.TCPListener {
	t.Helper()
	var l *net.TCPListener
	err := h.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		t.Fatalf("listen on %s: %v", h.Name, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialTCP connects the host to an address. Nothing on the connection takes longer than
// limit.
func dialTCP(t *testing.T, h *lab.Host, to netip.AddrPort, limit time.Duration) *net.TCPConn {
	t.Helper()
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: limit}).Dial("tcp", to.String())
		return err
	})
	if err != nil {
		t.Fatalf("connect %s to %s: %v", h.Name, to, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	return c.(*net.TCPConn)
}

// transfer sends bytes from one container to another, which checks that they are the
// right ones, and returns the address that the far end saw.
func transfer(t *testing.T, from, to *lab.Container, size int64, limit time.Duration) netip.Addr {
	t.Helper()
	l := listenTCP(t, to.Host, to.Addr)
	type arrived struct {
		from netip.Addr
		sum  [sha256.Size]byte
		n    int64
		err  error
	}
	result := make(chan arrived, 1)
	go func() {
		l.SetDeadline(time.Now().Add(limit))
		c, err := l.AcceptTCP()
		if err != nil {
			result <- arrived{err: err}
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		h := sha256.New()
		n, err := io.Copy(h, c)
		result <- arrived{c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), [sha256.Size]byte(h.Sum(nil)), n, err}
	}()
	c := dialTCP(t, from.Host, l.Addr().(*net.TCPAddr).AddrPort(), limit)
	sent := sha256.New()
	noise := rand.NewChaCha8([32]byte{})
	_, err := io.Copy(c, io.TeeReader(io.LimitReader(noise, size), sent))
	if err = errors.Join(err, c.CloseWrite()); err != nil {
		t.Fatalf("send %d bytes from %s to %s: %v", size, from.Name, to.Name, err)
	}
	got := <-result
	if got.err != nil || got.n != size || got.sum != [sha256.Size]byte(sent.Sum(nil)) {
		t.Fatalf("%s got %d bytes of %d from %s, with the checksum %x, want %x: %v",
			to.Name, got.n, size, from.Name, got.sum, sent.Sum(nil), got.err)
	}
	return got.from
}

// A pinger pings once every 100 ms, until the test ends.
type pinger struct {
	t *testing.T
	p *lab.Process
}

func startPing(t *testing.T, from *lab.Host, to string) *pinger {
	t.Helper()
	p := &pinger{t, from.Spawn("ping", "-n", "-D", "-i0.1", to)}
	p.p.WaitLog("bytes from", 5*time.Second)
	return p
}

// answers returns when the answers so far came.
func (p *pinger) answers() (at []time.Time) {
	p.t.Helper()
	for line := range strings.Lines(p.p.Log()) {
		stamp, _, found := strings.Cut(line, "] 64 bytes from ")
		if !found {
			continue
		}
		seconds, err := strconv.ParseFloat(strings.TrimPrefix(stamp, "["), 64)
		if err != nil {
			p.t.Fatalf("%s printed %q", p.p.Name, line)
		}
		at = append(at, time.UnixMicro(int64(seconds*1e6)))
	}
	return at
}

// gap returns the longest time without an answer.
func (p *pinger) gap() (longest time.Duration) {
	at := p.answers()
	for i := range at[1:] {
		longest = max(longest, at[i+1].Sub(at[i]))
	}
	return longest
}

// resumes waits until the ping has three answers more.
func (p *pinger) resumes(limit time.Duration) {
	p.t.Helper()
	had := len(p.answers())
	lab.Eventually(p.t, limit, "the ping is answered again", func() error {
		if got := len(p.answers()); got < had+3 {
			return fmt.Errorf("%d answers more", got-had)
		}
		return nil
	})
}

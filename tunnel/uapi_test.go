package tunnel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

func mustListen(t *testing.T, path string) *socket {
	t.Helper()
	s, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSocket(t *testing.T) {
	t.Run("is private and goes with Close", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "wireguard", "jiji0.sock") // makes the directory
		s := mustListen(t, path)
		fi, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("mode %v, want 0600", fi.Mode())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Close: %v", err)
		}
	})
	t.Run("replaces what a dead process left", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "jiji0.sock")
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		stale.SetUnlinkOnClose(false)
		stale.Close()
		mustListen(t, path)
		if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	})
	t.Run("refuses one that answers", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "jiji0.sock")
		first := mustListen(t, path)
		if _, err := listenSocket(path); err == nil || !strings.Contains(err.Error(), path+" is served by another process") {
			t.Errorf("got %v", err)
		}
		if !first.inPlace() {
			t.Error("the one that answers was replaced")
		}
	})
	t.Run("refuses what is no socket", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "jiji0.sock")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := listenSocket(path); err == nil || !strings.Contains(err.Error(), path+" is not a socket") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("leaves another's file alone", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "jiji0.sock")
		first := mustListen(t, path)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if first.inPlace() {
			t.Error("in place though it is gone")
		}
		second := mustListen(t, path)
		if first.inPlace() {
			t.Error("in place though another is there")
		}
		if err := first.Close(); err != nil {
			t.Error(err)
		}
		if !second.inPlace() {
			t.Error("Close removed another's file")
		}
	})
}

// A client that stops in the middle of a request must not stop the others.
func TestAnswerKeepsNobodyWaiting(t *testing.T) {
	dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	defer dev.Close()
	connect := func() net.Conn {
		ours, theirs := net.Pipe()
		go answer(dev, theirs)
		t.Cleanup(func() { ours.Close() })
		ours.SetDeadline(time.Now().Add(10 * time.Second))
		return ours
	}
	hanging := connect()
	fmt.Fprint(hanging, "set=1\nlisten_port=0\n")
	silent := connect()
	fmt.Fprint(silent, "get=1\n\n") // and it does not read the answer

	c := connect()
	r := bufio.NewReader(c)
	for _, request := range []string{"get=1\n\n", "set=1\nfwmark=7\n\n", "get=1\n\n", "set=1\nlisten_port=x\n\n"} {
		fmt.Fprint(c, request)
		var reply strings.Builder
		for !strings.HasSuffix(reply.String(), "\n\n") {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatalf("%q: %v after %q", request, err, reply.String())
			}
			reply.WriteString(line)
		}
		if failed := strings.Contains(request, "x"); strings.Contains(reply.String(), "errno=0") == failed {
			t.Errorf("%q is answered %q", request, reply.String())
		}
	}
	if _, err := fmt.Fprint(c, "nonsense=1\n\n"); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("nonsense is answered %q, %v, want the end of the connection", rest, err)
	}
	if text, err := dev.IpcGet(); err != nil || !strings.Contains(text, "fwmark=7") {
		t.Errorf("the device has %q: %v", text, err)
	}
}

package node

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// A service manager that does not read delays the node, and does not stop it.
func TestNotifyIsNotKeptWaiting(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs a socket whose queue Linux limits")
	}
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := sdNotify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("read %q, %v", b[:n], err)
	}

	done := make(chan error, 1)
	go func() { // more than net.unix.max_dgram_qlen
		for range 10_000 {
			if err := sdNotify("WATCHDOG=1"); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		if !os.IsTimeout(err) {
			t.Errorf("error %v, want that the time is over", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still waiting after 20 s")
	}

	t.Setenv("NOTIFY_SOCKET", "")
	if err := sdNotify("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

package tunnel

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"
)

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

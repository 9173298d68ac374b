//go:build linux

package integration_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

// What wg(8) shows is what status shows.
func TestWgShowAgreesWithStatus(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 3)
	m.startAll()
	web1 := m.servers[0]
	reach(t, web1.Host, wireGuardIP(1), 5*time.Second)

	before := status(t, web1)
	dump := strings.Split(strings.TrimSuffix(web1.Run("wg", "show", "jiji0", "dump"), "\n"), "\n")
	endpoints := pairs(web1.Run("wg", "show", "jiji0", "endpoints"))
	handshakes := pairs(web1.Run("wg", "show", "jiji0", "latest-handshakes"))
	after := status(t, web1)

	self := strings.Split(dump[0], "\t")
	private, err := wgkey.ParsePrivate(self[0])
	if err != nil || private.Public() != before.Server.Key || self[1] != before.Server.Key.String() {
		t.Errorf("dump has the public key %s, status %s: %v", self[1], before.Server.Key, err)
	}
	if self[2] != strconv.Itoa(int(before.Interface.ListenPort)) || self[3] != "off" {
		t.Errorf("dump has port %s and fwmark %s, want %d and off", self[2], self[3], before.Interface.ListenPort)
	}
	if len(dump)-1 != len(before.Peers) {
		t.Fatalf("dump has %d peers, status %d", len(dump)-1, len(before.Peers))
	}
	for _, line := range dump[1:] {
		f := strings.Split(line, "\t")
		i := 0
		for i < len(before.Peers) && before.Peers[i].Key.String() != f[0] {
			i++
		}
		if i == len(before.Peers) {
			t.Errorf("status does not have peer %s of dump", f[0])
			continue
		}
		b, a := before.Peers[i], after.Peers[i]
		if f[1] != "(none)" || f[7] != "25" {
			t.Errorf("%s: dump has preshared key %s and keepalive %s", b.ID, f[1], f[7])
		}
		if f[2] != b.Endpoint.String() || endpoints[f[0]] != f[2] {
			t.Errorf("%s: endpoint %s in dump, %s in endpoints, %s in status", b.ID, f[2], endpoints[f[0]], b.Endpoint)
		}
		if !sameList(f[3], b.Subnet.String(), b.ManagementIP.String()+"/128") {
			t.Errorf("%s: dump has the allowed IPs %s", b.ID, f[3])
		}
		if !between(f[4], b.LastHandshake.Unix(), a.LastHandshake.Unix()) || !between(handshakes[f[0]], b.LastHandshake.Unix(), a.LastHandshake.Unix()) {
			t.Errorf("%s: latest handshake %s in dump, %s in latest-handshakes, %d in status", b.ID, f[4], handshakes[f[0]], b.LastHandshake.Unix())
		}
		if !between(f[5], int64(b.RxBytes), int64(a.RxBytes)) || !between(f[6], int64(b.TxBytes), int64(a.TxBytes)) {
			t.Errorf("%s: dump has received %s and sent %s, status %d and %d", b.ID, f[5], f[6], b.RxBytes, b.TxBytes)
		}
	}

	for _, what := range []string{"wg", "wg show", "wg show jiji0", "wg show all dump", "wg showconf jiji0"} {
		out := web1.Run("sh", "-c", what)
		for _, p := range before.Peers {
			if !strings.Contains(out, p.Key.String()) || !strings.Contains(out, p.Endpoint.String()) {
				t.Errorf("%q does not show peer %s:\n%s", what, p.ID, out)
			}
		}
	}
	if out := web1.Run("wg", "show", "interfaces"); out != "jiji0\n" {
		t.Errorf("wg show interfaces: %q", out)
	}
	waitPeer(t, web1, "web2", time.Second, func(p control.Peer) bool { return p.State == "up" }) // it did no harm
}

// pairs reads lines of a key and a value.
func pairs(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "\t")
		m[key] = value
	}
	return m
}

func between(text string, low, high int64) bool {
	n, err := strconv.ParseInt(text, 10, 64)
	return err == nil && low <= n && n <= high
}

// sameList reports whether the comma-separated text has these elements, in any order.
func sameList(text string, want ...string) bool {
	got := strings.Split(text, ",")
	for _, w := range want {
		found := false
		for _, g := range got {
			found = found || g == w
		}
		if !found {
			return false
		}
	}
	return len(got) == len(want)
}

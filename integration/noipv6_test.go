//go:build linux

package integration_test

import (
	"strings"
	"testing"
	"time"
)

// A machine without IPv6 has no management address, says so, and is in the mesh.
func TestNodeWithoutIPv6RunsDegraded(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1, web2 := m.servers[0], m.servers[1]
	for _, scope := range []string{"all", "default"} {
		web1.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6")
	}
	a, b := web1.Container("a", "10.210.0.10"), web2.Container("b", "10.210.1.10")
	m.startAll()

	m.nodes[0].WaitLog("degraded", time.Second)
	for text, where := range map[string]string{m.nodes[0].Log(): "log", strings.Join(status(t, web1).Warnings, "\n"): "status", web1.Run("jiji-node", "status"): "status for people"} {
		if !strings.Contains(text, "IPv6 is off") || !strings.Contains(text, "disable_ipv6") {
			t.Errorf("the %s does not say that IPv6 is off:\n%s", where, text)
		}
	}
	if st := status(t, web2); len(st.Warnings) != 0 {
		t.Errorf("web2 warns: %q", st.Warnings)
	}
	if out := web1.Run("ip", "address", "show", "jiji0"); strings.Contains(out, "inet6") {
		t.Errorf("jiji0 has an IPv6 address:\n%s", out)
	}
	reach(t, a.Host, b.Addr.String(), 5*time.Second)
	reach(t, b.Host, a.Addr.String(), 5*time.Second)
	transfer(t, a, b, 1<<20, 10*time.Second)
	if got := strings.TrimSpace(a.Run("dig", "+short", "web2.node.jiji")); got != "10.210.1.1" {
		t.Errorf("web2.node.jiji is %q", got)
	}
	if log := m.nodes[0].Log(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "ERR ") {
		t.Errorf("errors in the log:\n%s", log)
	}
	m.nodes[0].Stop()
	checkNothingLeft(t, web1)
}

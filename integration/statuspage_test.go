//go:build linux

package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node"
	"github.com/acidtib/jiji-node/node/control"
)

// The page, metrics and health are there by default for the server itself, and in
// the mesh where --status-listen has them; not outside.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 2)
	web1, web2 := m.servers[0], m.servers[1]
	neighbour := m.Server("neighbour").On(m.lan)
	neighbour.Run("ip", "route", "add", "10.210.0.0/16", "via", web2.Addr(m.lan).String())
	m.launch(0)
	m.launch(1, "--status-listen", "10.210.1.1:9187")
	for _, p := range m.nodes {
		p.WaitReady()
	}
	m.waitUp(web1, web2)
	a := web1.Container("a", "10.210.0.10")
	if got := ask(t, a.Host, "web2.node.jiji"); got != "NOERROR aa 10.210.1.1" {
		t.Errorf("web2.node.jiji is %s", got)
	}

	const local = "http://127.0.0.1:9187"
	for page, want := range map[string]string{
		local + "/":                             "<tr><td>web2<td class=\"good\">up",
		local + "/healthz":                      "alive",
		local + "/readyz":                       "ready",
		"http://localhost:9187/readyz":          "ready",
		"http://10.210.1.1:9187/metrics":        "\njiji_peer_up{peer=\"web1\"} 1\n", // through the mesh
		"http://web2.node.jiji:9187/readyz":     "ready",
		"http://nobody.example:9187/readyz":     "want an IP address",
		"http://127.0.0.1.example:9187/metrics": "want an IP address",
	} {
		out := web1.Run("curl", "-sS", "-m", "5", "--resolve", "*:9187:127.0.0.1", page)
		if strings.Contains(page, "10.210.1.1") || strings.Contains(page, "web2") {
			out = web1.Run("curl", "-sS", "-m", "5", "--resolve", "web2.node.jiji:9187:10.210.1.1", page)
		}
		if !strings.Contains(out, want) {
			t.Errorf("%s has no %q:\n%s", page, want, out)
		}
	}
	lab.Eventually(t, 15*time.Second, "metrics have the query and the round-trip time", func() error {
		out := web1.Run("curl", "-sSf", "-m", "5", local+"/metrics")
		for _, want := range []string{
			"\njiji_dns_query_duration_seconds_count{rcode=\"NOERROR\",type=\"A\",zone=\"mesh\"} 1\n",
			"\njiji_peers{state=\"up\"} 1\n", "\njiji_peer_rtt_seconds{peer=\"web2\"} 0.", "\njiji_node_warnings 0\n", "\njiji_registry_up{mode=\"embedded\"} 1\n",
		} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("there is no %q in\n%s", want, out)
			}
		}
		return nil
	})
	for _, url := range []string{"http://10.210.1.1:9187/", "http://" + web2.Addr(m.lan).String() + ":9187/", "http://" + web1.Addr(m.lan).String() + ":9187/"} {
		if out, err := neighbour.Try("curl", "-sS", "-m", "2", url); err == nil {
			t.Errorf("a neighbour reads %s:\n%s", url, out)
		}
	}
	m.nodes[0].Stop()
	m.start(0, "--status-listen", "off")
	if out, err := web1.Try("curl", "-sS", "-m", "2", local+"/healthz"); err == nil {
		t.Errorf("there is a page though it is off: %s", out)
	}
}

// A node whose port of the status page somebody has names him, runs, and takes the
// port once it is free.
func TestStatusPageWhosePortIsTaken(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	other := web1.Spawn("busybox", "httpd", "-f", "-p", "127.0.0.1:9187", "-h", "/run")
	lab.Eventually(t, 5*time.Second, "the other one listens", func() error {
		_, err := web1.Try("curl", "-sS", "-m", "2", "http://127.0.0.1:9187/")
		return err
	})
	taken := func(lines []string) bool {
		return slices.ContainsFunc(lines, func(l string) bool {
			return strings.HasPrefix(l, "port 9187/tcp on 127.0.0.1 (the status page) is taken by ") && strings.Contains(l, "busybox") && strings.Contains(l, "--status-listen")
		})
	}
	var ready node.Readiness
	out := web1.Run("jiji-node", "run", "--check", "--json")
	if err := json.Unmarshal([]byte(out), &ready); err != nil || !ready.Ready {
		t.Errorf("the check says %s: %v", out, err)
	}
	var texts []string
	for _, p := range ready.Problems {
		texts = append(texts, p.Text)
	}
	if !taken(texts) {
		t.Errorf("the check does not name who has the port: %q", texts)
	}
	m.start(0)
	lab.Eventually(t, 5*time.Second, "status names who has the port", func() error {
		if w := status(t, web1).Warnings; !taken(w) {
			return fmt.Errorf("it warns %q", w)
		}
		return nil
	})
	other.Kill9()
	lab.Eventually(t, 5*time.Second, "the page is there", func() error {
		if out, err := web1.Try("curl", "-sSf", "-m", "2", "http://127.0.0.1:9187/healthz"); err != nil || out != "alive\n" {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	if w := status(t, web1).Warnings; len(w) != 0 {
		t.Errorf("still warns %q", w)
	}
}

// Who asks what is shown while somebody looks: with the filter of the command.
func TestQueriesAreShown(t *testing.T) {
	t.Parallel()
	m := newMesh(t, 1)
	web1 := m.servers[0]
	a, b := web1.Container("a", "10.210.0.10"), web1.Container("b", "10.210.0.11")
	m.start(0)
	shown := func(args ...string) string {
		t.Helper()
		p := web1.Spawn("jiji-node", append([]string{"queries"}, args...)...)
		lab.Eventually(t, 10*time.Second, "a query is shown", func() error {
			ask(t, a.Host, "nobody.jiji", "AAAA")
			ask(t, b.Host, "web1.node.jiji")
			ask(t, b.Host, "WEB1.node.jiji", "+tcp")
			ask(t, web1.Host, "@10.210.0.1", "www.example.org")
			if !p.Ended() {
				return errors.New("none is")
			}
			return nil
		})
		if code := p.Wait(time.Second); code != 0 {
			t.Errorf("queries %v ended with %d", args, code)
		}
		return p.Log()
	}
	for filter, want := range map[string]string{
		"nobody.jiji":                          ` 10\.210\.0\.10:\d+/udp  nobody\.jiji\. AAAA  NXDOMAIN, 0 answers, \d+ bytes in .*, mesh\n$`,
		"web1.node.jiji. --client 10.210.0.11": ` 10\.210\.0\.11:\d+/(udp  web1|tcp  WEB1)\.node\.jiji\. A  NOERROR, 1 answers, \d+ bytes in .*, mesh\n$`,
		"example.org --client 10.210.0.0/24":   ` 10\.210\.0\.1:\d+/udp  www\.example\.org\. A  SERVFAIL, 0 answers, \d+ bytes in .*, forwarded, .*\n$`,
	} {
		args := append(strings.Fields(filter), "--count", "1")
		if got := shown(args...); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("queries %s: got\n%swant %s", filter, got, want)
		}
	}
	p := web1.Spawn("jiji-node", "queries", "sampled", "--json", "--every", "4", "--count", "3")
	asked := 0
	lab.Eventually(t, 10*time.Second, "three are shown", func() error {
		for range 4 {
			ask(t, a.Host, fmt.Sprintf("%d.sampled", asked), "AAAA")
			asked++
		}
		if !p.Ended() {
			return errors.New("not yet")
		}
		return nil
	})
	p.Wait(time.Second)
	var shownOf []int
	for d := json.NewDecoder(strings.NewReader(p.Log())); d.More(); {
		var q control.SeenQuery
		if err := d.Decode(&q); err != nil {
			t.Fatal(err)
		}
		number, _, _ := strings.Cut(q.Name, ".")
		i, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		shownOf = append(shownOf, i)
	}
	if len(shownOf) != 3 || shownOf[1] != shownOf[0]+4 || shownOf[2] != shownOf[1]+4 {
		t.Errorf("one in four is %v", shownOf)
	}
}

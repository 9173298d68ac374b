package engine

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/acidtib/jiji-node/registry"
)

var (
	rules = Rules{Network: "jiji-mesh", ServerID: "web1", Subnet: netip.MustParsePrefix("10.210.0.0/24"), Cluster: netip.MustParsePrefix("10.210.0.0/16")}
	start = time.UnixMilli(1700000000000).UTC()
)

// idOf is an engine's id that begins with n.
func idOf(n int) string { return fmt.Sprintf("%02d%s", n, strings.Repeat("a", 62)) }

// on is a container on the mesh's network; labels are "name=value".
func on(n int, name, ip string, labels ...string) Container {
	c := Container{ID: idOf(n), Name: name, Running: true, StartedAt: start.Add(time.Duration(n) * time.Second), Labels: map[string]string{}, Addrs: map[string]netip.Addr{}}
	if ip != "" {
		c.Addrs["jiji-mesh"] = netip.MustParseAddr(ip)
	}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		c.Labels[k] = v
	}
	return c
}

func TestPlan(t *testing.T) {
	compose := []string{"com.docker.compose.service=api", "com.docker.compose.project=shop", "com.docker.compose.container-number=2"}
	with := func(c Container, change func(*Container)) Container { change(&c); return c }
	for _, tc := range []struct {
		name string
		all  []Container
		want []string // "service project instance ip health", and refusals: "name: reason"
	}{
		{"name", []Container{on(1, "db", "10.210.0.2")}, []string{"db - - 10.210.0.2 healthy"}},
		{"compose", []Container{on(1, "shop-api-2", "10.210.0.2", compose...)}, []string{"api shop 2 10.210.0.2 healthy"}},
		{"labels before compose's", []Container{on(1, "x", "10.210.0.2", append(compose, "jiji.service=web", "jiji.project=p", "jiji.instance=blue")...)}, []string{"web p blue 10.210.0.2 healthy"}},
		{"a label that empties", []Container{on(1, "x", "10.210.0.2", append(compose, "jiji.project=")...)}, []string{"api - 2 10.210.0.2 healthy"}},
		{"two of one service", []Container{on(2, "b", "10.210.0.3", "jiji.service=api"), on(1, "a", "10.210.0.2", "jiji.service=api")}, []string{"api - - 10.210.0.2 healthy", "api - - 10.210.0.3 healthy"}},
		{"others", []Container{on(1, "db", ""), with(on(2, "web", ""), func(c *Container) { c.Addrs["bridge"] = netip.MustParseAddr("172.17.0.2") })}, nil},
		{"meant to be in", []Container{on(1, "db", "", "jiji.service=db")}, []string{"db: is not attached to network jiji-mesh and has no label jiji.ip"}},
		{"stopped", []Container{with(on(1, "db", "10.210.0.2", "jiji.port=x"), func(c *Container) { c.Running = false })}, nil},
		{"no address yet", []Container{with(on(1, "db", "", "jiji.service=db"), func(c *Container) { c.Addrs["jiji-mesh"] = netip.Addr{} })}, nil},
		{"starting", []Container{with(on(1, "db", "10.210.0.2"), func(c *Container) { c.Health = "starting" })}, []string{"db - - 10.210.0.2 starting"}},
		{"unhealthy", []Container{with(on(1, "db", "10.210.0.2"), func(c *Container) { c.Health = "unhealthy" })}, []string{"db - - 10.210.0.2 unhealthy"}},
		{"no check", []Container{with(on(1, "db", "10.210.0.2"), func(c *Container) { c.Health = "none" })}, []string{"db - - 10.210.0.2 healthy"}},
		{"not probed yet", []Container{on(1, "db", "10.210.0.2", "jiji.health.port=5432")}, []string{"db - - 10.210.0.2 starting"}},

		{"label is no name", []Container{on(1, "db", "10.210.0.2", "jiji.service=my db")}, []string{`db: label jiji.service "my db": want 1 to 63 letters, digits, hyphens and underscores, no hyphen at either end`}},
		{"label is empty", []Container{on(1, "db", "10.210.0.2", "jiji.service=")}, []string{`db: label jiji.service "": want 1 to 63 letters, digits, hyphens and underscores, no hyphen at either end`}},
		{"name is no name", []Container{on(1, "my.db", "10.210.0.2")}, []string{`my.db: name "my.db": want 1 to 63 letters, digits, hyphens and underscores, no hyphen at either end; a label jiji.service gives it another service`}},
		{"reserved", []Container{on(1, "node", "10.210.0.2")}, []string{`node: name "node": want another name: <server>.node is where servers are named; a label jiji.service gives it another service`}},
		{"compose's is no name", []Container{on(1, "x", "10.210.0.2", "com.docker.compose.service=a.b")}, []string{`x: label com.docker.compose.service "a.b": want 1 to 63 letters, digits, hyphens and underscores, no hyphen at either end; a label jiji.service gives it another service`}},
		{"port", []Container{on(1, "db", "10.210.0.2", "jiji.port=80,http")}, []string{`db: label jiji.port "80,http": want ports like 8080 or 53/udp, with commas between`}},
		{"health port", []Container{on(1, "db", "10.210.0.2", "jiji.health.port=0")}, []string{`db: label jiji.health.port "0": want a TCP port, 1 to 65535`}},

		{"address by label", []Container{on(1, "db", "", "jiji.ip=10.210.0.9")}, []string{"db - - 10.210.0.9 healthy"}},
		{"address is none", []Container{on(1, "db", "", "jiji.ip=ten")}, []string{`db: label jiji.ip "ten": want an IPv4 address`}},
		{"address of another server", []Container{on(1, "db", "", "jiji.ip=10.210.1.9")}, []string{`db: ip "10.210.1.9": want 10.210.0.1 to 10.210.0.254, of server web1, or an external container`}},
		{"address outside", []Container{on(1, "db", "10.210.0.2", "jiji.ip=192.0.2.1")}, []string{`db: ip "192.0.2.1": want 10.210.0.1 to 10.210.0.254, of server web1, or an external container`}},
		{"loopback", []Container{on(1, "db", "", "jiji.ip=127.0.0.1")}, []string{`db: ip "127.0.0.1": want a unicast address, not loopback (127.0.0.0/8)`}},
		{"claimed twice", []Container{on(2, "b", "", "jiji.ip=10.210.0.2"), on(1, "a", "", "jiji.ip=10.210.0.2")}, []string{"a - - 10.210.0.2 healthy", `b: ip "10.210.0.2": is the address of container a (01aaaaaaaaaa), too`}},
		{"the engine's word", []Container{on(1, "a", "", "jiji.ip=10.210.0.2"), on(2, "b", "10.210.0.2")}, []string{"b - - 10.210.0.2 healthy", `a: ip "10.210.0.2": is the address of container b (02aaaaaaaaaa), too`}},
		{"the server's own", []Container{on(1, "a", "", "jiji.ip=10.210.0.1"), on(2, "b", "", "jiji.ip=10.210.0.1")}, []string{"a - - 10.210.0.1 healthy", "b - - 10.210.0.1 healthy"}},
		{"a shared network", []Container{on(1, "a", "10.210.0.2"), with(on(2, "b", ""), func(c *Container) { c.Joined = idOf(1) })}, []string{"a - - 10.210.0.2 healthy", "b - - 10.210.0.2 healthy"}},
		{"a pod", []Container{with(on(1, "0123-infra", "10.210.0.2"), func(c *Container) { c.Infra = true }), with(on(2, "b", "10.210.0.2"), func(c *Container) { c.Joined = idOf(1) }), with(on(3, "c", ""), func(c *Container) { c.Joined = idOf(1) })}, []string{"b - - 10.210.0.2 healthy", "c - - 10.210.0.2 healthy"}},
		{"shared with one that stopped", []Container{with(on(1, "a", "10.210.0.2"), func(c *Container) { c.Running = false }), with(on(2, "b", ""), func(c *Container) { c.Joined = idOf(1) })}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := Plan(tc.all, rules, nil)
			var got []string
			for _, c := range v.In {
				got = append(got, strings.Join([]string{c.Service, dash(c.Project), dash(c.Instance), c.IP.String(), string(c.Health)}, " "))
				if c.ServerID != "web1" || c.Name == "" || !c.StartedAt.Equal(start.Add(time.Duration(c.ID[1]-'0')*time.Second)) {
					t.Errorf("%+v", c)
				}
			}
			for _, r := range v.Refused {
				got = append(got, r.Name+": "+r.Reason)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func TestPlanPorts(t *testing.T) {
	v := Plan([]Container{on(1, "db", "10.210.0.2", "jiji.port=8080, 53/udp,8080/tcp", "jiji.health.port=8080")}, rules, nil)
	want := []registry.Port{{Number: 53, Proto: "udp"}, {Number: 8080, Proto: "tcp"}}
	if len(v.In) != 1 || !slices.Equal(v.In[0].Ports, want) || v.In[0].HealthPort != 8080 {
		t.Errorf("%+v", v)
	}
}

// What engine and probe say is joined; the probe of an earlier start is none.
func TestPlanHealth(t *testing.T) {
	at := netip.MustParseAddrPort("10.210.0.2:80")
	began := start.Add(time.Second).UnixMilli()
	checked := start.Add(time.Minute)
	for _, tc := range []struct {
		engine string
		probe  Probe
		want   registry.Health
		fails  int
	}{
		{"", Probe{Target{idOf(1), at, began}, registry.Healthy, 0, checked}, registry.Healthy, 0},
		{"", Probe{Target{idOf(1), at, began}, registry.Unhealthy, 3, checked}, registry.Unhealthy, 3},
		{"", Probe{Target{idOf(1), at, began - 1}, registry.Healthy, 0, checked}, registry.Starting, 0},
		{"", Probe{Target{idOf(1), netip.MustParseAddrPort("10.210.0.3:80"), began}, registry.Healthy, 0, checked}, registry.Starting, 0},
		{"healthy", Probe{Target{idOf(1), at, began}, registry.Starting, 1, checked}, registry.Starting, 1},
		{"starting", Probe{Target{idOf(1), at, began}, registry.Healthy, 0, checked}, registry.Starting, 7},
		{"starting", Probe{Target{idOf(1), at, began}, registry.Unhealthy, 3, checked}, registry.Unhealthy, 3},
		{"unhealthy", Probe{Target{idOf(1), at, began}, registry.Healthy, 0, checked}, registry.Unhealthy, 7},
	} {
		c := on(1, "db", "10.210.0.2", "jiji.health.port=80")
		c.Health, c.Failures = tc.engine, 7
		if tc.engine == "" || tc.engine == "healthy" {
			c.Failures = 0
		}
		v := Plan([]Container{c}, rules, map[string]Probe{c.ID: tc.probe})
		if got := v.In[0]; got.Health != tc.want || got.Failures != tc.fails {
			t.Errorf("engine %q, probe %+v: %s, %d failures, want %s, %d", tc.engine, tc.probe, got.Health, got.Failures, tc.want, tc.fails)
		}
	}
}

func TestReconcile(t *testing.T) {
	base := Plan([]Container{on(1, "a", "10.210.0.2"), on(2, "b", "10.210.0.3")}, rules, nil)
	a, b := base.In[0], base.In[1]
	change := func(c registry.Container, f func(*registry.Container)) registry.Container { f(&c); return c }
	hand := change(a, func(c *registry.Container) { c.ID, c.Service = "hand", "printer" })
	old := change(a, func(c *registry.Container) { c.ID, c.Service = idOf(9), "old" })
	for _, tc := range []struct {
		name    string
		view    []registry.Container
		rows    []registry.Container
		pending []string
		put     []registry.Container
		gone    []string
	}{
		{name: "new", view: base.In, put: base.In},
		{name: "the same", view: base.In, rows: base.In},
		{name: "stopped", view: base.In[:1], rows: base.In, gone: []string{b.ID}},
		{name: "vanished while we were down", view: base.In, rows: []registry.Container{a, b, old}, gone: []string{old.ID}},
		{name: "not described yet", view: base.In[:1], rows: []registry.Container{a, b, old}, pending: []string{b.ID}, gone: []string{old.ID}},
		{name: "by hand", rows: []registry.Container{hand}},
		{name: "started again", view: []registry.Container{change(a, func(c *registry.Container) { c.StartedAt = start.Add(time.Hour) })}, rows: []registry.Container{a},
			put: []registry.Container{change(a, func(c *registry.Container) { c.StartedAt = start.Add(time.Hour) })}},
		{name: "a check that found the same", view: []registry.Container{change(a, func(c *registry.Container) { c.LastCheck = start.Add(time.Hour) })}, rows: []registry.Container{a}},
		{name: "failing on", view: []registry.Container{change(a, func(c *registry.Container) { c.Health, c.Failures, c.LastCheck = registry.Unhealthy, 9, start })},
			rows: []registry.Container{change(a, func(c *registry.Container) { c.Health, c.Failures = registry.Unhealthy, 3 })}},
		{name: "an engine that checks anew", view: []registry.Container{change(a, func(c *registry.Container) { c.Health = registry.Starting })}, rows: []registry.Container{a}},
		{name: "which then fails", view: []registry.Container{change(a, func(c *registry.Container) { c.Health, c.Failures = registry.Unhealthy, 3 })}, rows: []registry.Container{a},
			put: []registry.Container{change(a, func(c *registry.Container) { c.Health, c.Failures = registry.Unhealthy, 3 })}},
		{name: "starting after a start", view: []registry.Container{change(a, func(c *registry.Container) { c.Health, c.StartedAt = registry.Starting, start.Add(time.Hour) })}, rows: []registry.Container{a},
			put: []registry.Container{change(a, func(c *registry.Container) { c.Health, c.StartedAt = registry.Starting, start.Add(time.Hour) })}},
		{name: "renamed", view: []registry.Container{change(a, func(c *registry.Container) { c.Name = "z" })}, rows: []registry.Container{a},
			put: []registry.Container{change(a, func(c *registry.Container) { c.Name = "z" })}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mine, pending := map[string]bool{a.ID: true, b.ID: true, old.ID: true}, map[string]bool{}
			for _, id := range tc.pending {
				pending[id] = true
			}
			rows := func(yield func(*registry.Container) bool) {
				for _, c := range tc.rows {
					if !yield(&c) {
						return
					}
				}
			}
			put, gone := Reconcile(View{In: tc.view}, rows, mine, pending)
			if !reflect.DeepEqual(put, tc.put) || !slices.Equal(gone, tc.gone) {
				t.Errorf("put %+v\ngone %v\nwant %+v\n%v", put, gone, tc.put, tc.gone)
			}
		})
	}
}

func TestProbeNext(t *testing.T) {
	p := Probe{Health: registry.Starting}
	var got []registry.Health
	for _, ok := range []bool{false, false, true, false, false, true, false, false, false, true} {
		p = p.next(ok, start)
		got = append(got, p.Health)
	}
	want := "[starting starting healthy healthy healthy healthy healthy healthy unhealthy healthy]"
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
}

// What the engines of the lab said of one container.
func TestObserved(t *testing.T) {
	for file, want := range map[string]Container{
		"docker-20.10-inspect.json": {ID: "0ef38ff7c046a3a38a8881bba9a616945a41c027c0b49a47ddb5f4efa2632e70", Name: "aa", Running: true, Health: "starting", Failures: 1,
			StartedAt: time.UnixMilli(1795568819618).UTC(), CheckedAt: time.Date(2026, 11, 25, 1, 7, 0, 670636989, time.UTC)},
		"podman-4.3-inspect.json": {ID: "4789b20907b4e2d9e310c39bfe6e142fe05c9290bf3f6e7d65fae44bc9b70baf", Name: "aa", Running: true, Health: "healthy",
			StartedAt: time.UnixMilli(1795568845314).UTC(), CheckedAt: time.Date(2026, 11, 25, 1, 7, 27, 46056303, time.UTC)},
	} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var r container.InspectResponse
		if err := json.Unmarshal(text, &r); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		want.Labels, want.Addrs = map[string]string{}, map[string]netip.Addr{"jiji-mesh": netip.MustParseAddr("10.210.0.2")}
		got := observed(r)
		if got.CheckedAt.IsZero() {
			t.Errorf("%s: no time of the check", file)
		}
		got.CheckedAt, want.CheckedAt = time.Time{}, time.Time{}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", file, got, want)
		}
	}
}

// Whatever an engine answers, what is registered is what may be, and each address
// is one network's.
func FuzzPlan(f *testing.F) {
	for _, file := range []string{"docker-20.10-inspect.json", "podman-4.3-inspect.json"} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("["+string(text)+"]", "")
	}
	item := `{"Id":"%s","Name":"/%s","State":{"Running":true,"StartedAt":"%s","Health":{"Status":"%s","FailingStreak":%d,"Log":[null]}},"Config":{"Labels":{%s}},"HostConfig":{"NetworkMode":"%s"},"NetworkSettings":{"Networks":{"jiji-mesh":%s}}}`
	f.Add("["+fmt.Sprintf(item, "a", "x", "2026-01-01T00:00:00Z", "healthy", -5, `"jiji.port":"80,,","jiji.ip":"::ffff:10.210.0.3"`, "container:a", `{"IPAddress":"10.210.0.2"}`)+","+
		fmt.Sprintf(item, "b", "", "x", "starting", 1<<40, `"jiji.service":"\u0000","jiji.health.port":"99999"`, "container:a", "null")+"]", "80")
	f.Fuzz(func(t *testing.T, text, label string) {
		var list []container.InspectResponse
		if json.Unmarshal([]byte(text), &list) != nil || len(list) > 50 {
			return
		}
		var all []Container
		for i, r := range list {
			c := observed(r)
			if i == 0 && label != "" {
				c.Labels = maps.Clone(c.Labels)
				c.Labels[labelPort] = label
			}
			all = append(all, c)
		}
		v := Plan(all, rules, nil)
		lender := map[string]string{}
		for _, c := range all {
			lender[c.ID] = c.ID
		}
		for _, c := range all {
			if lender[c.Joined] != "" {
				lender[c.ID] = c.Joined
			}
		}
		holder := map[netip.Addr]string{netip.MustParseAddr("10.210.0.1"): ""}
		for _, c := range v.In {
			n, err := c.Normalize()
			if err != nil || !reflect.DeepEqual(n, c) {
				t.Errorf("%+v is registered, normalized %+v, %v", c, n, err)
			}
			if err := registry.CheckAddress(c, rules.Subnet, rules.Cluster); err != nil {
				t.Error(err)
			}
			if h, taken := holder[c.IP]; taken && h != "" && h != lender[c.ID] {
				t.Errorf("%v is of both %s and %s", c.IP, h, lender[c.ID])
			} else if !taken {
				holder[c.IP] = lender[c.ID]
			}
		}
		for _, r := range v.Refused {
			if r.Reason == "" || strings.ContainsAny(r.Reason, "\n") {
				t.Errorf("reason %q", r.Reason)
			}
		}
	})
}

package registry

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func valid() Container {
	return Container{ID: "4f1c", Service: "api", ServerID: "web1", IP: netip.MustParseAddr("10.210.1.15"), Health: Healthy}
}

func TestNormalize(t *testing.T) {
	type change = func(*Container)
	long := strings.Repeat("a", 300)
	good := map[string]change{
		"plain":              func(*Container) {},
		"labels":             func(c *Container) { c.Service, c.Project, c.Instance = "_Api-1", long[:63], "0" },
		"reserved elsewhere": func(c *Container) { c.Project, c.Instance = "node", "node" },
		"long id":            func(c *Container) { c.ID = long[:128] },
		"id by hand":         func(c *Container) { c.ID = "db.primary_1-a" },
		"name":               func(c *Container) { c.Name = "Größe 1/2" },
		"private":            func(c *Container) { c.IP = netip.MustParseAddr("192.168.1.1") },
		"public":             func(c *Container) { c.IP = netip.MustParseAddr("198.51.100.7") },
		"port":               func(c *Container) { c.Ports = []Port{{65535, "sctp"}} },
	}
	for name, change := range good {
		c := valid()
		change(&c)
		n, err := c.Normalize()
		if err != nil || !reflect.DeepEqual(n, c) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	bad := map[string]struct {
		change change
		want   string
	}{
		"id":           {func(c *Container) { c.ID = "a b" }, `id "a b": want 1 to 128 letters`},
		"long id":      {func(c *Container) { c.ID = long[:129] }, `id "` + long[:80] + `...": want 1 to 128`},
		"server":       {func(c *Container) { c.ServerID = "" }, `server id "": want`},
		"empty":        {func(c *Container) { c.Service = "" }, `service "": want 1 to 63`},
		"dot":          {func(c *Container) { c.Service = "a.b" }, `service "a.b": want`},
		"long":         {func(c *Container) { c.Service = long[:64] }, `service "` + long[:64] + `": want`},
		"not ASCII":    {func(c *Container) { c.Service = "größe" }, `service "größe": want`},
		"first hyphen": {func(c *Container) { c.Service = "-a" }, `service "-a": want`},
		"last hyphen":  {func(c *Container) { c.Project = "a-" }, `project "a-": want`},
		"reserved":     {func(c *Container) { c.Service = "NODE" }, `service "NODE": want another name`},
		"instance":     {func(c *Container) { c.Instance = "*" }, `instance "*": want`},
		"name":         {func(c *Container) { c.Name = "a\nb" }, `name "a\nb": want`},
		"name, bytes":  {func(c *Container) { c.Name = "\xff" }, `name "\xff": want`},
		"health":       {func(c *Container) { c.Health = "Healthy" }, `health "Healthy": want healthy, unhealthy, `},
		"failures":     {func(c *Container) { c.Failures = 1 << 31 }, `failures "2147483648": want 0 to`},
		"no ip":        {func(c *Container) { c.IP = netip.Addr{} }, `ip "": want an IPv4 address`},
		"unspecified":  {func(c *Container) { c.IP = netip.IPv4Unspecified() }, `ip "0.0.0.0": want a unicast address, not an unspecified one`},
		"this network": {func(c *Container) { c.IP = netip.MustParseAddr("0.1.2.3") }, `ip "0.1.2.3": want`},
		"loopback":     {func(c *Container) { c.IP = netip.MustParseAddr("127.8.8.8") }, `not loopback`},
		"link-local":   {func(c *Container) { c.IP = netip.MustParseAddr("169.254.169.254") }, `not link-local`},
		"multicast":    {func(c *Container) { c.IP = netip.MustParseAddr("224.0.0.251") }, `not multicast`},
		"broadcast":    {func(c *Container) { c.IP = netip.MustParseAddr("255.255.255.255") }, `not reserved or broadcast`},
		"IPv6":         {func(c *Container) { c.IP = netip.MustParseAddr("fdcc::1") }, `ip "fdcc::1": want an IPv4 address: the mesh carries no IPv6`},
		"mapped":       {func(c *Container) { c.IP = netip.MustParseAddr("::ffff:10.0.0.1") }, `in dotted form: 10.0.0.1`},
		"before 1970":  {func(c *Container) { c.StartedAt = time.Unix(-1, 0) }, `started at "1969-12-31T23:59:59Z": want`},
		"after 9999":   {func(c *Container) { c.LastCheck = time.UnixMilli(maxMilli + 1) }, `last check "10000-01-01T00:00:00Z": want`},
		"port 0":       {func(c *Container) { c.Ports = []Port{{1, "tcp"}, {0, "tcp"}} }, `port "0/tcp": want`},
		"protocol":     {func(c *Container) { c.Ports = []Port{{1, "TCP"}} }, `port "1/TCP": want`},
		"ports":        {func(c *Container) { c.Ports = make257() }, `ports "257": want at most 256`},
	}
	for name, tt := range bad {
		c := valid()
		tt.change(&c)
		_, err := c.Normalize()
		var invalid *InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}

func make257() []Port {
	ports := make([]Port, 257)
	for i := range ports {
		ports[i] = Port{uint16(i + 1), "tcp"}
	}
	return ports
}

func TestCheckAddress(t *testing.T) {
	cluster := netip.MustParsePrefix("10.210.0.0/16")
	subnet := netip.MustParsePrefix("10.210.1.0/24")
	tests := []struct {
		ip       string
		external bool
		subnet   netip.Prefix
		want     string // of the error
	}{
		{"10.210.1.2", false, subnet, ""},
		{"10.210.1.254", false, subnet, ""},
		{"10.210.1.1", false, subnet, ""}, // the server itself
		{"10.210.1.0", false, subnet, `ip "10.210.1.0": want 10.210.1.1 to 10.210.1.254, of server web1, or an external container`},
		{"10.210.1.255", false, subnet, "want 10.210.1.1 to"},
		{"10.210.2.2", false, subnet, "want 10.210.1.1 to"},
		{"192.168.1.2", false, subnet, "want 10.210.1.1 to"},
		{"10.210.1.2", false, netip.Prefix{}, "has no subnet yet"},
		{"10.210.1.2", false, netip.MustParsePrefix("fdcc::/16"), "has no subnet yet"},
		{"10.210.1.2", true, subnet, `ip "10.210.1.2": want an address outside the cluster's 10.210.0.0/16 for an external container`},
		{"10.210.77.2", true, subnet, "outside the cluster's"},
		{"192.168.1.2", true, subnet, ""},
		{"192.168.1.2", true, netip.Prefix{}, ""},
	}
	for _, tt := range tests {
		c := valid()
		c.IP, c.External = netip.MustParseAddr(tt.ip), tt.external
		err := CheckAddress(c, tt.subnet, cluster)
		if err == nil && tt.want != "" || err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s, external %v, in %v: %v, want %q", tt.ip, tt.external, tt.subnet, err, tt.want)
		}
	}
}

func TestParsePorts(t *testing.T) {
	tests := []struct {
		text string
		want string // FormatPorts of the result, or the error
	}{
		{"", `[]`},
		{"[]", `[]`},
		{"null", `[]`},
		{`["8080/tcp"]`, `["8080/tcp"]`},
		{` [ "53/udp" , "53/tcp", "53/udp" ] `, `["53/tcp","53/udp"]`},
		{`["8080"]`, `port "8080/": want`},
		{`["0/tcp"]`, `port "0/tcp": want`},
		{`["65536/tcp"]`, `port "65536/tcp": want`},
		{`["-1/tcp"]`, `port "-1/tcp": want`},
		{`["80/tcp/x"]`, `port "80/tcp/x": want`},
		{`[8080]`, `ports "[8080]": want a JSON array`},
		{`{"a":1}`, `want a JSON array`},
		{`["80/tcp"`, `want a JSON array`},
		{`["80/tcp"]]`, `want a JSON array`},
	}
	for _, tt := range tests {
		ports, err := ParsePorts(tt.text)
		got := FormatPorts(ports)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("ParsePorts(%s) = %s, want %s", tt.text, got, tt.want)
		}
	}
}

// The cells of SQLite whose type the suite cannot write through every backend.
func TestRowOfOtherTypes(t *testing.T) {
	good := Row{ID: "a", Service: "api", ServerID: "web1", IP: "10.210.1.2", StartedAt: int64(0), Health: "healthy", LastCheck: int64(0), Failures: int64(0)}
	if c, ok, skipped := good.Container(); !ok || len(skipped) != 0 || c.ID != "a" {
		t.Errorf("%+v, %v, %v", c, ok, skipped)
	}
	tests := []struct {
		change func(*Row)
		want   Skipped
	}{
		{func(r *Row) { r.ID = []byte{0xde, 0xad} }, Skipped{"containers", `"x'dead'"`, `id "x'dead'": want text`}},
		{func(r *Row) { r.Service = 1.5 }, Skipped{"containers", "a", `service "1.5": want text`}},
		{func(r *Row) { r.StartedAt = 1e19 }, Skipped{"containers", "a", `started_at "1e+19": want an integer`}},
		{func(r *Row) { r.Health = nil }, Skipped{"containers", "a", `health "": want ` + wantHealth}},
		{func(r *Row) { r.ID = strings.Repeat("a", 1<<20) }, Skipped{"containers", `"` + strings.Repeat("a", 80) + `..."`, `id "` + strings.Repeat("a", 80) + `...": want ` + wantID}},
	}
	for _, tt := range tests {
		r := good
		tt.change(&r)
		if _, ok, skipped := r.Container(); ok || len(skipped) != 1 || skipped[0] != tt.want {
			t.Errorf("%+v: ok %v, skipped %q, want %q", r, ok, skipped, tt.want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"", "[]", `["8080/tcp","53/udp"]`, `[1]`, `["1/\u0074cp"]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ports, err := ParsePorts(text)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		again, err := ParsePorts(FormatPorts(ports))
		if err != nil || !reflect.DeepEqual(again, ports) {
			t.Errorf("%v became %v, %v", ports, again, err)
		}
	})
}

func FuzzRow(f *testing.F) {
	f.Add("a", "api", "web1", "10.210.1.2", int64(1), "blue", "healthy", int64(2), int64(3), int64(4), "shop", "web1", "shop", "n", `["1/tcp"]`, int64(1))
	f.Add("", "", "", "", int64(-1), "", "", int64(0), int64(0), int64(0), "", "", "", "", "", int64(0))
	f.Fuzz(func(t *testing.T, id, service, server, ip string, started int64, instance, health string, checked, failures, port int64, serviceProject, owner, project, name, ports string, external int64) {
		c, ok, skipped := Row{
			ID: id, Service: service, ServerID: server, IP: ip, StartedAt: started, Instance: instance, Health: health,
			LastCheck: checked, Failures: failures, HealthPort: port, ServiceProject: serviceProject,
			OursServerID: owner, Project: project, Name: name, Ports: ports, External: external,
		}.Container()
		for _, k := range skipped {
			if k.Table == "" || k.Key == "" || k.Reason == "" || len(k.Key)+len(k.Reason) > 2000 || !utf8.ValidString(k.Key) || strings.ContainsAny(k.Key+k.Reason, "\n\r\x1b") {
				t.Errorf("skipped %q", k)
			}
		}
		if !ok {
			return
		}
		again, err := c.Normalize()
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%+v became %+v, %v", c, again, err)
		}
		if _, err := c.StartedAt.MarshalJSON(); err != nil {
			t.Error(err)
		}
	})
}

package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"

func TestParseSockets(t *testing.T) { // on a little-endian machine, as all that Go builds this for in practice
	for _, c := range []struct {
		proto, table string
		want         []string
	}{
		{"udp", heading, nil},
		{"udp", "", nil},
		{"udp", heading +
			" 2034: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   991        0 7001 2 0000000000000000 0\n" +
			" 3819: 00000000:CA6C 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2 0000000000000000 0\n" +
			" 3820: 0101D20A:CA6C 0501A8C0:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 7003 2 0000000000000000 0\n",
			[]string{"udp 127.0.0.53:53 991 7001", "udp 0.0.0.0:51820 0 0", "udp 10.210.1.1:51820 1000 7003"}},
		{"udp", heading +
			" 1: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 8001 2 0000000000000000 0\n" +
			" 2: 0000000000000000FFFF00000101D20A:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 8002 2 0000000000000000 0\n" +
			" 3: B80D0120000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 8003 2 0000000000000000 0\n",
			[]string{"udp [::]:53 0 8001", "udp 10.210.1.1:53 0 8002", "udp [2001:db8::1]:53 0 8003"}},
		{"tcp", heading +
			"   0: 00000000:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 9001 1 0000000000000000 100 0 0 10 0\n" +
			"   1: 0100007F:0035 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 9002 1 0000000000000000 20 4 30 10 -1\n",
			[]string{"tcp 0.0.0.0:53 0 9001"}},
	} {
		sockets, err := parseSockets(c.proto, c.table)
		var got []string
		for _, s := range sockets {
			got = append(got, fmt.Sprint(s.Proto, " ", s.Local, " ", s.UID, " ", s.Inode))
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s\n%s: got %q, %v; want %q", c.proto, c.table, got, err, c.want)
		}
	}
	good := strings.Fields("1: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 8001 2")
	for field, bad := range map[int]string{1: "0000000:0035", 7: "root", 9: "-1"} {
		line := slices.Clone(good)
		line[field] = bad
		if _, err := parseSockets("udp", heading+strings.Join(line, " ")+"\n"); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("field %d %q: error %v", field, bad, err)
		}
	}
	for _, bad := range []string{"00000000", "00000000:", "00000000:10000", "zz000000:0035", "000000000000:0035"} {
		if _, err := parseLocal(bad); err == nil {
			t.Errorf("parseLocal(%q): no error", bad)
		}
	}
	if _, err := parseSockets("udp", heading+" 1: 00000000:0035\n"); err == nil {
		t.Error("short line: no error")
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add("udp", heading+" 1: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 8001 2\n")
	f.Add("tcp", heading+" 1: 0000000000000000FFFF00000101D20A:0035 00000000:0000 0A 0:0 0:0 0 4294967295 0 8001\n")
	f.Fuzz(func(t *testing.T, proto, table string) {
		sockets, err := parseSockets(proto, table)
		if err != nil && sockets != nil {
			t.Error("sockets and an error")
		}
		for _, s := range sockets {
			if !s.Local.IsValid() || s.Local.Addr().Is4In6() || s.UID < 0 || s.Proto != proto {
				t.Errorf("socket %+v", s)
			}
		}
	})
}

func TestUnit(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for path, want := range map[string]string{
		"0::/system.slice/named.service":                                         "named.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/dns.service": "dns.service",
		"0::/user.slice/user-1000.slice/session-3.scope":                         "session-3.scope",
		"0::/system.slice/docker-" + id + ".scope":                               "container 0123456789ab",
		"12:pids:/docker/" + id:                                                  "container 0123456789ab",
		"0::/machine.slice/libpod-" + id + ".scope/container":                    "container 0123456789ab",
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope": "container 0123456789ab",
		"0::/system.slice/docker-" + id[:12] + ".scope":                          "docker-0123456789ab.scope",
		"0::/":                             "",
		"":                                 "",
		"/sys/fs/cgroup/init.scope":        "init.scope",
		"/sys/fs/cgroup/system.slice":      "",
		"/sys/fs/cgroup/a.service/b.slice": "a.service",
	} {
		if got := unit(path); got != want {
			t.Errorf("unit(%q) = %q, want %q", path, got, want)
		}
	}
}

func FuzzUnit(f *testing.F) {
	f.Add("0::/system.slice/docker-0123456789abcdef.scope")
	f.Fuzz(func(t *testing.T, path string) {
		if u := unit(path); strings.Contains(u, "/") {
			t.Errorf("unit(%q) = %q", path, u)
		}
	})
}

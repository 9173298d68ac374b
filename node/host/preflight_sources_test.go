package host

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// dockerAnswer is of Docker 28.2, shortened; podmanAnswer of Podman 4.3.
const (
	dockerAnswer = `[{"Name":"none","Id":"0f","Driver":"null","IPAM":{"Driver":"default","Options":null,"Config":null},"Containers":{}},
{"Name":"bridge","Id":"1f","Scope":"local","Driver":"bridge","EnableIPv4":true,"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1"}]}},
{"Name":"dual","Id":"2f","Driver":"bridge","IPAM":{"Config":[{"Subnet":"10.5.0.0/16","IPRange":"10.5.1.0/24"},{"Subnet":"fd00:5::/64"}]}}]`
	podmanAnswer = `[{"Name":"podman","Id":"2f25","Driver":"bridge","IPAM":{"Driver":"default","Options":{"driver":"host-local"},"Config":[{"Subnet":"10.88.0.0/16","Gateway":"10.88.0.1"}]}}]`
)

func TestParseNetworks(t *testing.T) {
	for _, c := range []struct {
		answer string
		want   []EngineNetwork
		fault  string
	}{
		{dockerAnswer, []EngineNetwork{{"docker", "bridge", pfx("172.17.0.0/16")}, {"docker", "dual", pfx("10.5.0.0/16")}, {"docker", "dual", pfx("fd00:5::/64")}}, ""},
		{podmanAnswer, []EngineNetwork{{"docker", "podman", pfx("10.88.0.0/16")}}, ""},
		{"[]", nil, ""},
		{"null", nil, ""},
		{`[{"Name":"odd","IPAM":{"Config":[{"Subnet":""},{"Subnet":"10.5.0.0"},{"Subnet":"10.6.7.8/16"}]}}]`, []EngineNetwork{{"docker", "odd", pfx("10.6.0.0/16")}}, ""},
		{`{"message":"no"}`, nil, "list networks of docker: json: cannot unmarshal object"},
		{`[{"Name":"cut"`, nil, "unexpected EOF"},
		{"", nil, "EOF"},
	} {
		got, err := parseNetworks("docker", strings.NewReader(c.answer))
		if !reflect.DeepEqual(got, c.want) || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s:\ngot  %v, %v\nwant %v, %s", c.answer, got, err, c.want, c.fault)
		}
	}
}

func FuzzParseNetworks(f *testing.F) {
	f.Add(dockerAnswer)
	f.Add(podmanAnswer)
	f.Fuzz(func(t *testing.T, answer string) {
		networks, err := parseNetworks("docker", strings.NewReader(answer))
		if err != nil && networks != nil {
			t.Errorf("networks %v with error %v", networks, err)
		}
		for _, n := range networks {
			if !n.Subnet.IsValid() || n.Subnet != n.Subnet.Masked() {
				t.Errorf("subnet %v", n.Subnet)
			}
			if strings.Contains(n.String(), "\n") {
				t.Errorf("more than one line: %q", n)
			}
		}
	})
}

func TestAskEngine(t *testing.T) {
	hung := make(chan struct{})
	defer close(hung)
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   int // networks
		fault  string
	}{
		{"answers", func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.URL.Path != "/networks" {
				http.NotFound(w, r)
				return
			}
			fmt.Fprint(w, dockerAnswer)
		}, 3, ""},
		{"refuses", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, 0, "list networks of docker: 403 Forbidden"},
		{"hangs", func(http.ResponseWriter, *http.Request) { <-hung }, 0, "deadline exceeded"},
		{"hangs in the middle", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, dockerAnswer[:100])
			w.(http.Flusher).Flush()
			<-hung
		}, 0, "deadline exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "docker.sock")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			s := &http.Server{Handler: c.answer}
			go s.Serve(l)
			defer s.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got, err := askEngine(ctx, "docker", path)
			if len(got) != c.want || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%v, %v, want %d networks, %q", got, err, c.want, c.fault)
			}
		})
	}
	if _, err := askEngine(t.Context(), "docker", filepath.Join(t.TempDir(), "docker.sock")); err == nil {
		t.Error("no error of an engine that is absent")
	}
}

func TestUnitsByFiles(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{
		"sys/fs/cgroup/system.slice/jiji-dns.service",
		"sys/fs/cgroup/systemd/system.slice/jiji-daemon.service",
		"etc/systemd/system/multi-user.target.wants/wg-quick@jiji0.service",
		"etc/systemd/system/multi-user.target.wants/jiji-dns.service",
		"sys/fs/cgroup/system.slice/jiji-node.service",
	} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := []Unit{{"wg-quick@jiji0.service", false, true}, {"jiji-daemon.service", true, false}, {"jiji-dns.service", true, true}}
	if got := unitsByFiles(root, rivalUnits("jiji0")); !reflect.DeepEqual(got, want) {
		t.Errorf("units %v, want %v", got, want)
	}
	if got := unitsByFiles(t.TempDir(), rivalUnits("jiji0")); got != nil {
		t.Errorf("units %v on a machine without any", got)
	}
}

func TestReadRPFilter(t *testing.T) {
	root := t.TempDir()
	for conf, value := range map[string]string{"all": "1\n", "eth0": "2\n", "eth0.7": "0\n", "odd": "x\n"} {
		dir := filepath.Join(root, "proc/sys/net/ipv4/conf", conf)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "rp_filter"), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "proc/sys/net/ipv4/conf/went"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"all": 1, "eth0": 2, "eth0.7": 0}
	if got := readRPFilter(root); !reflect.DeepEqual(got, want) {
		t.Errorf("rp_filter %v, want %v", got, want)
	}
	if got := readRPFilter(t.TempDir()); got != nil {
		t.Errorf("rp_filter %v without /proc", got)
	}
}

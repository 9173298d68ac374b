//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

// A bad agent is named once, in the log and in status; the mesh goes on, and when
// the cause is mended the node recovers by itself.
func TestRegistryShow8MendedAgents(t *testing.T) {
	t.Parallel()
	const token, program = "/run/token", "/run/corrosion"
	external := []string{"--corrosion-url", "http://127.0.0.1:8099", "--corrosion-token-file", token}
	managed := []string{"--corrosion-bin", program}
	for _, c := range []struct {
		name, prepare string // BIN is a real agent
		args          []string
		want          string // of the registry's error
		mend          string // "" proves no recovery
		mended        string // what the error lacks then; "": the registry is up
	}{
		{"BinaryMissing", "", managed, `there is no corrosion binary "` + program + `"`, "ln -s BIN " + program, ""},
		{"NotCorrosion", "ln -s /bin/echo " + program, managed, `is no corrosion: asked for its version it says`, "ln -sf BIN " + program, ""},
		{"DiesEverySecond", `printf '#!/bin/sh\nif [ "$1" = --version ]; then echo corrosion 1.0.0; exit; fi\nsleep 1; echo bad luck; exit 3\n' >` + program + "; chmod 755 " + program, managed, "exit status 3: bad luck", "ln -sf BIN " + program, ""},
		{"NoTokenFile", "", external, token + ": no such file", "printf secret >" + token + "; chmod 600 " + token, "token of the agent"},
		{"EmptyTokenFile", ": >" + token + "; chmod 600 " + token, external, token + " is empty", "printf secret >" + token, "token of the agent"},
		{"TokenFileOfAll", "printf secret >" + token + "; chmod 644 " + token, external, token + " has mode 0644", "chmod 600 " + token, "token of the agent"},
		{"NoIPv6", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6", managed, "sysctl -w net.ipv6.conf.all.disable_ipv6=0", "", ""},
		{"GarbageAPI", `cd /run; nohup python3 -c 'import http.server as h
class H(h.BaseHTTPRequestHandler):
  def do_POST(s): s.send_response(200); s.end_headers(); s.wfile.write(b"<html>")
h.HTTPServer(("127.0.0.1",8099),H).serve_forever()' >/dev/null 2>&1 &`, external[:2], "<html>", "", ""},
		{"APIPortTaken", `nohup python3 -c 'import socket,time; s=socket.create_server(("127.0.0.1",8080)); time.sleep(600)' >/dev/null 2>&1 & echo $! >/run/holder; ln -s BIN ` + program, managed, "API address 127.0.0.1:8080/tcp is taken", "kill $(cat /run/holder)", ""},
		{"GossipPortTaken", `nohup python3 -c 'import socket,time; s=socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::",8787)); time.sleep(600)' >/dev/null 2>&1 & echo $! >/run/holder; ln -s BIN ` + program, managed, "]:8787/udp is taken by python3", "kill $(cat /run/holder)", ""},
		{"GossipPortOfAnotherAgent", `cat >/run/other.toml <<'END'
db = { path = "/run/other.db", schema_paths = [] }
gossip = { addr = "[::]:8787", plaintext = true }
api = { addr = "127.0.0.1:8081" }
admin = { path = "/run/other.sock" }
END
nohup BIN -c /run/other.toml agent >/dev/null 2>&1 & echo $! >/run/holder; until ss -ulnH | grep -q :8787; do sleep 0.1; done; ln -s BIN ` + program, managed, "]:8787/udp is taken by corrosion", "kill -9 $(cat /run/holder)", ""},
		{"VersionTooOld", `printf '#!/bin/sh\necho corrosion 0.1.0\n' >` + program + "; chmod 755 " + program, managed, program + " is corrosion 0.1.0, which is from before July 2024", "ln -sf BIN " + program, ""},
		{"DatabaseTooOld", `cd /run; nohup python3 -c 'import http.server as h, time
class H(h.BaseHTTPRequestHandler):
  def do_GET(s): s.send_error(404)
  def do_POST(s):
    b=s.rfile.read(int(s.headers["Content-Length"]))
    old=b"crsql_db_versions" in b
    s.send_response(400 if old else 200)
    if "subs" in s.path: s.send_header("corro-query-id", "6a7c5a4c-0000-4000-8000-%012d" % (hash(b)%10**12))
    s.end_headers()
    s.wfile.write(b"{\"error\":\"no such table: crsql_db_versions\"}" if old else b"{\"columns\":[\"id\"]}\n{\"eoq\":{\"time\":0.1,\"change_id\":0}}\n"); s.wfile.flush()
    if "subs" in s.path: time.sleep(600)
h.ThreadingHTTPServer(("127.0.0.1",8099),H).serve_forever()' >/dev/null 2>&1 &`, external[:2], "is from before September 2025", "", ""},
		{"NobodyListens", "", external[:2], "127.0.0.1:8099", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newCluster(t, 2)
			web1 := m.servers[0]
			if c.prepare != "" {
				web1.Run("sh", "-c", strings.ReplaceAll(c.prepare, "BIN", m.bin))
			}
			m.launch(0, append([]string{"--registry", "corrosion"}, c.args...)...)
			m.launch(1)
			m.nodes[0].WaitReady()
			m.nodes[1].WaitReady()
			m.waitUp(m.servers...)
			waitRegistry(t, web1, 20*time.Second, func(r control.Registry) error {
				if r.Mode != control.Corrosion || !strings.Contains(r.Error, c.want) {
					return fmt.Errorf("want %q, registry is %+v", c.want, r)
				}
				return nil
			})
			began := time.Now()
			web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
			answers(t, web1, 0, "api.jiji", time.Second, "10.210.0.10")
			t.Logf("registered and answered after %v", time.Since(began))
			if c.args[0] == "--corrosion-url" {
				m.nodes[0].WaitLog(c.want, 10*time.Second)
			}
			if n := logged(m.nodes[0], c.want); n != 1 {
				t.Errorf("logged %d times, want once: %s", n, c.want)
			}
			if c.mend == "" {
				return
			}
			web1.Run("sh", "-c", strings.ReplaceAll(c.mend, "BIN", m.bin))
			began = time.Now()
			if c.mended == "" {
				m.joined(web1)
			} else {
				waitRegistry(t, web1, 20*time.Second, func(r control.Registry) error {
					if strings.Contains(r.Error, c.mended) {
						return fmt.Errorf("registry is %+v", r)
					}
					return nil
				})
			}
			t.Logf("recovered after %v", time.Since(began))
		})
	}
}

// Who holds the API's address before the agent does is told nothing.
func TestRegistryTokenIsForOurAgent(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	web1 := c.servers[0]
	web1.WriteFile("/run/stranger.py", `import socket, threading
def take(k):
  while True:
    b = k.recv(65536)
    if not b: return
    open("/run/heard", "ab").write(b)
s = socket.create_server(("127.0.0.1", 8080), backlog=100)
while True: threading.Thread(target=take, args=[s.accept()[0]], daemon=True).start()
`)
	stranger := web1.Spawn("python3", "/run/stranger.py")
	lab.Eventually(t, 10*time.Second, "the stranger listens", func() error {
		_, err := web1.Try("sh", "-c", "ss -tlnH | grep -q :8080")
		return err
	})
	c.mesh.startAll(c.corrosion()...)
	waitSays(t, web1, "API address 127.0.0.1:8080/tcp is taken by python3", 20*time.Second)
	web1.Run("jiji-node", "service", "register", "api", "--ip", "10.210.0.10")
	time.Sleep(12 * time.Second) // two rounds of all that is asked regularly
	if heard, err := web1.Try("cat", "/run/heard"); err == nil {
		token := web1.ReadFile("/var/lib/jiji/corrosion/token")
		t.Errorf("the stranger heard %d bytes; the token is among them: %v", len(heard), strings.Contains(heard, strings.TrimSpace(token)))
	}
	stranger.Kill9()
	for _, s := range c.servers {
		c.joined(s)
	}
	answers(t, c.servers[1], 1, "api.jiji", 10*time.Second, "10.210.0.10")
}

// An agent that says it is of another version is named on each side, once; all goes
// on. TestRegistryMixedAgents has two that are.
func TestRegistryShow8DifferentAgents(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	web2 := c.servers[1]
	web2.WriteFile("/etc/corrosion.sh", "#!/bin/sh\nif [ \"$1\" = --version ]; then echo corrosion 9.9.9; exit; fi\nexec "+c.bin+" \"$@\"\n")
	web2.Run("chmod", "755", "/etc/corrosion.sh")
	for i, bin := range []string{c.bin, "/etc/corrosion.sh", c.bin} {
		c.launch(i, "--registry", "corrosion", "--corrosion-bin", bin)
	}
	for i, s := range c.servers {
		c.joined(s)
		t.Log(warned(t, s, 90*time.Second, "registry: agents of different versions: ", "corrosion 9.9.9", "web2"))
		if n := logged(c.nodes[i], "different versions"); n > 2 { // one as the first peer tells, one as the second does
			t.Errorf("%s logged it %d times", s.Name, n)
		}
	}
	web2.Run("jiji-node", "service", "register", "api", "--ip", "10.210.1.10")
	answers(t, c.servers[0], 0, "api.jiji", 5*time.Second, "10.210.1.10")
}

// logged counts the warnings and errors that a node logged with a text.
func logged(p *lab.Process, text string) (n int) {
	for line := range strings.Lines(p.Log()) {
		if (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) && strings.Contains(strings.ReplaceAll(line, `\"`, `"`), text) {
			n++
		}
	}
	return n
}

func TestRegistryShow8WrongInput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, command, want string }{
		{"Mode", "jiji-node run --registry etcd", `--registry|"etcd"|want embedded or corrosion`},
		{"URL", "jiji-node run --registry corrosion --corrosion-url ftp://x", "--corrosion-url|ftp://x|want"},
		{"URLOfEmbedded", "jiji-node run --registry embedded --corrosion-url http://127.0.0.1:8080", "registry embedded|no URL"},
		{"API", "jiji-node run --corrosion-api 0.0.0.0:8080", `--corrosion-api|"0.0.0.0:8080"|127.0.0.1:8080`},
		{"TokenFile", "jiji-node run --registry corrosion --corrosion-url http://127.0.0.1:8080 --corrosion-token-file token", `token file "token"|absolute path`},
		{"GossipPort", "jiji-node run --gossip-port 0", "--gossip-port|0, want 1 to 65535"},
		{"GossipPortTooLarge", "jiji-node run --gossip-port 65536", "--gossip-port|65536|65535"},
		{"ControlPort", "jiji-node run --control-port 8787", "--control-port|8787|gossip port"},
		{"UseMode", "jiji-node registry use etcd", `registry "etcd"|want embedded or corrosion`},
		{"UseTokenFile", "jiji-node registry use corrosion --url http://127.0.0.1:8080 --token-file token", `token file "token"|absolute path`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			isRefused(t, newServer(t), typedWrong, c.want, "sh", "-c", c.command)
		})
	}
}

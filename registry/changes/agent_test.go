package changes

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An agent is a real Corrosion agent, where this machine has one.
const agent = "/opt/klukai/bin/corrosion"

// What cr-sqlite packs is what DecodeKey reads.
func TestDecodeKeyOfAgent(t *testing.T) {
	if _, err := os.Stat(agent); err != nil {
		t.Skipf("needs a Corrosion agent: %v", err)
	}
	api := startAgent(t, `
		CREATE TABLE texts (id TEXT NOT NULL PRIMARY KEY, v TEXT NOT NULL DEFAULT '');
		CREATE TABLE ints (id INTEGER NOT NULL PRIMARY KEY, v TEXT NOT NULL DEFAULT '');
		CREATE TABLE mixed (n INTEGER NOT NULL, b BLOB NOT NULL, r REAL NOT NULL, s TEXT NOT NULL, v TEXT NOT NULL DEFAULT '', PRIMARY KEY (n, b, r, s));
		CREATE TABLE loose (id ANY NOT NULL, other ANY NOT NULL DEFAULT '', v TEXT NOT NULL DEFAULT '', PRIMARY KEY (id, other));
	`)

	type row struct {
		table string
		key   []any
	}
	var rows []row
	for _, n := range []int{0, 1, 64, 127, 128, 255, 256, 300, 32767, 32768, 65000} {
		rows = append(rows, row{"texts", []any{strings.Repeat("x", n)}})
	}
	rows = append(rows, row{"texts", []any{"żółw-\x00-\u2028"}})
	for _, v := range []int64{0, 1, -1, 127, 128, 255, 256, -128, 32767, 32768, 65535, 65536, 1<<24 - 1, 1 << 24, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<40 + 5, 1 << 48, 1<<56 - 1, 1 << 56, 1<<63 - 1, -1 << 63, 10156800, -2500000} {
		rows = append(rows, row{"ints", []any{v}})
	}
	blob := bytes.Repeat([]byte{0xff, 0}, 200)
	rows = append(rows,
		row{"mixed", []any{int64(7), blob, 1.5, "a"}},
		row{"mixed", []any{int64(0), []byte{}, 0.0, ""}},
		row{"mixed", []any{int64(-9), []byte{0}, -1e300, strings.Repeat("ż", 200)}},
		row{"loose", []any{"text", int64(300)}},
		row{"loose", []any{int64(1) << 40, "text"}},
	)
	want := map[string][]any{} // by the value column
	for i, r := range rows {
		name := fmt.Sprintf("%s-%d", r.table, i)
		want[name] = r.key
		params := make([]any, len(r.key), len(r.key)+1)
		for j, v := range r.key {
			params[j] = v
			if b, ok := v.([]byte); ok {
				numbers := make([]int, len(b)) // an array of numbers is a blob
				for k := range b {
					numbers[k] = int(b[k])
				}
				params[j] = numbers
			}
		}
		marks := strings.Repeat("?,", len(r.key)) + "?"
		api.post(t, "/v1/transactions", [][]any{{"INSERT INTO " + r.table + " VALUES (" + marks + ")", append(params, name)}})
	}

	found := 0
	for line := range strings.Lines(api.post(t, "/v1/queries", `SELECT "table", hex(pk), val FROM crsql_changes WHERE cid = 'v'`)) {
		var event struct {
			Row []json.RawMessage `json:"row"`
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if event.Row == nil {
			continue
		}
		var cells []string
		if err := json.Unmarshal(event.Row[1], &cells); err != nil || len(cells) != 3 {
			t.Fatalf("%.200s: %v", line, err)
		}
		packed, err := hex.DecodeString(cells[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeKey(packed)
		if err != nil || !reflect.DeepEqual(got, want[cells[2]]) {
			t.Errorf("%s: %.40x is %.80v, %v, want %.80v", cells[2], packed, got, err, want[cells[2]])
		}
		found++
		if len(packed) < 40 {
			t.Logf("%-10s %x", cells[2], packed)
		}
	}
	if found != len(rows) {
		t.Errorf("%d keys, want %d", found, len(rows))
	}
}

// api is the address of an agent's.
type api string

// startAgent starts an agent with the schema; it ends with the test.
func startAgent(t *testing.T, schema string) api {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	port := func(network string) string {
		if network == "udp" {
			c, err := net.ListenPacket(network, "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return c.LocalAddr().String()
		}
		l, err := net.Listen(network, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	at := port("tcp")
	config := write("config.toml", fmt.Sprintf(`
		[db]
		path = "%[1]s/state.db"
		schema_paths = ["%[2]s"]
		[gossip]
		addr = "%[3]s"
		client_addr = "127.0.0.1:0"
		plaintext = true
		[api]
		addr = "%[4]s"
		[admin]
		path = "%[1]s/admin.sock"
	`, dir, write("schema.sql", schema), port("udp"), at))

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, agent, "-c", config, "agent")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // the signal is its error
		log.Close()
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", at)
		if err == nil {
			c.Close()
			return api(at)
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("the agent does not answer: %v\n%s", err, text)
		}
	}
}

// post returns the body of an answer that is 200.
func (a api) post(t *testing.T, path string, body any) string {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Post("http://"+string(a)+path, "application/json", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%.200s: %s, %v, %.300s", text, answer.Status, err, got)
	}
	return string(got)
}

package changes

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry/corrosion/agenttest"
)

// What cr-sqlite packs is what DecodeKey reads.
func TestDecodeKeyOfAgent(t *testing.T) {
	a := api(agenttest.Start(t, agenttest.Options{Schema: `
		CREATE TABLE texts (id TEXT NOT NULL PRIMARY KEY, v TEXT NOT NULL DEFAULT '');
		CREATE TABLE ints (id INTEGER NOT NULL PRIMARY KEY, v TEXT NOT NULL DEFAULT '');
		CREATE TABLE mixed (n INTEGER NOT NULL, b BLOB NOT NULL, r REAL NOT NULL, s TEXT NOT NULL, v TEXT NOT NULL DEFAULT '', PRIMARY KEY (n, b, r, s));
		CREATE TABLE loose (id ANY NOT NULL, other ANY NOT NULL DEFAULT '', v TEXT NOT NULL DEFAULT '', PRIMARY KEY (id, other));
	`}).URL)

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
		a.post(t, "/v1/transactions", [][]any{{"INSERT INTO " + r.table + " VALUES (" + marks + ")", append(params, name)}})
	}

	found := 0
	for line := range strings.Lines(a.post(t, "/v1/queries", `SELECT "table", hex(pk), val FROM crsql_changes WHERE cid = 'v'`)) {
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

// An api is the URL of an agent's.
type api string

// post returns the body of an answer that is 200.
func (a api) post(t *testing.T, path string, body any) string {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: 20 * time.Second}
	answer, err := client.Post(string(a)+path, "application/json", bytes.NewReader(text))
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

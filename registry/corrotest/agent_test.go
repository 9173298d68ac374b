package corrotest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// The statements of changes.txt and follow.txt, both recorded with klukai
// 0.1.4: what the log of changes holds after groups of transactions, and what
// subscriptions say of others. The last are those that Corrosion follows
// wrongly, and so does the double.
const likeSchema = `
CREATE TABLE pair (a INTEGER NOT NULL, b BLOB NOT NULL, v TEXT, PRIMARY KEY (b, a));
CREATE TABLE bare (id INTEGER PRIMARY KEY NOT NULL);
`

var likeChanges = [][][]string{
	{
		{"INSERT INTO services (name, project) VALUES ('a', 'p')"},
		{"INSERT INTO pair VALUES (0, x'', NULL)", "INSERT INTO pair VALUES (-1, x'00ff', 'x')", "INSERT INTO pair VALUES (300, x'01', 'y')", "INSERT INTO pair VALUES (9007199254740993, x'02', 'y')"},
		{"INSERT INTO bare VALUES (5)", "INSERT INTO bare VALUES (6)"},
	},
	{
		{"UPDATE services SET project = 'q'", "UPDATE services SET project = 'r'"},
		{"DELETE FROM services WHERE name = 'a'"},
	},
	{
		{"INSERT INTO services (name, project) VALUES ('a', 's')"},
		{"UPDATE pair SET a = 7 WHERE a = 0"},
		{"INSERT INTO services (name) VALUES ('t')", "DELETE FROM services WHERE name = 't'"},
		{"DELETE FROM bare WHERE id = 5"},
	},
	{
		{"INSERT INTO bare VALUES (5)"},
		{"INSERT OR REPLACE INTO services (name, project) VALUES ('a', 'u')"},
		{"INSERT INTO services (name, project) VALUES ('" + strings.Repeat("x", 300) + "', 'long')"},
		{"UPDATE pair SET v = 'x' WHERE v = 'x'"},
		{"INSERT INTO pair VALUES (7, x'', 'w') ON CONFLICT DO UPDATE SET v = excluded.v"},
		{"INSERT INTO services (name, project) VALUES ('m', 1)", "UPDATE services SET name = 'n' WHERE name = 'm'"},
	},
}

var likeFollow = [][]string{
	{"INSERT INTO services (name) VALUES ('z1')"},
	{"INSERT INTO bare VALUES (77)"},
	{"INSERT INTO containers (id, server_id) VALUES ('x1', 's1')"},
	{"INSERT INTO servers (id, hostname) VALUES ('s1', 'h1')"},
	{"UPDATE servers SET hostname = 'h2' WHERE id = 's1'"},
	{"DELETE FROM servers WHERE id = 's1'"},
	{"INSERT INTO servers (id, hostname) VALUES ('s2', 'h2'), ('s3', 'h2')", "UPDATE containers SET server_id = 's3'"},
	{"UPDATE pair SET v = 'k' WHERE a = 7", "DELETE FROM bare"},
	{"UPDATE containers SET server_id = 's2'", "DELETE FROM servers WHERE id = 's3'"},
	{"INSERT INTO pair VALUES (1, x'05', 'p')", "UPDATE pair SET a = 2 WHERE a = 1"},
	{"DELETE FROM services WHERE name = 'z1'", "INSERT INTO services (name, project) VALUES ('z1', '2')"},
	{"UPDATE services SET name = 'z2' WHERE name = 'z1'"},
}

// TestLikeAgent compares with what a real agent said to the same statements.
func TestLikeAgent(t *testing.T) {
	a := New(t, Config{Schema: readSchemaFile(t) + likeSchema, Coalesce: time.Hour}) // the test flushes
	var changes []string
	for _, group := range likeChanges {
		for _, statements := range group {
			if err := write(a, statements...); err != nil {
				t.Fatal(err)
			}
		}
		lines := strings.SplitAfter(query(t, a, `SELECT "table", hex(pk), cid, val, col_version, db_version, cl, seq FROM crsql_changes ORDER BY db_version, seq`), "\n")
		changes = append(changes, strings.Join(lines[1:len(lines)-2], ""))
	}
	golden(t, "changes.txt", strings.Join(changes, "\n"))

	want := strings.Split(goldenText(t, "follow.txt"), "\n")
	var queries []string
	for _, line := range want {
		if strings.HasPrefix(line, "SELECT ") {
			queries = append(queries, line)
		}
	}
	var streams []*lines
	for _, q := range queries {
		streams = append(streams, subscribe(t, a, "", q))
	}
	updates := open(t, a, "POST", "/v1/updates/pair", "")
	for _, statements := range likeFollow {
		if err := write(a, statements...); err != nil {
			t.Fatal(err)
		}
		a.Flush()
	}
	a.EndStreams()
	var got strings.Builder
	for i, s := range streams {
		got.WriteString(queries[i] + "\n" + settle(s.rest()))
	}
	got.WriteString("updates of pair\n" + updates.rest())
	golden(t, "follow.txt", got.String())
}

func goldenText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/klukai-0.1.4/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "    ", "")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if want := goldenText(t, name); got != want {
		t.Errorf("%s\n%s\nwant\n%s", name, got, want)
	}
}

// A lines is an open stream.
type lines struct {
	t        *testing.T
	status   int
	header   http.Header
	body     *bufio.Reader
	response *http.Response
}

func open(t *testing.T, a *Agent, method, path, body string) *lines {
	t.Helper()
	l, err := tryOpen(t, a, method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func tryOpen(t *testing.T, a *Agent, method, path, body string) (*lines, error) {
	r, err := http.NewRequestWithContext(t.Context(), method, a.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer t0ken")
	response, err := client().Do(r)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { response.Body.Close() })
	return &lines{t, response.StatusCode, response.Header, bufio.NewReader(response.Body), response}, nil
}

func subscribe(t *testing.T, a *Agent, params, sql string) *lines {
	t.Helper()
	b, err := json.Marshal(sql)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, a, "POST", "/v1/subscriptions"+params, string(b))
}

// again attaches to the subscription of l once more.
func (l *lines) again(a *Agent, params string) *lines {
	l.t.Helper()
	return open(l.t, a, "GET", "/v1/subscriptions/"+l.header.Get("corro-query-id")+params, "")
}

func query(t *testing.T, a *Agent, sql string) string {
	t.Helper()
	b, err := json.Marshal(sql)
	if err != nil {
		t.Fatal(err)
	}
	return settle(open(t, a, "POST", "/v1/queries", string(b)).rest())
}

// next reads one line, or fails the test after a while.
func (l *lines) next() string {
	l.t.Helper()
	timer := time.AfterFunc(10*time.Second, func() { l.response.Body.Close() })
	defer timer.Stop()
	line, err := l.body.ReadString('\n')
	if err != nil {
		l.t.Fatalf("read a line: %v after %q", err, line)
	}
	return settle(strings.TrimSuffix(line, "\n"))
}

// want reads lines and compares them.
func (l *lines) want(wanted ...string) {
	l.t.Helper()
	for _, w := range wanted {
		if got := l.next(); got != w {
			l.t.Fatalf("line %s, want %s", got, w)
		}
	}
}

// rest reads to the clean end of the body.
func (l *lines) rest() string {
	l.t.Helper()
	text, err := l.end()
	if err != nil {
		l.t.Fatalf("the body breaks: %v after %q", err, text)
	}
	return text
}

// end reads to the end of the body, however it ends.
func (l *lines) end() (string, error) {
	timer := time.AfterFunc(20*time.Second, func() { l.response.Body.Close() })
	defer timer.Stop()
	b, err := io.ReadAll(l.body)
	return string(b), err
}

// silent fails the test if a line comes within a moment.
func (l *lines) silent() {
	l.t.Helper()
	timer := time.AfterFunc(100*time.Millisecond, func() { l.response.Body.Close() })
	defer timer.Stop()
	if line, err := l.body.ReadString('\n'); err == nil {
		l.t.Fatalf("got line %q, want silence", line)
	}
}

func newAgent(t *testing.T) *Agent {
	t.Helper()
	return New(t, Config{Schema: readSchemaFile(t), Token: "t0ken"})
}

func mustWrite(t *testing.T, a *Agent, statements ...string) {
	t.Helper()
	if err := write(a, statements...); err != nil {
		t.Fatal(err)
	}
}

func insert(i int) string { return fmt.Sprintf("INSERT INTO services (name) VALUES ('n%d')", i) }

// client makes a connection for each request: one kept from before a restart
// would break the first request after it.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

package corrotest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// An exchange is what a client sent to a real agent, and what came back:
// testdata, described in the README of the recordings.
type exchange struct {
	Note    string
	Request struct {
		Method, Path string
		Headers      map[string]string
		Body         string
	}
	Status  *int
	Headers map[string]string
	Body    []struct {
		MS   float64
		Data string
	}
	End string
}

func recorded(t *testing.T, flavour, name string) []exchange {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", flavour, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Exchanges []exchange }
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	return file.Exchanges
}

func readSchemaFile(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("testdata/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// leftOut names the exchanges that are not replayed, by file and place, with
// the reason.
func leftOut(flavour, file string, i int) string {
	return map[string]string{
		"upstream/transactions/5": "two wrong names: which one is named depends on the order of a hash map",
		"upstream/queries/25":     "generate_series is not in the pure Go build of SQLite",
		"klukai-0.1.4/queries/25": "generate_series is not in the pure Go build of SQLite",
		"klukai-0.1.4/queries/18": "runs for minutes: the fork ignores the timeout, and the recording stopped reading",
	}[fmt.Sprintf("%s/%s/%d", flavour, file, i)]
}

var varying = []struct {
	pattern     *regexp.Regexp
	replacement string
}{
	{regexp.MustCompile(`"time":[0-9.e-]+`), `"time":T`},
	{regexp.MustCompile(`"actor_id":"[0-9a-f]{32}"`), `"actor_id":"A"`},
	{regexp.MustCompile(`"[0-9A-F]{32}"`), `"A"`},
	{regexp.MustCompile(`"3\.[0-9]+\.[0-9]+"`), `"SQLite"`},
}

func settle(body string) string {
	for _, v := range varying {
		body = v.pattern.ReplaceAllString(body, v.replacement)
	}
	return body
}

// A replay plays one recording against a double.
type replay struct {
	*testing.T
	agent *Agent
	ids   map[string]string // query IDs of the recording, as they are here
	seen  map[string]bool   // query IDs here that stand for one there
	open  []io.Closer
}

func (p *replay) send(x exchange) (*http.Response, error) {
	path := x.Request.Path
	for there, here := range p.ids {
		path = strings.ReplaceAll(path, there, here)
	}
	r, err := http.NewRequest(x.Request.Method, p.agent.URL()+path, strings.NewReader(x.Request.Body))
	if err != nil {
		p.Fatal(err)
	}
	for k, v := range x.Request.Headers {
		r.Header.Set(k, v)
	}
	return client().Do(r)
}

// check compares the head of an answer with what was recorded.
func (p *replay) check(x exchange, r *http.Response) {
	if r.StatusCode != *x.Status {
		p.Errorf("status %d, want %d", r.StatusCode, *x.Status)
	}
	if got, want := r.Header.Get("Content-Type"), x.Headers["content-type"]; got != want {
		p.Errorf("content type %q, want %q", got, want)
	}
	if got, want := r.Header.Get("Allow"), x.Headers["allow"]; got != want {
		p.Errorf("allow %q, want %q", got, want)
	}
	if got, want := r.Header.Get("corro-query-hash"), x.Headers["corro-query-hash"]; got != want {
		p.Errorf("query hash %q, want %q", got, want)
	}
	if got, want := len(r.TransferEncoding) > 0, x.Headers["transfer-encoding"] == "chunked"; got != want {
		p.Errorf("chunked is %t, want %t", got, want)
	}
	here, there := r.Header.Get("corro-query-id"), x.Headers["corro-query-id"]
	switch {
	case (here == "") != (there == ""):
		p.Errorf("query ID %q, want one like %q", here, there)
	case there == "":
	case p.ids[there] == "":
		if p.seen[here] {
			p.Errorf("query ID %s again, want a new one", here)
		}
		p.ids[there], p.seen[here] = here, true
	case p.ids[there] != here:
		p.Errorf("query ID %s, want that of before, %s", here, p.ids[there])
	}
}

// expect reads as many bytes as were recorded and compares them; a body that
// ended has to end.
func (p *replay) expect(body io.Reader, want string, end bool) {
	want = settle(want)
	var got bytes.Buffer
	lines := strings.Count(want, "\n")
	if end {
		if _, err := got.ReadFrom(body); err != nil {
			p.Errorf("read body: %v", err)
		}
	} else {
		one := make([]byte, 1)
		for strings.Count(got.String(), "\n") < lines {
			if _, err := io.ReadFull(body, one); err != nil {
				p.Errorf("after %q: %v", got.String(), err)
				break
			}
			got.Write(one)
		}
	}
	p.compare(got.String(), want)
}

func (p *replay) compare(got, want string) {
	for there, here := range p.ids {
		want = strings.ReplaceAll(want, there, here)
	}
	if got = settle(got); got != want {
		p.Errorf("body\n%s\nwant\n%s", got, want)
	}
}

func (x exchange) text() string {
	var b strings.Builder
	for _, piece := range x.Body {
		b.WriteString(piece.Data)
	}
	return b.String()
}

// TestRecordings replays what real agents answered.
func TestRecordings(t *testing.T) {
	for _, flavour := range []string{"upstream", "klukai-0.1.4"} {
		t.Run(flavour, func(t *testing.T) {
			cfg := Config{Schema: readSchemaFile(t), Token: "t0ken", Coalesce: time.Hour} // the test flushes
			if flavour != "upstream" {
				cfg.Flavour = Klukai
			}
			p := &replay{agent: New(t, cfg), ids: map[string]string{}, seen: map[string]bool{}}
			files := []string{"transactions", "queries", "health", "subscriptions", "updates"}
			if flavour == "upstream" {
				files = append(files, "lifecycle")
			}
			for _, file := range files {
				if file == "subscriptions" {
					p.T = t
					p.prepareSubscriptions()
				}
				for i, x := range recorded(t, flavour, file) {
					t.Run(fmt.Sprintf("%s/%d", file, i), func(t *testing.T) {
						if why := leftOut(flavour, file, i); why != "" {
							t.Skip(why)
						}
						p.T = t
						p.exchange(file, i, x)
					})
				}
			}
			for _, c := range p.open {
				c.Close()
			}
		})
	}
}

func (p *replay) exchange(file string, i int, x exchange) {
	if x.End == "refused" {
		p.agent.Stop()
		if _, err := p.send(x); err == nil {
			p.Error("a stopped agent accepts connections")
		}
		p.agent.Start()
		return
	}
	r, err := p.send(x)
	if x.Status == nil {
		if err == nil {
			r.Body.Close()
			p.Errorf("status %d, want a connection that closes before it", r.StatusCode)
		}
		return
	}
	if err != nil {
		p.Fatal(err)
	}
	p.open = append(p.open, r.Body)
	p.check(x, r)
	if scene := scenes[fmt.Sprintf("%s/%d", file, i)]; scene != nil {
		scene(p, x, r.Body)
		return
	}
	p.expect(r.Body, x.text(), x.End == "end")
}

// write runs statements as one transaction, beside what was recorded.
func (p *replay) write(statements ...string) {
	if err := write(p.agent, statements...); err != nil {
		p.Fatal(err)
	}
}

// prepareSubscriptions makes the rows that were there before the recording of
// subscriptions.
func (p *replay) prepareSubscriptions() {
	p.write("INSERT INTO containers (id, service, server_id, ip) VALUES ('c1', 'api', 'a', '10.210.0.2')",
		"INSERT INTO containers (id, service, server_id, ip) VALUES ('c2', 'api', 'a', '10.210.0.3')")
}

// writeInto returns a scene: the stream begins as recorded; then each group is
// written, told of, and the rest of the stream is as recorded.
func writeInto(groups ...[]string) func(*replay, exchange, io.Reader) {
	return func(p *replay, x exchange, body io.Reader) {
		text := x.text()
		head := strings.Index(text, `{"change"`)
		if head < 0 {
			head = strings.Index(text, `{"notify"`)
		}
		p.expect(body, text[:head], false)
		for _, g := range groups {
			for _, statement := range g {
				p.write(strings.Split(statement, ";")...)
			}
			p.agent.Flush()
		}
		p.expect(body, text[head:], false)
	}
}

// scenes are the exchanges during which something else happened.
var scenes = map[string]func(*replay, exchange, io.Reader){
	"subscriptions/0": writeInto(
		[]string{"INSERT INTO containers (id, service, server_id, ip) VALUES ('c3', 'web', 'a', '10.210.0.4')"},
		[]string{"UPDATE containers SET health_status = 'unhealthy' WHERE id = 'c3'"},
		[]string{"UPDATE containers SET last_health_check = 5 WHERE id = 'c3'"},
		[]string{"DELETE FROM containers WHERE id = 'c3'"},
		[]string{
			"UPDATE containers SET ip = '10.210.0.100' WHERE id = 'c1'", "UPDATE containers SET ip = '10.210.0.101' WHERE id = 'c1'",
			"UPDATE containers SET ip = '10.210.0.102' WHERE id = 'c1'", "UPDATE containers SET ip = '10.210.0.103' WHERE id = 'c1'",
			"UPDATE containers SET ip = '10.210.0.104' WHERE id = 'c1'",
		},
		[]string{"INSERT INTO containers (id) VALUES ('gone')", "DELETE FROM containers WHERE id = 'gone'"},
		[]string{"INSERT INTO containers (id, service) VALUES ('p1', 'x');UPDATE containers SET service = 'y' WHERE id = 'c1';DELETE FROM containers WHERE id = 'c2'"},
	),
	"subscriptions/4": writeInto([]string{"UPDATE containers SET service = 'z' WHERE id = 'c1'"}),
	"subscriptions/7": writeInto([]string{"UPDATE containers SET service = 'zz' WHERE id = 'c1'"}),
	"updates/0": writeInto(
		[]string{"INSERT INTO servers (id) VALUES ('u1')"},
		[]string{"UPDATE servers SET hostname = 'u' WHERE id = 'u1'"},
		[]string{"DELETE FROM servers WHERE id = 'u1'"},
	),
	"lifecycle/0": func(p *replay, x exchange, body io.Reader) {
		writeInto([]string{"INSERT INTO containers (id, service) VALUES ('l1', 'x')"})(p, x, body)
		p.agent.Stop()
		p.expect(body, "", true)
	},
	"lifecycle/2": writeInto([]string{"INSERT INTO containers (id, service) VALUES ('l2', 'x')"}),
	"lifecycle/3": func(p *replay, x exchange, body io.Reader) {
		p.expect(body, x.text(), false)
		p.agent.Kill()
		if rest, err := io.ReadAll(body); err == nil {
			p.Errorf("the body ended cleanly after %q, want a connection that breaks", rest)
		}
		p.agent.Start()
	},
	"lifecycle/6": func(p *replay, x exchange, body io.Reader) {
		p.expect(body, x.text(), false)
		schema := strings.Replace(readSchemaFile(p), "health_port INTEGER", "health_port INTEGER, project TEXT, name TEXT NOT NULL DEFAULT ''", 1) +
			"CREATE TABLE observations (server_id TEXT NOT NULL, peer_id TEXT NOT NULL, endpoint TEXT NOT NULL DEFAULT '', PRIMARY KEY (server_id, peer_id));"
		if err := p.agent.Reload(schema); err != nil {
			p.Fatal(err)
		}
	},
	"lifecycle/9": func(p *replay, x exchange, body io.Reader) {
		writeInto([]string{"UPDATE containers SET service = 'after' WHERE id = 'l1'"})(p, x, body)
		if err := p.agent.Reload("CREATE TABLE broken (id TEXT)"); err == nil {
			p.Error("a table without a key was accepted")
		}
	},
}

// write runs statements as one transaction over the API.
func write(a *Agent, statements ...string) error {
	b, err := json.Marshal(statements)
	if err != nil {
		return err
	}
	r, err := http.NewRequest("POST", a.URL()+"/v1/transactions", bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer t0ken")
	answer, err := client().Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != 200 {
		return fmt.Errorf("write %q: %d %s", statements, answer.StatusCode, text)
	}
	return nil
}

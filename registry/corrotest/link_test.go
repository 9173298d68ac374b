package corrotest

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// rows reads a table as lists of cells.
func rows(t *testing.T, a *Agent, sql string) string {
	t.Helper()
	var all []string
	for line := range strings.Lines(query(t, a, sql)) {
		var event struct{ Row []json.RawMessage }
		if json.Unmarshal([]byte(line), &event) == nil && event.Row != nil {
			all = append(all, string(event.Row[1]))
		}
	}
	return "[" + strings.Join(all, ",") + "]"
}

// TestClusterAsRecorded repeats what three real agents were told while they
// were apart, and compares what they agreed on.
func TestClusterAsRecorded(t *testing.T) {
	b, err := os.ReadFile("testdata/upstream/cluster.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Case         string
			Node1, Node3 [][]string
			Before       []json.RawMessage `json:"before_heal"`
			After        []json.RawMessage `json:"after_heal"`
			BeforeSync   json.RawMessage   `json:"before_sync"`
			AfterSync    []json.RawMessage `json:"after_sync"`
			Result       []json.RawMessage
		}
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	agents := []*Agent{newAgent(t), newAgent(t), newAgent(t)}
	Link(agents[0], agents[1])
	Link(agents[1], agents[2])
	Link(agents[0], agents[2])
	apart := func() {
		Partition(agents[0], agents[2])
		Partition(agents[1], agents[2])
	}
	together := func() {
		Heal(agents[0], agents[2])
		Heal(agents[1], agents[2])
	}
	compare := func(t *testing.T, sql, when string, want json.RawMessage, who ...*Agent) {
		t.Helper()
		var compact strings.Builder
		var v any
		if err := json.Unmarshal(want, &v); err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(&compact).Encode(v); err != nil {
			t.Fatal(err)
		}
		for _, a := range who {
			if got := rows(t, a, sql) + "\n"; got != compact.String() {
				t.Errorf("%s: %s, want %s", when, got, compact.String())
			}
		}
	}
	for _, c := range file.Cases {
		t.Run(c.Case, func(t *testing.T) {
			sql := "SELECT id, hostname, subnet FROM servers WHERE id = 'k'"
			if strings.Contains(c.Case, "new rows") {
				sql = "SELECT id FROM containers WHERE service = 'part' ORDER BY id"
			}
			switch {
			case c.BeforeSync != nil:
				sql = "SELECT hostname FROM servers WHERE id = 'n3'"
				mustWrite(t, agents[2], "INSERT INTO servers (id, hostname) VALUES ('n3', 'old')")
				for i := 1; i <= 4; i++ {
					mustWrite(t, agents[2], fmt.Sprintf("UPDATE servers SET hostname = 'old%d' WHERE id = 'n3'", i))
				}
				apart()
				agents[2].Stop()
				agents[2].Wipe()
				agents[2].Start()
				mustWrite(t, agents[2], "INSERT INTO servers (id, hostname) VALUES ('n3', 'new')")
				compare(t, sql, "before sync", c.BeforeSync, agents[2])
				together()
				compare(t, sql, "after sync", c.AfterSync[0], agents...)
			case len(c.Node1) == 0:
				sql = "SELECT hostname FROM servers WHERE id = 'n3'"
				mustWrite(t, agents[2], "UPDATE servers SET hostname = 'new' WHERE id = 'n3'")
				compare(t, sql, "after", c.Result[0], agents...)
			default:
				apart()
				for _, s := range c.Node1 {
					mustWrite(t, agents[0], s...)
				}
				for _, s := range c.Node3 {
					mustWrite(t, agents[2], s...)
				}
				if c.Before != nil {
					compare(t, sql, "node 1 before heal", c.Before[0], agents[0])
					compare(t, sql, "node 3 before heal", c.Before[1], agents[2])
				}
				together()
				want := c.Result
				if c.After != nil {
					want = c.After
				}
				compare(t, sql, "after heal", want[0], agents...)
			}
		})
	}
}

// TestMergeOrder checks the order of merging that recordings do not show:
// values of different types, and that all orders of delivery agree.
func TestMergeOrder(t *testing.T) {
	const schema = "CREATE TABLE t (id TEXT PRIMARY KEY NOT NULL, v)" // v keeps the type it is given
	values := []string{"NULL", "x'ff'", "'z'", "1.5", "-7"}           // each wins over those before
	for i, low := range values {
		for _, high := range values[i+1:] {
			a, b := New(t, Config{Schema: schema, Token: "t0ken"}), New(t, Config{Schema: schema, Token: "t0ken"})
			Link(a, b)
			Partition(a, b)
			mustWrite(t, a, "INSERT INTO t VALUES ('k', "+low+")")
			mustWrite(t, b, "INSERT INTO t VALUES ('k', "+high+")")
			Heal(a, b)
			const sql = "SELECT quote(v) FROM t"
			want := rows(t, b, "SELECT quote("+high+")")
			if got, other := rows(t, a, sql), rows(t, b, sql); got != want || other != want {
				t.Errorf("%s and %s: %s and %s, want %s", low, high, got, other, want)
			}
		}
	}
}

func TestHeldChanges(t *testing.T) {
	a, b := newAgent(t), newAgent(t)
	Link(a, b)
	held := b.HoldChanges()
	l := subscribe(t, b, "?skip_rows=true", "SELECT id, hostname, subnet FROM servers")
	mustWrite(t, a, "INSERT INTO servers (id, hostname, subnet) VALUES ('a', 'h', 's')")
	mustWrite(t, a, "UPDATE servers SET subnet = 's2'")
	mustWrite(t, a, "INSERT INTO servers (id, hostname) VALUES ('b', 'h')")
	if n := held.Len(); n != 3 {
		t.Fatalf("%d versions wait, want 3", n)
	}
	held.DeliverCells(0, "hostname")
	l.want(`{"change":["insert",1,["a","h",""],1]}`)
	held.Deliver(1) // the later version first
	l.want(`{"change":["update",1,["a","h","s2"],2]}`)
	if got, want := rows(t, b, "SELECT start, end FROM __corro_bookkeeping_gaps"), "[[1,1]]"; got != want {
		t.Errorf("gaps %s, want %s", got, want)
	}
	held.Release()
	l.want(`{"change":["insert",3,["b","h",""],3]}`)
	if got, want := rows(t, b, "SELECT count(*) FROM __corro_bookkeeping_gaps"), "[[0]]"; got != want {
		t.Errorf("gaps %s, want %s", got, want)
	}
	if x, y := rows(t, a, "SELECT * FROM servers ORDER BY id"), rows(t, b, "SELECT * FROM servers ORDER BY id"); x != y {
		t.Errorf("%s and %s, want the same", x, y)
	}
	heads := "SELECT hex(site_id), db_version FROM crsql_db_versions ORDER BY 1"
	if x, y := rows(t, a, heads), rows(t, b, heads); x != y {
		t.Errorf("heads %s and %s, want the same", x, y)
	}
	mine := `SELECT "table", hex(pk), cid FROM crsql_changes WHERE site_id = unhex('` + a.ActorID() + `') AND db_version > 1 ORDER BY db_version, seq`
	want := `[["servers","010B0161","subnet"],["servers","010B0162","hostname"],["servers","010B0162","subnet"],["servers","010B0162","wireguard_ip"],["servers","010B0162","wireguard_pubkey"],` +
		`["servers","010B0162","management_ip"],["servers","010B0162","endpoints"],["servers","010B0162","last_seen"],["servers","010B0162","removed_at"]]`
	if got := rows(t, b, mine); settle(got) != want {
		t.Errorf("changes %s, want %s", got, want)
	}
	if got, want := rows(t, b, "SELECT hex(actor_id), address FROM __corro_members"), fmt.Sprintf(`[["%s","%s"]]`, strings.ToUpper(a.ActorID()), strings.TrimPrefix(a.URL(), "http://")); got != settle(want) {
		t.Errorf("members %s, want %s", got, want)
	}
}

// TestNoRoom: what the schema has no room for waits, until the agent is started
// with one that has; all else goes on. So did klukai 0.1.4, upstream's v1.0.0 and
// its state of 18 August 2026, with a table and with a column that they lacked.
func TestNoRoom(t *testing.T) {
	wide := strings.Replace(readSchemaFile(t), "project TEXT NOT NULL DEFAULT ''", "project TEXT NOT NULL DEFAULT '', extra TEXT", 1)
	a := New(t, Config{Schema: wide, Token: "t0ken"})
	b := New(t, Config{Schema: readSchemaFile(t), Token: "t0ken"})
	Link(a, b)
	mustWrite(t, a, "INSERT INTO services (name, extra) VALUES ('n1', 'x')")
	mustWrite(t, a, "INSERT INTO containers (id) VALUES ('n2')")
	is := func(when, query, want string) {
		t.Helper()
		if got := rows(t, b, query); got != want {
			t.Errorf("%s: %s: %s, want %s", when, query, got, want)
		}
	}
	const gaps = "SELECT start, end FROM __corro_bookkeeping_gaps"
	is("without room", "SELECT name FROM services", "[]")
	is("without room", "SELECT id FROM containers", `[["n2"]]`)
	is("without room", gaps, "[[1,1]]")
	if err := b.Reload(wide); err != nil {
		t.Fatal(err)
	}
	is("reloaded", "SELECT name, extra FROM services", "[]")
	is("reloaded", gaps, "[[1,1]]")
	b.Stop()
	b.Start()
	is("started again", "SELECT name, extra FROM services", `[["n1","x"]]`)
	is("started again", gaps, "[]")
}

// TestStoppedCatchesUp: an agent that was down gets what it missed.
func TestStoppedCatchesUp(t *testing.T) {
	a, b := newAgent(t), newAgent(t)
	Link(a, b)
	b.Stop()
	mustWrite(t, a, insert(1))
	b.Start()
	if got, want := rows(t, b, "SELECT name FROM services"), `[["n1"]]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestScale: as many containers as the largest mesh has.
func TestScale(t *testing.T) {
	total := 64768
	if testing.Short() || raceEnabled {
		total = 5000
	}
	a, b := newAgent(t), newAgent(t)
	Link(a, b)
	l := subscribe(t, b, "", "SELECT id, service, ip FROM containers")
	read := make(chan error, 1)
	go func() { // as it comes: a slow reader would be cut off
		for range 2 + total {
			if _, err := l.body.ReadString('\n'); err != nil {
				read <- err
				return
			}
		}
		read <- nil
	}()
	begin := time.Now()
	for i := 0; i < total; i += 500 {
		var statements []string
		for j := i; j < min(i+500, total); j++ {
			statements = append(statements, fmt.Sprintf("INSERT INTO containers (id, service, ip) VALUES ('c%d', 's', '10.210.%d.%d')", j, j/256, j%256))
		}
		mustWrite(t, a, statements...)
	}
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows written, merged elsewhere and read there from a stream in %v", total, time.Since(begin))
	begin = time.Now()
	second := subscribe(t, b, "", "SELECT id, service, ip FROM containers WHERE service = 's'")
	for range 2 + total {
		if _, err := second.body.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("snapshot in %v", time.Since(begin))
}

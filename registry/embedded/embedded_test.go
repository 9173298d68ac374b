package embedded

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/registrytest"
)

func container(i int) registry.Container {
	return registry.Container{
		ID:      fmt.Sprintf("%s-%d", strings.Repeat("4f1c2d3e", 7), i),
		Service: "api", Project: "shop", Name: fmt.Sprint("shop-api-", i),
		IP:        netip.AddrFrom4([4]byte{10, 210, 1, byte(2 + i%253)}),
		StartedAt: time.UnixMilli(1767225600000), Health: registry.Healthy,
		Ports: []registry.Port{{Number: 8080, Proto: "tcp"}},
	}
}

// TestKilledWriter kills a process that registers as fast as it can, and that
// sometimes has not even made the file.
func TestKilledWriter(t *testing.T) {
	if path := os.Getenv("TEST_KILLED_WRITER"); path != "" {
		killedWriter(t, path)
	}
	path := filepath.Join(t.TempDir(), "registry.db")
	acknowledged := 0
	for round := range 20 {
		life := 150 * time.Millisecond
		if round%5 == 0 { // now and then, start without a file and do not get far
			life = 30 * time.Millisecond
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			}
			acknowledged = 0
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), "TEST_KILLED_WRITER="+path, fmt.Sprint("TEST_FROM=", acknowledged))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := time.AfterFunc(rand.N(life), func() { cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscanf(lines.Text(), "registered %d", &acknowledged); err != nil {
				t.Fatalf("child said %q", lines.Text())
			}
			acknowledged++
		}
		end.Stop()
		cmd.Process.Kill() // if its output ended before
		cmd.Wait()

		s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self})
		if err != nil {
			t.Fatalf("after round %d: %v", round, err)
		}
		known := map[string]registry.Container{}
		for c := range s.Snapshot().All() {
			known[c.ID] = *c
		}
		for i := range acknowledged {
			if c := known[container(i).ID]; c.Project != "shop" || len(c.Ports) != 1 {
				t.Errorf("round %d: container %d was acknowledged and is %+v", round, i, c)
			}
		}
		for id, c := range known { // at most one came through without an answer, and whole
			if c.Project != "shop" {
				t.Errorf("round %d: %s is half there: %+v", round, id, c)
			}
		}
		if len(known) > acknowledged+1 || len(s.Snapshot().Skipped) > 0 {
			t.Errorf("round %d: %d containers, %d acknowledged, skipped %v", round, len(known), acknowledged, s.Snapshot().Skipped)
		}
		check(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		t.Logf("round %d: %d acknowledged, %d there", round, acknowledged, len(known))
	}
}

func killedWriter(t *testing.T, path string) {
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self})
	if err != nil {
		t.Fatal(err)
	}
	var i int
	fmt.Sscan(os.Getenv("TEST_FROM"), &i)
	for ; ; i++ {
		if err := s.Register(t.Context(), container(i)); err != nil {
			t.Fatal(err)
		}
		fmt.Println("registered", i)
	}
}

func check(t *testing.T, s *Store) {
	t.Helper()
	conn, err := s.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var verdict string
	if err := conn.QueryRowContext(t.Context(), `PRAGMA integrity_check`).Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity_check: %s, %v", verdict, err)
	}
}

func TestSchema(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "registry.db"))
	rows, err := s.db.Query(`
		SELECT t.name || ' ' || c.name || ' ' || c.type || iif(c."notnull", ' NOT NULL', '') || iif(c.pk, ' PK', '') || ifnull(' ' || c.dflt_value, '')
		FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table' ORDER BY t.name, c.cid`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		got = append(got, line)
	}
	const want = `cluster_metadata key TEXT NOT NULL PK
cluster_metadata value TEXT NOT NULL ''
containers id TEXT NOT NULL PK
containers service TEXT NOT NULL ''
containers server_id TEXT NOT NULL ''
containers ip TEXT NOT NULL ''
containers started_at INTEGER NOT NULL 0
containers instance_id TEXT
containers health_status TEXT NOT NULL 'healthy'
containers last_health_check INTEGER NOT NULL 0
containers consecutive_failures INTEGER NOT NULL 0
containers health_port INTEGER
jiji_containers id TEXT NOT NULL PK
jiji_containers server_id TEXT NOT NULL ''
jiji_containers project TEXT NOT NULL ''
jiji_containers name TEXT NOT NULL ''
jiji_containers ports TEXT NOT NULL '[]'
jiji_containers external INTEGER NOT NULL 0
jiji_meta key TEXT NOT NULL PK
jiji_meta value TEXT NOT NULL ''
jiji_servers id TEXT NOT NULL PK
jiji_servers version TEXT NOT NULL ''
jiji_servers boot_id TEXT NOT NULL ''
jiji_servers mtu INTEGER NOT NULL 0
jiji_servers claimed_at INTEGER NOT NULL 0
servers id TEXT NOT NULL PK
servers hostname TEXT NOT NULL ''
servers subnet TEXT NOT NULL ''
servers wireguard_ip TEXT NOT NULL ''
servers wireguard_pubkey TEXT NOT NULL ''
servers management_ip TEXT NOT NULL ''
servers endpoints TEXT NOT NULL ''
servers last_seen INTEGER NOT NULL 0
servers removed_at INTEGER
services name TEXT NOT NULL PK
services project TEXT NOT NULL ''`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("schema is\n%s\nwant\n%s", text, want)
	}
}

func TestCells(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "registry.db"))
	c := container(0)
	c.Instance, c.HealthPort, c.LastCheck, c.Failures = "", 0, time.UnixMilli(1767225700456), 3
	if err := s.Register(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var base, ours string
	if err := s.db.QueryRow(`SELECT concat_ws('|', service, server_id, ip, started_at, instance_id IS NULL, health_status,
		last_health_check, consecutive_failures, health_port IS NULL) FROM containers`).Scan(&base); err != nil {
		t.Fatal(err)
	}
	if err := s.db.QueryRow(`SELECT concat_ws('|', server_id, project, name, ports, external) FROM jiji_containers`).Scan(&ours); err != nil {
		t.Fatal(err)
	}
	if want := "api|web1|10.210.1.2|1767225600000|1|healthy|1767225700456|3|1"; base != want {
		t.Errorf("containers has %s, want %s", base, want)
	}
	if want := `web1|shop|shop-api-0|["8080/tcp"]|0`; ours != want {
		t.Errorf("jiji_containers has %s, want %s", ours, want)
	}
}

func TestModes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "registry.db")
	modes := func(want ...string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s %o", e.Name(), info.Mode().Perm()))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("files are %v, want %v", got, want)
		}
	}
	s := open(t, path)
	if err := s.Register(t.Context(), container(0)); err != nil {
		t.Fatal(err)
	}
	modes("registry.db 600", "registry.db-shm 600", "registry.db-wal 600")
	s.Close()
	modes("registry.db 600") // the log is in the file

	if err := os.Chmod(path, 0o644); err != nil { // restored from a backup, say
		t.Fatal(err)
	}
	s = open(t, path)
	if err := s.Register(t.Context(), container(1)); err != nil {
		t.Fatal(err)
	}
	modes("registry.db 600", "registry.db-shm 600", "registry.db-wal 600")
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a?b%20 #ü.db") // nothing in a path is special
	s := open(t, path)
	if err := s.Register(t.Context(), container(0)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	before := sum(t, path)
	s = open(t, path)
	if n := s.Snapshot().Len(); n != 1 {
		t.Errorf("%d containers after reopening, want 1", n)
	}
	if err := s.Register(t.Context(), container(0)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if sum(t, path) != before {
		t.Error("opening and registering the same changed the file")
	}
}

func sum(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// refused opens what must be refused, unchanged, by an error with these words.
func refused(t *testing.T, path string, words ...string) {
	t.Helper()
	var before [32]byte
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		before = sum(t, path)
	}
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self, BusyTimeout: 100 * time.Millisecond})
	if err == nil {
		s.Close()
		t.Fatalf("%s was opened", path)
	}
	t.Log(err)
	for _, w := range append(words, path) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q has several lines", err)
	}
	if before != [32]byte{} && sum(t, path) != before {
		t.Errorf("%s was changed", path)
	}
}

func TestRefusedFiles(t *testing.T) {
	filled := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "registry.db")
		s := open(t, path)
		for i := range 60 {
			if err := s.Register(t.Context(), container(i)); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		return path
	}
	overwrite := func(t *testing.T, path string, at int64, with []byte) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(with, at)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("not a database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "registry.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("{\"topology\":{}}\n", 100)), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, path, "damaged, or not an SQLite database", "move it away")
		if info, _ := os.Stat(path); info.Mode().Perm() != 0o644 {
			t.Errorf("its mode was changed to %v", info.Mode())
		}
	})
	t.Run("damaged head", func(t *testing.T) {
		path := filled(t)
		overwrite(t, path, 0, make([]byte, 100))
		refused(t, path, "damaged, or not an SQLite database")
	})
	t.Run("damaged page", func(t *testing.T) {
		path := filled(t)
		overwrite(t, path, 5*4096, bytes.Repeat([]byte{0xa5}, 4096))
		refused(t, path, "damaged, or not an SQLite database")
	})
	t.Run("cut off", func(t *testing.T) {
		path := filled(t)
		if err := os.Truncate(path, 6000); err != nil {
			t.Fatal(err)
		}
		refused(t, path, "damaged, or not an SQLite database")
	})
	t.Run("another program's", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "registry.db")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := openOutside(t, path).Exec(t.Context(), `CREATE TABLE containers (id TEXT)`); err != nil {
			t.Fatal(err)
		}
		refused(t, path, "another program (tables containers)", "name another file")
	})
	t.Run("newer and different", func(t *testing.T) {
		path := filled(t)
		o := openOutside(t, path)
		if err := o.Exec(t.Context(), `UPDATE jiji_meta SET value = ?`, "9"); err != nil {
			t.Fatal(err)
		}
		refused(t, path, "schema 9", "run the newer jiji-node")
	})
	t.Run("no version", func(t *testing.T) {
		path := filled(t)
		if err := openOutside(t, path).Exec(t.Context(), `DELETE FROM jiji_meta`); err != nil {
			t.Fatal(err)
		}
		refused(t, path, `schema_version is "" in jiji_meta`)
	})
	t.Run("lost file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "registry.db")
		if err := os.WriteFile(path+"-wal", []byte("log"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused(t, path, "put the file that it belongs to back")
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file was made: %v", err)
		}
	})
	t.Run("directory", func(t *testing.T) {
		refused(t, t.TempDir(), "not a regular file")
	})
	t.Run("no directory", func(t *testing.T) {
		refused(t, filepath.Join(t.TempDir(), "absent", "registry.db"), "no such file or directory")
	})
	t.Run("locked", func(t *testing.T) {
		path := filled(t)
		o := openOutside(t, path)
		for _, q := range []string{`PRAGMA locking_mode = EXCLUSIVE`, `BEGIN EXCLUSIVE`, `DELETE FROM services`} {
			if err := o.Exec(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, path, "locked by another program for 100ms")
	})
	t.Run("server id", func(t *testing.T) {
		_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "registry.db")})
		var invalid *registry.InvalidError
		if !errors.As(err, &invalid) || invalid.Field != "server id" {
			t.Errorf("open without server id: %v", err)
		}
	})
}

// TestNewerFile: what a newer version added is left alone.
func TestNewerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	open(t, path).Close()
	o := openOutside(t, path)
	for _, q := range []string{
		`UPDATE jiji_meta SET value = '7' WHERE key = 'schema_version'`,
		`ALTER TABLE jiji_containers ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'`,
		`CREATE TABLE jiji_observations (id TEXT PRIMARY KEY NOT NULL)`,
	} {
		if err := o.Exec(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, path)
	if err := s.Register(t.Context(), container(0)); err != nil {
		t.Fatal(err)
	}
	if err := o.Exec(t.Context(), `UPDATE jiji_containers SET colour = 'red'`); err != nil {
		t.Fatal(err)
	}
	c := container(0)
	c.Name = "other"
	if err := s.Register(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	var colour, version string
	if err := o.conn.QueryRowContext(t.Context(), `SELECT colour, (SELECT value FROM jiji_meta WHERE key = 'schema_version') FROM jiji_containers`).Scan(&colour, &version); err != nil {
		t.Fatal(err)
	}
	if colour != "red" || version != "7" {
		t.Errorf("colour %s, schema %s, want red, 7", colour, version)
	}
}

func TestLockedWhileRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self, BusyTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	o := openOutside(t, path)
	if err := o.Exec(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	err = s.Register(t.Context(), container(0))
	if err == nil || !strings.Contains(err.Error(), "locked by another program for 50ms") || !strings.Contains(err.Error(), path) {
		t.Errorf("Register: %v, want that the file is locked", err)
	}
	if err := o.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if err := s.Register(t.Context(), container(0)); err != nil {
		t.Errorf("Register after the lock: %v", err)
	}
}

func TestRemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s := open(t, path)
	if err := s.Register(t.Context(), container(0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Register(t.Context(), container(1)); err == nil || !strings.Contains(err.Error(), path+": the file was removed or replaced") {
			t.Errorf("Register: %v, want that the file was removed", err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Snapshot().Len(); n != 1 {
		t.Errorf("%d containers in the last snapshot, want 1", n)
	}
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	if err := s.Register(t.Context(), container(1)); err != nil {
		t.Errorf("Register with the file back: %v", err)
	}
}

// TestRunLogsOnce: a fault that lasts is one line, and its end another.
func TestRunLogsOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	var log bytes.Buffer // written by Run alone, read after it
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.poll = time.Millisecond
	run := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	run(200 * time.Millisecond)
	if n := strings.Count(log.String(), "registry cannot be read"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, log.String())
	}
	if got := s.Problem(); !strings.Contains(got, "the file was removed or replaced") {
		t.Errorf("problem %q while the file is away", got)
	}
	log.Reset()
	back := time.AfterFunc(50*time.Millisecond, func() { os.Rename(path+".old", path) })
	defer back.Stop()
	run(time.Second)
	if !strings.Contains(log.String(), "registry can be read again") {
		t.Errorf("recovery is not logged:\n%s", log.String())
	}
	if got := s.Problem(); got != "" {
		t.Errorf("problem %q after the recovery", got)
	}
}

func TestSkippedIsLoggedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	var log bytes.Buffer
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := openOutside(t, path).Exec(t.Context(), `INSERT INTO containers (id, service, server_id, ip) VALUES ('bad', 'api', 'web2', 'x')`); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := s.Register(t.Context(), container(i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "registry row skipped"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, log.String())
	}
}

// TestCloseWhileRegistering: each call either happened or says why not.
func TestCloseWhileRegistering(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	s := open(t, path)
	results := make(chan error)
	const calls = 20
	for i := range calls {
		go func() { results <- s.Register(context.Background(), container(i)) }()
	}
	good := 0
	count := func(err error) {
		if err == nil {
			good++
		} else if !errors.Is(err, registry.ErrClosed) {
			t.Errorf("Register: %v, want nil or ErrClosed", err)
		}
	}
	count(<-results)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for range calls - 1 {
		count(<-results)
	}
	if n := open(t, path).Snapshot().Len(); n != good {
		t.Errorf("%d containers, %d were acknowledged", n, good)
	}
}

func BenchmarkRegister253(b *testing.B) {
	s, err := Open(b.Context(), Config{Path: filepath.Join(b.TempDir(), "registry.db"), ServerID: registrytest.Self})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for i := range 253 {
		if err := s.Register(b.Context(), container(i)); err != nil {
			b.Fatal(err)
		}
	}
	for i := 0; b.Loop(); i++ {
		c := container(i % 253)
		c.Failures = i + 1
		if err := s.Register(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAdopt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	former, err := Open(t.Context(), Config{Path: path, ServerID: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := former.Register(t.Context(), container(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := former.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Path: path, ServerID: registrytest.Self})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := s.Adopt(t.Context(), "localhost"); n != 2 || err != nil {
		t.Errorf("adopted %d, %v", n, err)
	}
	for c := range s.Snapshot().All() {
		if c.ServerID != registrytest.Self || c.Project != "shop" {
			t.Errorf("after adoption: %+v", c)
		}
	}
	if n, err := s.Deregister(t.Context(), container(0).ID); n != 1 || err != nil {
		t.Errorf("an adopted container cannot be changed: %d, %v", n, err)
	}
	if n, err := s.Adopt(t.Context(), "localhost"); n != 0 || err != nil {
		t.Errorf("adopted again: %d, %v", n, err)
	}
}

// Package registrytest is the conformance suite of registry.Store: every
// backend behaves as it says, in the same way.
package registrytest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
)

// Self is the server whose store is under test.
const Self = "web1"

const patience = 10 * time.Second // for what others wrote to be seen

// An Outside is another program at the same tables: an older node, another
// server whose rows arrive, or an operator.
type Outside interface {
	// Exec runs one statement with positional parameters, in a transaction.
	Exec(ctx context.Context, statement string, args ...any) error

	// Version returns a number that differs from the last one if, and only if,
	// the store has changed a table since.
	Version(ctx context.Context) (int64, error)

	// Ready reports whether a store that runs writes at once, and not as soon as it may.
	Ready() bool
}

// Test runs the suite. open returns a new store of server Self on empty tables,
// and a way around it; both last until the end of t.
func Test(t *testing.T, open func(t *testing.T) (registry.Store, Outside)) {
	tests := []struct {
		name string
		run  func(*testing.T, fixture)
	}{
		{"Empty", testEmpty},
		{"RoundTrip", testRoundTrip},
		{"ReadYourWrites", testReadYourWrites},
		{"WriteOnlyWhatDiffers", testWriteOnlyWhatDiffers},
		{"SnapshotsAreImmutable", testSnapshotsAreImmutable},
		{"Order", testOrder},
		{"Changed", testChanged},
		{"Invalid", testInvalid},
		{"OtherServersRows", testOtherServersRows},
		{"ServicesAreNotContested", testServicesAreNotContested},
		{"SetHealth", testSetHealth},
		{"Deregister", testDeregister},
		{"ColumnsOfOthersSurvive", testColumnsOfOthersSurvive},
		{"RowsOfOlderPrograms", testRowsOfOlderPrograms},
		{"RowsNotHereYet", testRowsNotHereYet},
		{"BadRows", testBadRows},
		{"BadRowsOfOurTables", testBadRowsOfOurTables},
		{"HostileText", testHostileText},
		{"Concurrent", testConcurrent},
		{"CancelledContext", testCancelledContext},
		{"WithoutRun", testWithoutRun},
		{"Close", testClose},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store, outside := open(t)
			tt.run(t, fixture{store, outside})
		})
	}
}

type fixture struct {
	store   registry.Store
	outside Outside
}

// run runs the store until the end of the test; what is registered after it is written at once.
func (f fixture) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	f.until(t, "first snapshot", func(*registry.Snapshot) bool { return true })
	for late := time.Now().Add(patience); !f.outside.Ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("the store does not write within %v", patience)
		}
	}
}

// until waits for a snapshot that pleases ok.
func (f fixture) until(t *testing.T, what string, ok func(*registry.Snapshot) bool) *registry.Snapshot {
	t.Helper()
	late := time.After(patience)
	for {
		if s := f.store.Snapshot(); s != nil && ok(s) {
			return s
		}
		select {
		case <-f.store.Changed():
		case <-late:
			t.Fatalf("%s: not seen within %v; snapshot is %+v", what, patience, f.store.Snapshot())
		}
	}
}

func (f fixture) register(t *testing.T, c registry.Container) {
	t.Helper()
	if err := f.store.Register(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func (f fixture) exec(t *testing.T, statement string, args ...any) {
	t.Helper()
	if err := f.outside.Exec(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

// writes reports whether do makes the store write.
func (f fixture) writes(t *testing.T, do func()) bool {
	t.Helper()
	version := func() int64 {
		v, err := f.outside.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := version()
	do()
	return version() != before
}

// get returns the container of the latest snapshot.
func (f fixture) get(id string) (registry.Container, bool) {
	if s := f.store.Snapshot(); s != nil {
		for c := range s.All() {
			if c.ID == id {
				return *c, true
			}
		}
	}
	return registry.Container{}, false
}

// list returns the containers in their order.
func list(s *registry.Snapshot) []registry.Container {
	var all []registry.Container
	for c := range s.All() {
		all = append(all, *c)
	}
	return all
}

func (f fixture) want(t *testing.T, want registry.Container) {
	t.Helper()
	if got, _ := f.get(want.ID); !reflect.DeepEqual(got, want) {
		t.Errorf("container %s is\n%+v, want\n%+v", want.ID, got, want)
	}
}

// full has a value in every field, as the store keeps it.
func full() registry.Container {
	return registry.Container{
		ID:         "4f1c2d3e5a6b7988",
		Service:    "api",
		Project:    "shop",
		Instance:   "blue",
		Name:       "shop-api-1",
		ServerID:   Self,
		IP:         netip.MustParseAddr("10.210.1.15"),
		StartedAt:  time.UnixMilli(1767225600123).UTC(),
		Health:     registry.Degraded,
		LastCheck:  time.UnixMilli(1767225700456).UTC(),
		Failures:   2,
		HealthPort: 8081,
		Ports:      []registry.Port{{Number: 53, Proto: "tcp"}, {Number: 53, Proto: "udp"}, {Number: 8080, Proto: "tcp"}},
		External:   true,
	}
}

func small(id string) registry.Container {
	return registry.Container{ID: id, Service: "web", ServerID: Self, IP: netip.MustParseAddr("10.210.1.16"), Health: registry.Healthy}
}

func testEmpty(t *testing.T, f fixture) {
	f.run(t)
	if s := f.store.Snapshot(); s.Len() != 0 || len(s.Skipped) != 0 {
		t.Errorf("snapshot of empty tables is %+v", s)
	}
}

func testRoundTrip(t *testing.T, f fixture) {
	f.register(t, full())
	f.want(t, full())
	f.register(t, small("b"))
	f.want(t, small("b"))

	c := full()
	c.ID, c.ServerID = "c", ""
	c.StartedAt = c.StartedAt.Add(456 * time.Microsecond).In(time.FixedZone("", 3600))
	c.Ports = []registry.Port{c.Ports[2], c.Ports[1], c.Ports[0], c.Ports[1]}
	f.register(t, c)
	want := full()
	want.ID = "c"
	f.want(t, want)
	if c.Ports[0].Number != 8080 {
		t.Error("Register changed the caller's ports")
	}
}

func testReadYourWrites(t *testing.T, f fixture) {
	f.run(t)
	for i := range 20 {
		c := small(fmt.Sprint("c", i))
		f.register(t, c)
		f.want(t, c)
		if err := f.store.SetHealth(t.Context(), c.ID, registry.Unhealthy, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := f.get(c.ID); got.Health != registry.Unhealthy {
			t.Errorf("health of %s is %s after SetHealth", c.ID, got.Health)
		}
		if i%2 == 0 {
			if _, err := f.store.Deregister(t.Context(), c.ID); err != nil {
				t.Fatal(err)
			}
			if _, ok := f.get(c.ID); ok {
				t.Errorf("%s is there after Deregister", c.ID)
			}
		}
	}
	if n := f.store.Snapshot().Len(); n != 10 {
		t.Errorf("%d containers, want 10", n)
	}
}

func testWriteOnlyWhatDiffers(t *testing.T, f fixture) {
	f.register(t, full())
	f.register(t, small("b"))
	unordered := full()
	unordered.Ports = []registry.Port{unordered.Ports[2], unordered.Ports[0], unordered.Ports[1]}
	unordered.LastCheck = unordered.LastCheck.Add(time.Microsecond)
	for _, c := range []registry.Container{full(), unordered, small("b")} {
		if f.writes(t, func() { f.register(t, c) }) {
			t.Errorf("an equal %s was written again", c.ID)
		}
	}
	changes := map[string]func(*registry.Container){
		"service":     func(c *registry.Container) { c.Service = "db" },
		"project":     func(c *registry.Container) { c.Project = "" },
		"instance":    func(c *registry.Container) { c.Instance = "" },
		"name":        func(c *registry.Container) { c.Name = "other" },
		"ip":          func(c *registry.Container) { c.IP = netip.MustParseAddr("10.210.1.17") },
		"started at":  func(c *registry.Container) { c.StartedAt = time.Time{} },
		"health":      func(c *registry.Container) { c.Health = registry.Starting },
		"last check":  func(c *registry.Container) { c.LastCheck = c.LastCheck.Add(time.Second) },
		"failures":    func(c *registry.Container) { c.Failures = 0 },
		"health port": func(c *registry.Container) { c.HealthPort = 0 },
		"ports":       func(c *registry.Container) { c.Ports = nil },
		"external":    func(c *registry.Container) { c.External = false },
	}
	if fields := reflect.TypeFor[registry.Container]().NumField(); len(changes) != fields-2 { // but ID, ServerID
		t.Errorf("%d fields are tried, the type has %d", len(changes), fields)
	}
	for field, change := range changes {
		c := full()
		change(&c)
		if !f.writes(t, func() { f.register(t, c) }) {
			t.Errorf("a change of %s was not written", field)
		}
		f.want(t, c)
		f.register(t, full())
		f.want(t, full())
	}
}

func testSnapshotsAreImmutable(t *testing.T, f fixture) {
	f.register(t, full())
	before := f.store.Snapshot()
	c := full()
	c.Service, c.Ports = "db", nil
	f.register(t, c)
	f.register(t, small("a"))
	if before.Len() != 1 || !reflect.DeepEqual(list(before)[0], full()) {
		t.Errorf("a snapshot changed to %+v", before)
	}
}

func testOrder(t *testing.T, f fixture) {
	for _, name := range []string{"web/b", "api/z", "Api/y", "web/a", "API/x", "db_1/q"} {
		c := small("")
		c.Service, c.ID, _ = strings.Cut(name, "/")
		f.register(t, c)
	}
	ids := ""
	for c := range f.store.Snapshot().All() {
		ids += c.ID
	}
	if ids != "xyzqab" {
		t.Errorf("order is %s, want xyzqab", ids)
	}
}

func testChanged(t *testing.T, f fixture) {
	f.run(t)
	ticks := func() (n int) {
		for {
			select {
			case <-f.store.Changed():
				n++
			default:
				return n
			}
		}
	}
	ticks()
	for i := range 5 {
		f.register(t, small(fmt.Sprint("c", i)))
	}
	if n := ticks(); n != 1 {
		t.Errorf("Changed had %d values after five writes, want 1", n)
	}
	f.register(t, small("c0"))
	if n := ticks(); n != 0 {
		t.Errorf("Changed had %d values after an equal Register, want none", n)
	}
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "far", "web", "web2", "10.210.2.9")
	f.until(t, "another server's row", func(*registry.Snapshot) bool { _, ok := f.get("far"); return ok })
}

func testInvalid(t *testing.T, f fixture) {
	f.register(t, small("kept"))
	long := strings.Repeat("a", 300)
	tests := map[string]struct {
		field  string
		change func(*registry.Container)
	}{
		"no id":            {"id", func(c *registry.Container) { c.ID = "" }},
		"slash in id":      {"id", func(c *registry.Container) { c.ID = "a/b" }},
		"no service":       {"service", func(c *registry.Container) { c.Service = "" }},
		"dotted service":   {"service", func(c *registry.Container) { c.Service = "api.shop" }},
		"long service":     {"service", func(c *registry.Container) { c.Service = long[:64] }},
		"reserved service": {"service", func(c *registry.Container) { c.Service = "Node" }},
		"project":          {"project", func(c *registry.Container) { c.Project = "-a" }},
		"instance":         {"instance", func(c *registry.Container) { c.Instance = "a b" }},
		"name":             {"name", func(c *registry.Container) { c.Name = long }},
		"no ip":            {"ip", func(c *registry.Container) { c.IP = netip.Addr{} }},
		"loopback":         {"ip", func(c *registry.Container) { c.IP = netip.MustParseAddr("127.0.0.1") }},
		"IPv6":             {"ip", func(c *registry.Container) { c.IP = netip.MustParseAddr("2001:db8::1") }},
		"no health":        {"health", func(c *registry.Container) { c.Health = "" }},
		"failures":         {"failures", func(c *registry.Container) { c.Failures = -1 }},
		"before 1970":      {"started at", func(c *registry.Container) { c.StartedAt = time.Unix(-1, 0) }},
		"port":             {"port", func(c *registry.Container) { c.Ports = []registry.Port{{Number: 0, Proto: "tcp"}} }},
		"protocol":         {"port", func(c *registry.Container) { c.Ports = []registry.Port{{Number: 1, Proto: "icmp"}} }},
	}
	for name, tt := range tests {
		c := small("kept")
		tt.change(&c)
		var invalid *registry.InvalidError
		var err error
		if f.writes(t, func() { err = f.store.Register(t.Context(), c) }) {
			t.Errorf("%s: something was written", name)
		}
		if !errors.As(err, &invalid) || invalid.Field != tt.field {
			t.Errorf("%s: %v, want an InvalidError about %s", name, err, tt.field)
		}
	}
	f.want(t, small("kept"))
}

func testOtherServersRows(t *testing.T, f fixture) {
	f.run(t)
	f.register(t, small("mine"))
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "theirs", "web", "web2", "10.210.2.9")
	theirs := registry.Container{ID: "theirs", Service: "web", ServerID: "web2", IP: netip.MustParseAddr("10.210.2.9"), Health: registry.Healthy}
	f.until(t, "another server's row", func(*registry.Snapshot) bool { _, ok := f.get("theirs"); return ok })
	f.want(t, theirs)

	claim := small("theirs")
	sent := small("new")
	sent.ServerID = "web2"
	attempts := map[string]func() error{
		"register their id":   func() error { return f.store.Register(t.Context(), claim) },
		"register for them":   func() error { return f.store.Register(t.Context(), sent) },
		"set health of":       func() error { return f.store.SetHealth(t.Context(), "theirs", registry.Unhealthy, time.Time{}) },
		"deregister":          func() error { _, err := f.store.Deregister(t.Context(), "theirs"); return err },
		"deregister with own": func() error { _, err := f.store.Deregister(t.Context(), "mine", "theirs"); return err },
	}
	for name, attempt := range attempts {
		var err error
		if f.writes(t, func() { err = attempt() }) {
			t.Errorf("%s: something was written", name)
		}
		var owner *registry.OwnerError
		if !errors.As(err, &owner) || owner.Owner != "web2" || owner.Self != Self {
			t.Errorf("%s: %v, want an OwnerError that names web2 and %s", name, err, Self)
		}
	}
	f.want(t, theirs)
	f.want(t, small("mine"))
}

func testServicesAreNotContested(t *testing.T, f fixture) {
	f.exec(t, `INSERT INTO services (name, project) VALUES (?, ?)`, "api", "elsewhere")
	f.register(t, full())
	f.want(t, full())
	// A row without a project of ours shows what services holds.
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "old", "api", "web2", "10.210.2.9")
	f.run(t)
	f.until(t, "project of the service", func(*registry.Snapshot) bool { c, _ := f.get("old"); return c.Project == "elsewhere" })

	c := small("b") // a new service is inserted, with its first project
	c.Project = "first"
	f.register(t, c)
	c.ID, c.Project = "c", "second"
	f.register(t, c)
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "old2", "web", "web2", "10.210.2.10")
	f.until(t, "project of the service", func(*registry.Snapshot) bool { c, _ := f.get("old2"); return c.Project == "first" })
}

func testSetHealth(t *testing.T, f fixture) {
	f.register(t, full())
	at := time.UnixMilli(1767225800789).UTC()
	set := func(h registry.Health, at time.Time) bool {
		t.Helper()
		return f.writes(t, func() {
			if err := f.store.SetHealth(t.Context(), full().ID, h, at); err != nil {
				t.Error(err)
			}
		})
	}
	want := full()
	if set(want.Health, at) {
		t.Error("the same health was written")
	}
	f.want(t, want)
	want.Health, want.LastCheck = registry.Unhealthy, at
	if !set(want.Health, at) {
		t.Error("another health was not written")
	}
	f.want(t, want)
	want.Health, want.LastCheck, want.Failures = registry.Healthy, time.Time{}, 0
	if !set(want.Health, time.Time{}) {
		t.Error("another health was not written")
	}
	f.want(t, want)

	if err := f.store.SetHealth(t.Context(), "absent", registry.Healthy, at); !errors.Is(err, registry.ErrNotFound) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("SetHealth of an unknown id: %v, want ErrNotFound and the id", err)
	}
	var invalid *registry.InvalidError
	if err := f.store.SetHealth(t.Context(), full().ID, "fine", at); !errors.As(err, &invalid) || invalid.Value != "fine" {
		t.Errorf("SetHealth(fine): %v, want an InvalidError", err)
	}
	f.want(t, want)
}

func testDeregister(t *testing.T, f fixture) {
	remove := func(want int, ids ...string) {
		t.Helper()
		if n, err := f.store.Deregister(t.Context(), ids...); err != nil || n != want {
			t.Errorf("Deregister(%v) = %d, %v, want %d", ids, n, err, want)
		}
	}
	for _, id := range []string{"a", "b", "c", "d"} {
		f.register(t, small(id))
	}
	if f.writes(t, func() { remove(0); remove(0, "x", "", "a/b") }) {
		t.Error("removing nothing wrote something")
	}
	remove(2, "a", "x", "b", "a")
	if s := f.store.Snapshot(); s.Len() != 2 || list(s)[0].ID != "c" {
		t.Errorf("left are %+v, want c and d", list(s))
	}
	c := full()
	f.register(t, c)
	remove(1, c.ID)
	plain := small(c.ID) // what the first one had in addition is gone with it
	f.register(t, plain)
	f.want(t, plain)
}

func testColumnsOfOthersSurvive(t *testing.T, f fixture) {
	// Only the columns of the four tables are named: a tombstone, a server's row
	// and what Register does not know stay as they are.
	f.exec(t, `INSERT INTO servers (id, hostname, removed_at) VALUES (?, ?, ?)`, "web9", "web9", int64(1767225600000))
	f.exec(t, `INSERT INTO cluster_metadata (key, value) VALUES (?, ?)`, "service_domain", "jiji")
	f.register(t, full())
	f.register(t, small("b"))
	if _, err := f.store.Deregister(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := f.outside.Exec(t.Context(), `INSERT INTO servers (id) VALUES (?)`, "web9"); err == nil {
		t.Error("the row of servers is gone")
	}
	if err := f.outside.Exec(t.Context(), `INSERT INTO cluster_metadata (key) VALUES (?)`, "service_domain"); err == nil {
		t.Error("the row of cluster_metadata is gone")
	}
	if err := f.outside.Exec(t.Context(), `INSERT INTO services (name) VALUES (?)`, "web"); err == nil {
		t.Error("the row of services is gone with its last container")
	}
}

func testRowsOfOlderPrograms(t *testing.T, f fixture) {
	f.run(t)
	f.exec(t, `INSERT INTO services (name, project) VALUES (?, ?)`, "api", "shop")
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip, started_at, instance_id, health_status) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		"old", "api", "web2", "10.210.2.9", int64(1767225600123), "blue", "unhealthy")
	// Tables that are replicated come one by one.
	f.until(t, "the row and its service", func(*registry.Snapshot) bool { c, _ := f.get("old"); return c.Project != "" })
	f.want(t, registry.Container{ID: "old", Service: "api", Project: "shop", Instance: "blue", ServerID: "web2",
		IP: netip.MustParseAddr("10.210.2.9"), StartedAt: full().StartedAt, Health: registry.Unhealthy})
	f.exec(t, `DELETE FROM containers WHERE id = ?`, "old")
	f.until(t, "its deletion", func(*registry.Snapshot) bool { _, ok := f.get("old"); return !ok })
}

func testRowsNotHereYet(t *testing.T, f fixture) {
	f.run(t)
	f.exec(t, `INSERT INTO containers (id) VALUES (?)`, "partial")
	f.exec(t, `INSERT INTO containers (id, started_at, health_status) VALUES (?, ?, ?)`, "partial2", int64(5), "what")
	f.exec(t, `INSERT INTO jiji_containers (id, server_id, project) VALUES (?, ?, ?)`, "child", "web2", "shop") // before its parent
	f.exec(t, `INSERT INTO jiji_containers (id) VALUES (?)`, "whole")
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "whole", "api", "web2", "10.210.2.9")
	s := f.until(t, "the whole row", func(*registry.Snapshot) bool { _, ok := f.get("whole"); return ok })
	if s.Len() != 1 || len(s.Skipped) != 0 {
		t.Errorf("snapshot is %+v, want the whole row alone", s)
	}
	f.exec(t, `UPDATE containers SET service = ?, server_id = ?, ip = ?, health_status = ? WHERE id = ?`, "api", "web2", "10.210.2.10", "healthy", "partial2")
	f.until(t, "the row that became whole", func(*registry.Snapshot) bool { _, ok := f.get("partial2"); return ok })
}

func testBadRows(t *testing.T, f fixture) {
	f.register(t, small("good"))
	good := []any{"api", "web2", "10.210.2.9", int64(1), "healthy", int64(0), int64(0), nil}
	tests := []struct {
		id     string
		column int // which of good is replaced
		cell   any
		reason string
	}{
		{"no-service", 0, "", `service "": want `},
		{"service", 0, "api.shop", `service "api.shop": want `},
		{"reserved", 0, "node", `service "node": want `},
		{"no-server", 1, "", `server id "": want `},
		{"no-ip", 2, "", `ip "": want `},
		{"glued-ip", 2, "10.210.2.9172.17.0.2", `ip "10.210.2.9172.17.0.2": want an IPv4 address`},
		{"ipv6", 2, "fdcc::1", `ip "fdcc::1": want an IPv4 address`},
		{"loopback", 2, "127.0.0.1", `ip "127.0.0.1": want a unicast address, not loopback`},
		{"started", 3, int64(-1), `started_at "-1": want `},
		{"started-text", 3, "yesterday", `started_at "yesterday": want an integer`},
		{"started-late", 3, int64(1) << 62, `started_at "4611686018427387904": want `},
		{"health", 4, "great", `health "great": want `},
		{"checked", 5, int64(-5), `last_health_check "-5": want `},
		{"failures", 6, int64(-3), `consecutive_failures "-3": want `},
		{"port", 7, int64(70000), `health_port "70000": want `},
	}
	for _, tt := range tests {
		args := append([]any{tt.id}, good...)
		args[tt.column+1] = tt.cell
		f.exec(t, `INSERT INTO containers (id, service, server_id, ip, started_at, health_status, last_health_check, consecutive_failures, health_port)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, args...)
	}
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "bad id\n", "api", "web2", "10.210.2.9")
	f.run(t)
	s := f.until(t, "the last bad row", func(s *registry.Snapshot) bool { return len(s.Skipped) == len(tests)+1 })
	reasons := map[string]string{}
	for _, k := range s.Skipped {
		if k.Table != "containers" {
			t.Errorf("skipped %+v, want table containers", k)
		}
		reasons[k.Key] = k.Reason
	}
	for _, tt := range tests {
		if !strings.HasPrefix(reasons[tt.id], tt.reason) {
			t.Errorf("%s was skipped because of %q, want %q", tt.id, reasons[tt.id], tt.reason)
		}
	}
	if reasons[`"bad id\n"`] == "" {
		t.Errorf("the bad id is not named: %v", reasons)
	}
	if s.Len() != 1 {
		t.Errorf("containers are %+v, want the good one alone", list(s))
	}
	f.register(t, small("good2")) // it never stops a node
	f.exec(t, `UPDATE containers SET ip = ? WHERE id = ?`, "10.210.2.77", "loopback")
	f.until(t, "the mended row", func(s *registry.Snapshot) bool {
		_, ok := f.get("loopback")
		return ok && len(s.Skipped) == len(tests)
	})
}

func testBadRowsOfOurTables(t *testing.T, f fixture) {
	f.run(t)
	f.exec(t, `INSERT INTO services (name, project) VALUES (?, ?)`, "api", "a.b")
	for id, ours := range map[string][]any{
		"a-ports":   {"web2", "shop", `{"8080":1}`, int64(1)},
		"b-owner":   {"web3", "shop", `[]`, int64(1)},
		"c-project": {"web2", "sh op", `[]`, int64(1)},
		"d-ext":     {"web2", "shop", `[]`, int64(7)},
	} {
		f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, id, "api", "web2", "10.210.2.9")
		f.exec(t, `INSERT INTO jiji_containers (id, server_id, project, ports, external) VALUES (?, ?, ?, ?, ?)`, append([]any{id}, ours...)...)
	}
	s := f.until(t, "the bad rows", func(s *registry.Snapshot) bool { return len(s.Skipped) == 5 && s.Len() == 4 })
	for c := range s.All() { // the base row stands
		if c.Project != "" || c.External || c.Ports != nil {
			t.Errorf("%s has what its bad row says: %+v", c.ID, c)
		}
	}
	if last := s.Skipped[4]; last.Table != "services" || last.Key != "api" {
		t.Errorf("skipped %+v, want the service, once", last)
	}
}

func testHostileText(t *testing.T, f fixture) {
	c := full()
	c.Name = `'; DROP TABLE containers; -- "?1 \ % é`
	f.register(t, c)
	f.want(t, c)
	for _, id := range []string{"' OR 1=1 --", "%", "_", c.ID[:4]} {
		if n, err := f.store.Deregister(t.Context(), id); n != 0 || err != nil {
			t.Errorf("Deregister(%q) = %d, %v", id, n, err)
		}
		if err := f.store.SetHealth(t.Context(), id, registry.Unhealthy, time.Time{}); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("SetHealth(%q): %v, want ErrNotFound", id, err)
		}
	}
	f.want(t, c)
}

func testConcurrent(t *testing.T, f fixture) {
	f.run(t)
	const writers, each = 8, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				c := small(fmt.Sprintf("c%d-%d", w, i))
				if err := f.store.Register(t.Context(), c); err != nil {
					t.Error(err)
				}
				if _, ok := f.get(c.ID); !ok {
					t.Errorf("%s is not there after Register", c.ID)
				}
			}
		})
	}
	wg.Wait()
	if n := f.store.Snapshot().Len(); n != writers*each {
		t.Errorf("%d containers, want %d", n, writers*each)
	}
}

func testCancelledContext(t *testing.T, f fixture) {
	f.register(t, small("kept"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f.writes(t, func() {
		if err := f.store.Register(ctx, small("new")); !errors.Is(err, context.Canceled) {
			t.Errorf("Register: %v, want context.Canceled", err)
		}
		if err := f.store.SetHealth(ctx, "kept", registry.Unhealthy, time.Time{}); !errors.Is(err, context.Canceled) {
			t.Errorf("SetHealth: %v, want context.Canceled", err)
		}
		if _, err := f.store.Deregister(ctx, "kept"); !errors.Is(err, context.Canceled) {
			t.Errorf("Deregister: %v, want context.Canceled", err)
		}
	}) {
		t.Error("something was written")
	}
	if err := f.store.Run(ctx); err != nil {
		t.Errorf("Run: %v, want nil", err)
	}
	f.register(t, small("new")) // the store is as good as before
}

// testWithoutRun: own writes take in what others wrote until then.
func testWithoutRun(t *testing.T, f fixture) {
	f.exec(t, `INSERT INTO containers (id, service, server_id, ip) VALUES (?, ?, ?, ?)`, "theirs", "web", "web2", "10.210.2.9")
	f.register(t, small("mine"))
	f.want(t, small("mine"))
	if err := f.store.SetHealth(t.Context(), "mine", registry.Starting, time.Time{}); err != nil {
		t.Error(err)
	}
	if n, err := f.store.Deregister(t.Context(), "mine"); n != 1 || err != nil {
		t.Errorf("Deregister = %d, %v", n, err)
	}
}

func testClose(t *testing.T, f fixture) {
	f.register(t, small("a"))
	before := f.store.Snapshot()
	for range 2 {
		if err := f.store.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := f.store.Register(t.Context(), small("b")); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("Register: %v, want ErrClosed", err)
	}
	if err := f.store.SetHealth(t.Context(), "a", registry.Unhealthy, time.Time{}); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("SetHealth: %v, want ErrClosed", err)
	}
	if _, err := f.store.Deregister(t.Context(), "a"); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("Deregister: %v, want ErrClosed", err)
	}
	if err := f.store.Run(t.Context()); !errors.Is(err, registry.ErrClosed) {
		t.Errorf("Run: %v, want ErrClosed", err)
	}
	if f.store.Snapshot() != before {
		t.Error("the last snapshot is gone")
	}
}

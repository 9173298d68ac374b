package cluster

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/corrotest"
)

// newLaneTest returns a writer, and a store at another agent whose subscriptions
// tell of nothing: what it shows came by the fast lane.
func newLaneTest(t *testing.T) (writer *corrotest.Agent, site [16]byte, held *corrotest.Held, p *patient) {
	t.Helper()
	writer = corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token})
	a := corrotest.New(t, corrotest.Config{Schema: registry.Schema, Token: token, Coalesce: time.Hour})
	corrotest.Link(writer, a)
	p = newPatient(t, a)
	p.shows()
	raw, err := hex.DecodeString(writer.ActorID())
	if err != nil {
		t.Fatal(err)
	}
	return writer, [16]byte(raw), a.HoldChanges(), p
}

// A version that overtook another does not hide it.
func TestNoticedVersionsOvertake(t *testing.T) {
	writer, site, held, p := newLaneTest(t)
	write(t, writer, "one", "healthy")
	write(t, writer, "two", "healthy")
	write(t, writer, "three", "healthy")
	for version := range int64(3) {
		p.s.Heard(site, version+1)
	}
	held.Deliver(1)
	p.until("shows what came first", func() bool { return len(p.ids()) == 1 })
	held.Deliver(1)
	p.until("shows two", func() bool { return len(p.ids()) == 2 })
	held.Deliver(0)
	p.shows("one healthy", "three healthy", "two healthy")
}

// A notice of a version that there is not yet has the others believed, all the same.
func TestNoticeIsWrong(t *testing.T) {
	writer, site, held, p := newLaneTest(t)
	held.Release()
	p.s.Heard(site, 1<<40)
	write(t, writer, "one", "healthy")
	p.s.Heard(site, 1)
	p.shows("one healthy")
	p.s.Heard(site, 1<<40)
	time.Sleep(laneLimit + time.Second) // the lane gives up
	p.s.lane.mu.Lock()
	if seen := p.s.lane.seen[site]; seen != 1 {
		t.Errorf("looked at all up to version %d, want 1", seen)
	}
	p.s.lane.mu.Unlock()
	write(t, writer, "two", "healthy")
	p.s.Heard(site, 2)
	p.shows("one healthy", "two healthy")
}

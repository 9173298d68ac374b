// Package registry is the catalog of containers: what a row means, what may be
// written, and the Store that every backend implements in the same way.
package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"
)

// A Health is a container's state, in the word that the tables use.
type Health string

// Only Healthy is answered. Degraded and Unknown are read, for those who write them.
const (
	Healthy   Health = "healthy"
	Unhealthy Health = "unhealthy"
	Starting  Health = "starting"
	Degraded  Health = "degraded"
	Unknown   Health = "unknown"
)

// A Port is one that a container listens on.
type Port struct {
	Number uint16
	Proto  string // "tcp", "udp" or "sctp"
}

// String returns the port as the tables have it: "8080/tcp".
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Proto) }

// A Container is one address in the mesh.
type Container struct {
	ID         string     // the engine's full id, or any other that is unique in the cluster
	Service    string     // a label of DNS, like Project and Instance; compared without case
	Project    string     // may be empty
	Instance   string     // may be empty
	Name       string     // the engine's, for people; may be empty
	ServerID   string     // who writes this row; Register takes empty for the store's own
	IP         netip.Addr // IPv4
	StartedAt  time.Time  // to the millisecond, like LastCheck; zero if unknown
	Health     Health
	LastCheck  time.Time // zero if never checked
	Failures   int       // consecutive ones
	HealthPort uint16    // probed over TCP; zero if none
	External   bool      // outside the mesh, which only a person may say
	Ports      []Port    // in order of number, then protocol; nil if unknown
}

// A Skipped row is one that is not believed.
type Skipped struct {
	Table  string
	Key    string // primary key
	Reason string
}

// A Snapshot is the whole catalog at one instant. It is shared, also in part
// with other snapshots: read only.
type Snapshot struct {
	Services []*Service // in order of name; the same pointer as in an earlier snapshot if nothing in it changed
	Skipped  []Skipped  // in order of table, then key
	count    int
}

// A Service is the containers that share a name.
type Service struct {
	Name       string       // in lower case: names compare without case
	Containers []*Container // in order of id, one or more
}

// Len returns the number of containers.
func (s *Snapshot) Len() int { return s.count }

// All are the containers, in order of service, then id.
func (s *Snapshot) All() iter.Seq[*Container] {
	return func(yield func(*Container) bool) {
		for _, service := range s.Services {
			for _, c := range service.Containers {
				if !yield(c) {
					return
				}
			}
		}
	}
}

var (
	// ErrNotFound is wrapped by the errors about an id that has no row.
	ErrNotFound = errors.New("no such container")
	// ErrClosed is wrapped by the errors of a store that was closed.
	ErrClosed = errors.New("registry is closed")
)

// An InvalidError says which field of a container was not accepted.
type InvalidError struct{ Field, Value, Want string }

func (e *InvalidError) Error() string {
	return fmt.Sprintf("%s %q: want %s", e.Field, clip(e.Value), e.Want)
}

// An OwnerError says that a container is another server's, which alone may change it.
type OwnerError struct{ ID, Owner, Self string }

func (e *OwnerError) Error() string {
	return fmt.Sprintf("container %s belongs to server %s and this is %s: change it there", e.ID, e.Owner, e.Self)
}

// A Store keeps the catalog. It reads the rows of all servers and writes those
// of its own server only. All methods may be called at any time from any
// goroutine, whether Run is running or not; a write that returned nil is
// durable and is in the next Snapshot, and one that failed changed nothing,
// unless its error says that it was only not read back.
type Store interface {
	// Snapshot returns the latest complete view, nil before the first.
	Snapshot() *Snapshot

	// Changed is received from once after any number of new snapshots,
	// the first included. It is for one consumer.
	Changed() <-chan struct{}

	// Register inserts the container or changes what differs; an equal one is
	// left alone. Its errors wrap *InvalidError and *OwnerError.
	Register(ctx context.Context, c Container) error

	// SetHealth changes the health, the time of the check and, for Healthy, the
	// count of failures, if the health differs; a check that found the same is
	// not written. Its errors wrap *InvalidError, *OwnerError and ErrNotFound.
	SetHealth(ctx context.Context, id string, h Health, at time.Time) error

	// Deregister deletes the containers and returns how many there were. One
	// that belongs to another server fails all, with an *OwnerError.
	Deregister(ctx context.Context, ids ...string) (removed int, err error)

	// Run follows what others write. It returns nil when ctx is done.
	Run(ctx context.Context) error

	// Problem says, in one line, why Run cannot follow now, so that the latest
	// Snapshot may be old; "" if it can.
	Problem() string

	// Close may be called more than once. The last Snapshot stays.
	Close() error
}

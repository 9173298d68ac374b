// Package engine knows the container engine of a server: it reads Docker's or
// Podman's socket, says which containers are in the mesh and why others are not,
// and keeps the network that they are on.
//
// What is to be registered follows from plain values, see Plan and Reconcile; the
// Watcher observes, and changes nothing but the network.
package engine

import (
	"net/netip"
	"time"

	"github.com/acidtib/jiji-node/registry"
)

// A Kind is one of the engines that are known.
type Kind string

const (
	Docker Kind = "docker"
	Podman Kind = "podman"
)

// A Container is one as its engine describes it at one instant.
type Container struct {
	ID        string // the engine's full id
	Name      string
	Labels    map[string]string     // those that say something here, see labelsOf; read only
	Running   bool                  // and not paused
	StartedAt time.Time             // zero: never
	Health    string                // of the engine's check: starting, healthy or unhealthy; else there is none
	Failures  int                   // of that check, consecutive ones
	CheckedAt time.Time             // when it was made last; zero: never
	Addrs     map[string]netip.Addr // by the name of each network that it is attached to; zero while it has none there; read only
	Infra     bool                  // it holds the network of a pod, and nothing runs in it
	Joined    string                // id of the container whose network it shares; "": it has its own
}

// Rules are what a container is judged by.
type Rules struct {
	Network  string       // name of the mesh's network in the engine
	ServerID string       // of this server
	Subnet   netip.Prefix // of this server
	Cluster  netip.Prefix
}

// A Refused is a container that asks to be in the mesh and is not, and why.
type Refused struct{ ID, Name, Reason string }

// A View is what follows from what is observed.
type View struct {
	In      []registry.Container // in order of id, normalized
	Refused []Refused            // in order of id
}

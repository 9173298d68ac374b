package host

import (
	"sync"
	"sync/atomic"
)

// Classes tells on which interfaces the DNS server answers. Its methods may be
// called from any goroutine.
type Classes struct {
	link string
	read func() (Network, error)

	observing sync.Mutex                   // held from a reading until it is in force
	local     atomic.Pointer[map[int]bool] // by the index of each interface observed; never modified
}

// NewClasses returns the classes for a node whose tunnel is link.
func NewClasses(link string) *Classes {
	c := &Classes{link: link, read: ReadNetwork}
	c.local.Store(&map[int]bool{})
	return c
}

// Answer reports whether a query that came in by the interface with this index
// is answered: by loopback, the tunnel or a bridge of this machine's own
// containers, and by no other. An interface that it has not heard of is looked
// at now, for the first container on a new bridge asks before Watch has
// reported the bridge; for others Answer takes no lock.
func (c *Classes) Answer(ifindex int) bool {
	if local, known := (*c.local.Load())[ifindex]; known || ifindex <= 0 {
		return local
	}
	c.observing.Lock()
	defer c.observing.Unlock()
	if _, known := (*c.local.Load())[ifindex]; !known && c.observe() != nil {
		return false
	}
	return (*c.local.Load())[ifindex]
}

// Refresh observes the interfaces; call it whenever Watch reports. When that
// fails, the classes stay as they are.
func (c *Classes) Refresh() error {
	c.observing.Lock()
	defer c.observing.Unlock()
	return c.observe()
}

// observe is Refresh for who holds c.observing.
func (c *Classes) observe() error {
	n, err := c.read()
	if err != nil {
		return err
	}
	local := make(map[int]bool, len(n.Links))
	for _, l := range n.Links {
		local[l.Index] = l.Loopback || l.Name == c.link || localBridge(l, n.Links)
	}
	c.local.Store(&local)
	return nil
}

package host

import "sync/atomic"

// Classes tells on which interfaces the DNS server answers. Its methods may be
// called from any goroutine; Answer takes no lock.
type Classes struct {
	link  string
	local atomic.Pointer[map[int]bool] // by interface index; never modified
}

// NewClasses returns the classes for a node whose tunnel is link. Until the
// first Refresh nothing is answered.
func NewClasses(link string) *Classes {
	c := &Classes{link: link}
	c.local.Store(&map[int]bool{})
	return c
}

// Answer reports whether a query that came in by the interface with this index
// is answered: by loopback, the tunnel or a bridge of this machine's own
// containers, and by no other.
func (c *Classes) Answer(ifindex int) bool { return (*c.local.Load())[ifindex] }

// Refresh observes the interfaces; call it whenever Watch reports. When that
// fails, the classes stay as they are.
func (c *Classes) Refresh() error {
	n, err := ReadNetwork()
	if err != nil {
		return err
	}
	c.set(n.Links)
	return nil
}

func (c *Classes) set(links []LinkInfo) {
	local := map[int]bool{}
	for _, l := range links {
		if l.Loopback || l.Name == c.link || localBridge(l, links) {
			local[l.Index] = true
		}
	}
	c.local.Store(&local)
}

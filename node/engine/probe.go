package engine

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/acidtib/jiji-node/registry"
)

// How containers with a label jiji.health.port are probed: docs/containers.md has these.
const (
	probeEvery  = 5 * time.Second // one that is healthy
	probeSooner = time.Second     // one that is not
	probeLimit  = 2 * time.Second // for a connection to be accepted
	probeMost   = 3               // failures in a row make it unhealthy
)

// A Target is what is probed: a container that started again is another one.
type Target struct {
	ID      string
	At      netip.AddrPort
	Started int64 // Unix ms
}

func targetOf(c registry.Container) Target {
	return Target{c.ID, netip.AddrPortFrom(c.IP, c.HealthPort), c.StartedAt.UnixMilli()}
}

// A Probe is what probing found last.
type Probe struct {
	Target   Target
	Health   registry.Health
	Failures int // in a row
	At       time.Time
}

// next is p after another attempt: the first that succeeds makes it healthy.
func (p Probe) next(ok bool, at time.Time) Probe {
	p.At = at
	if ok {
		p.Health, p.Failures = registry.Healthy, 0
		return p
	}
	if p.Failures++; p.Failures >= probeMost {
		p.Health = registry.Unhealthy
	}
	return p
}

// wait is how long the next attempt has time.
func (p Probe) wait() time.Duration {
	if p.Health == registry.Healthy && p.Failures == 0 {
		return probeEvery
	}
	return probeSooner
}

// probe probes t until ctx is done, and tells each result.
func probe(ctx context.Context, t Target, dial func(context.Context, netip.AddrPort) error, tell func(Probe)) {
	p := Probe{Target: t, Health: registry.Starting}
	for {
		attempt, cancel := context.WithTimeout(ctx, probeLimit)
		err := dial(attempt, t.At)
		cancel()
		if ctx.Err() != nil {
			return
		}
		p = p.next(err == nil, time.Now())
		tell(p)
		select {
		case <-ctx.Done():
			return
		case <-time.After(p.wait()):
		}
	}
}

// dialTCP reports whether somebody accepts at a.
func dialTCP(ctx context.Context, a netip.AddrPort) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", a.String())
	if err != nil {
		return err
	}
	return c.Close()
}

// targets are what is to be probed of a view.
func targets(v View) map[string]Target {
	wanted := map[string]Target{}
	for _, c := range v.In {
		if c.HealthPort != 0 {
			wanted[c.ID] = targetOf(c)
		}
	}
	return wanted
}

package host

import (
	"fmt"
	"reflect"
	"time"

	"github.com/acidtib/jiji-node/node/host/firewall"
	"github.com/acidtib/jiji-node/node/host/journal"
)

// A Guard keeps the machine's firewall as a node wants it. It starts programs,
// so it is not for every piece of news. It belongs to one goroutine.
type Guard struct {
	journal *journal.Journal
	backend string           // "": not known yet
	settled *firewall.Wanted // what the firewall was after the latest Apply; nil: not known

	Fights Fights // over what Apply puts back
}

// NewGuard returns a Guard that notes in j what it is about to use. It is taken
// back by a Keeper's Undo.
func NewGuard(j *journal.Journal) *Guard { return &Guard{journal: j} }

// Apply brings the firewall to w and returns what it had to change. While any
// part of it is fought over, all of it waits for one of the regular checks.
func (g *Guard) Apply(w firewall.Wanted, regular bool) ([]Change, error) {
	if !regular && g.Fights.any() {
		return nil, nil
	}
	if g.backend == "" {
		d, err := firewall.Detect()
		if err != nil {
			return nil, err
		}
		g.backend = d.Backend.String()
	}
	note := journal.Change{Kind: journal.Firewall, Name: g.backend}
	for _, name := range []string{w.Link, w.Bridge} {
		note.Set = append(note.Set, journal.Value{Text: name})
	}
	if err := g.journal.Record(note); err != nil {
		return nil, err
	}
	done, err := firewall.Apply(w)
	repair := g.settled != nil && reflect.DeepEqual(*g.settled, w)
	var changes []Change
	for _, d := range done {
		c := Change{What: d.What}
		if repair {
			c.Reason = g.Fights.Repaired(d.Object, d.What, time.Now())
		}
		changes = append(changes, c)
	}
	if err == nil {
		g.settled = &w
	}
	return changes, err
}

// Warnings names what is left open or closed in spite of Apply.
func (g *Guard) Warnings(w firewall.Wanted) ([]string, error) {
	d, err := firewall.Detect()
	if err != nil {
		return nil, err
	}
	lines := d.Unprotected
	obstacles, err := firewall.Obstacles(w)
	for _, o := range obstacles {
		lines = append(lines, fmt.Sprintf("the firewall's rule `%s` drops %s: `%s` lets them through", o.Rule, o.Blocks, o.Fix))
	}
	return lines, err
}

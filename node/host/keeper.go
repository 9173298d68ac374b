package host

import (
	"errors"
	"fmt"
	"time"

	"github.com/acidtib/jiji-node/node/host/journal"
)

// A Keeper keeps the machine in the state that a node wants, and takes back
// what it did to get it there. It belongs to one goroutine.
type Keeper struct {
	root    string           // "/", except in tests
	journal *journal.Journal // nil: it cannot be read, so that only Undo can be called
	settled map[any]bool     // things that were as wanted after the latest Apply

	Fights Fights // over what Apply puts back
}

// NewKeeper returns a Keeper that notes in j what it changes, before it does.
// Without a journal, nil, there is only Undo.
func NewKeeper(j *journal.Journal) *Keeper {
	return &Keeper{root: "/", journal: j}
}

// Apply brings the machine to w and returns what it had to change: nothing, if
// it was so already. It goes on after a fault and reports all of them; what it
// could not do, the next call tries again. What another program fights over is
// left alone unless this is one of the regular checks.
func (k *Keeper) Apply(w Wanted, regular bool) ([]Change, error) {
	n, err := ReadNetwork()
	if err != nil {
		return nil, err
	}
	a := apply{Keeper: k, now: time.Now(), regular: regular, settled: map[any]bool{}}
	steps, there, err := diff(n, w)
	a.fault(err)
	for _, r := range there {
		a.settled[r] = true
	}
	for _, s := range steps {
		var note []journal.Change
		if s.verb == add && s.route.Type == typeUnreachable {
			note = append(note, journal.Change{Kind: journal.Route, Name: n.describe(s.route)})
		}
		a.fault(a.put(s.thing(), note, func(repair bool) (string, error) {
			if err := s.do(); err != nil {
				return "", fmt.Errorf("%s route %s: %w", s.verb, n.describe(s.route), err)
			}
			return n.done(s, repair), nil
		}))
	}
	a.fault(n.steered(w))
	if w.Forwarding {
		a.forward(w.Link)
	}
	k.settled = a.settled
	return a.changes, a.err
}

// An apply is one call of Apply.
type apply struct {
	*Keeper
	now     time.Time
	regular bool
	changes []Change
	settled map[any]bool // things that are as wanted, or were before and are to be again
	err     error
}

func (a *apply) fault(err error) { a.err = errors.Join(a.err, err) }

// put makes thing, which is not as it is wanted, so; before, it notes that in
// the journal. do returns what to tell about it, given that it is a repair.
func (a *apply) put(thing any, note []journal.Change, do func(repair bool) (string, error)) error {
	repair := a.Keeper.settled[thing]
	if repair {
		a.settled[thing] = true
		if !a.regular && a.Fights.Fought(thing) {
			return nil
		}
	}
	if err := a.journal.Record(note...); err != nil {
		return err
	}
	what, err := do(repair)
	if err != nil {
		return err
	}
	a.settled[thing] = true
	c := Change{What: what}
	if repair {
		c.Reason = a.Fights.Repaired(thing, what, a.now)
	}
	a.changes = append(a.changes, c)
	return nil
}

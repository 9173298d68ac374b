package host

import (
	"fmt"
	"slices"
	"time"
)

const (
	fightRepairs = 10               // of one thing within fightWindow: somebody else keeps changing it
	fightWindow  = 10 * time.Minute // and as long without a repair: it has ceased to
)

// A Reason is why something was done to the machine.
type Reason int

const (
	News        Reason = iota // it was not wanted before
	Repair                    // it was so before, until somebody else changed it
	FightBegins               // likewise, once too often
	Fighting                  // likewise, and that is known
)

// Fights notice that another program changes the same thing again and again.
// To put such a thing back at once would be a loop, so it waits for the next
// regular check. A Fights belongs to one goroutine.
type Fights struct {
	things map[any]*fight
}

type fight struct {
	what     string      // how the latest repair was described
	repairs  []time.Time // within fightWindow
	fighting bool
}

// Repaired notes that thing, any comparable value, was put back; what says it to
// people.
func (f *Fights) Repaired(thing any, what string, now time.Time) Reason {
	if f.things == nil {
		f.things = map[any]*fight{}
	}
	x := f.things[thing]
	if x == nil {
		x = &fight{}
		f.things[thing] = x
	}
	x.what = what
	x.repairs = append(x.forget(now), now)
	switch {
	case x.fighting:
		return Fighting
	case len(x.repairs) < fightRepairs:
		return Repair
	}
	x.fighting = true
	return FightBegins
}

// forget returns the repairs that count at now.
func (x *fight) forget(now time.Time) []time.Time {
	return slices.DeleteFunc(x.repairs, func(t time.Time) bool { return now.Sub(t) >= fightWindow })
}

// Fought reports whether thing is fought over: it waits for a regular check.
func (f *Fights) Fought(thing any) bool {
	x := f.things[thing]
	return x != nil && x.fighting
}

// any reports whether anything is fought over.
func (f *Fights) any() bool {
	for _, x := range f.things {
		if x.fighting {
			return true
		}
	}
	return false
}

// End ends the fights that are over at now, and returns what they were about.
func (f *Fights) End(now time.Time) (over []string) {
	for thing, x := range f.things {
		if x.repairs = x.forget(now); len(x.repairs) > 0 {
			continue
		}
		if x.fighting {
			over = append(over, x.what)
		}
		delete(f.things, thing)
	}
	slices.Sort(over)
	return over
}

// Warnings has one line for each fight.
func (f *Fights) Warnings() (lines []string) {
	for _, x := range f.things {
		if x.fighting {
			lines = append(lines, fightText(x.what))
		}
	}
	slices.Sort(lines)
	return lines
}

func fightText(what string) string {
	return fmt.Sprintf("another program changes it again and again: %s; it is put back once a minute only: find that program, and stop it", what)
}

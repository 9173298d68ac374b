package corrotest

import (
	"iter"
	"maps"
)

// versions are those of one site that were seen. There may be many thousands,
// nearly all of them in a row.
type versions struct {
	upto  int64          // all from 1 to this one
	above map[int64]bool // others, beyond a gap
	head  int64          // the newest
}

func (v *versions) has(n int64) bool { return v != nil && n > 0 && (n <= v.upto || v.above[n]) }

func (v *versions) add(n int64) {
	v.head = max(v.head, n)
	if n != v.upto+1 {
		if n > v.upto {
			v.above[n] = true
		}
		return
	}
	for v.upto = n; v.above[v.upto+1]; v.upto++ {
		delete(v.above, v.upto+1)
	}
}

// all yields each version that was seen.
func (v *versions) all() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for n := int64(1); n <= v.head; n++ {
			if v.has(n) && !yield(n) {
				return
			}
		}
	}
}

func (v *versions) clone() *versions {
	return &versions{v.upto, maps.Clone(v.above), v.head}
}

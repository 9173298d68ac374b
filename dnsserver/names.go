package dnsserver

import (
	"maps"
	"slices"
)

// An edit is the making of one zone: what it made itself it may change, all
// else is shared with older zones and copied first.
type edit struct{ _ byte } // not empty: each has an address of its own

// names are the parts of a zone by name, in shards: a change copies one.
type names struct{ shards [256]*shard }

type shard struct {
	by    *edit
	parts map[string]*part
}

// shardOf returns where name is (FNV-1a, folded).
func shardOf[T string | []byte](name T) uint8 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return uint8(h ^ h>>8 ^ h>>16 ^ h>>24)
}

func (n *names) get(name []byte) *part {
	if s := n.shards[shardOf(name)]; s != nil {
		return s.parts[string(name)]
	}
	return nil
}

// set has p at name, nothing if p is nil.
func (n *names) set(e *edit, name string, p *part) {
	at := &n.shards[shardOf(name)]
	switch {
	case *at == nil:
		*at = &shard{e, map[string]*part{}}
	case (*at).by != e:
		*at = &shard{e, maps.Clone((*at).parts)}
	}
	if p == nil {
		delete((*at).parts, name)
		return
	}
	(*at).parts[name] = p
}

// reverse says which services have an address, by /16, then /24.
type reverse map[[2]byte]*block

type block struct {
	by     *edit
	used   int // leaves
	leaves [256]*leaf
}

type leaf struct {
	by     *edit
	owners []addressOwner // in order of octet, then service
}

type addressOwner struct {
	octet   byte
	service string
}

func (o addressOwner) compare(p addressOwner) int {
	if o.octet != p.octet {
		return int(o.octet) - int(p.octet)
	}
	if o.service < p.service {
		return -1
	} else if o.service > p.service {
		return 1
	}
	return 0
}

// at returns the services that have ip.
func (r reverse) at(ip [4]byte) []addressOwner {
	l := r.net(ip)
	if l == nil {
		return nil
	}
	from, _ := slices.BinarySearchFunc(l.owners, addressOwner{octet: ip[3]}, addressOwner.compare)
	to := from
	for to < len(l.owners) && l.owners[to].octet == ip[3] {
		to++
	}
	return l.owners[from:to]
}

// net returns the leaf of ip's /24, nil if there is nothing in it.
func (r reverse) net(ip [4]byte) *leaf {
	if b := r[[2]byte(ip[:2])]; b != nil {
		return b.leaves[ip[2]]
	}
	return nil
}

// replace has service at the addresses of now instead of was; both are sorted.
func (r *reverse) replace(e *edit, service string, was, now [][4]byte) {
	for i, j := 0, 0; i < len(was) || j < len(now); {
		switch d := compareAt(was, i, now, j); {
		case d < 0:
			r.change(e, was[i], addressOwner{was[i][3], service}, false)
			i++
		case d > 0:
			r.change(e, now[j], addressOwner{now[j][3], service}, true)
			j++
		default:
			i, j = i+1, j+1
		}
	}
}

// compareAt compares a[i] and b[j], where the end of a list is beyond all.
func compareAt(a [][4]byte, i int, b [][4]byte, j int) int {
	switch {
	case i == len(a):
		return 1
	case j == len(b):
		return -1
	}
	return slices.Compare(a[i][:], b[j][:])
}

// change adds or removes one owner.
func (r *reverse) change(e *edit, ip [4]byte, o addressOwner, add bool) {
	key := [2]byte(ip[:2])
	b := (*r)[key]
	if b == nil || b.by != e {
		own := &block{by: e}
		if b != nil {
			own.used, own.leaves = b.used, b.leaves
		}
		*r = maps.Clone(*r) // has a few: a /16 in the largest cluster that is usual, 256 of them in a /8
		if *r == nil {
			*r = reverse{}
		}
		(*r)[key], b = own, own
	}
	l := b.leaves[ip[2]]
	switch {
	case l == nil:
		l = &leaf{by: e}
		b.leaves[ip[2]] = l
		b.used++
	case l.by != e:
		l = &leaf{e, slices.Clone(l.owners)}
		b.leaves[ip[2]] = l
	}
	at, found := slices.BinarySearchFunc(l.owners, o, addressOwner.compare)
	switch {
	case add && !found:
		l.owners = slices.Insert(l.owners, at, o)
	case !add && found:
		l.owners = slices.Delete(l.owners, at, at+1)
	}
	if len(l.owners) > 0 {
		return
	}
	b.leaves[ip[2]] = nil
	if b.used--; b.used == 0 {
		delete(*r, key)
	}
}

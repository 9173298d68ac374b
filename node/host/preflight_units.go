package host

import "path/filepath"

// A Unit is one of systemd's that does, or will do, what is this node's.
type Unit struct {
	Name    string
	Active  bool
	Enabled bool // starts with the machine
}

// A rival is a unit that has no place beside a node.
type rival struct {
	unit     string
	does     string // while it is active
	harmless bool   // the node can run beside it
}

// wgQuick is the unit of wg-quick for an interface.
func wgQuick(link string) string { return "wg-quick@" + link + ".service" }

// rivals are those of a node whose interface is link: wg-quick and, of the
// shell and TypeScript network that jiji-node replaces, each version's.
func rivals(link string) []rival {
	return []rival{
		{unit: wgQuick(link), does: "it owns interface " + link},
		{unit: "jiji-peer-monitor.service", does: "it moves peers to other endpoints"},
		{unit: "jiji-control-loop.service", does: "it adds, moves and removes peers"},
		{unit: "jiji-daemon.service", does: "it adds, moves and removes peers"},
		{unit: "jiji-coredns.service", does: "it serves the mesh's names"},
		{unit: "jiji-dns.service", does: "it serves the mesh's names"},
		{unit: "jiji-corrosion.service", does: "it keeps a registry that this node does not read", harmless: true},
	}
}

func rivalUnits(link string) (names []string) {
	for _, r := range rivals(link) {
		names = append(names, r.unit)
	}
	return names
}

func (c *checker) checkUnits() {
	for _, r := range rivals(c.Want.Link) {
		for _, u := range c.Units {
			switch {
			case u.Name != r.unit:
			case u.Active && !r.harmless:
				c.refuse(KindUnit, "unit %s is active, expected stopped: %s: run `systemctl disable --now %s`", u.Name, r.does, u.Name)
			case u.Active:
				c.warn(KindUnit, "unit %s is active beside this node: %s: unless something else needs it, run `systemctl disable --now %s`", u.Name, r.does, u.Name)
			case u.Enabled && !r.harmless:
				c.warn(KindUnit, "unit %s is enabled, expected disabled: once this machine boots, %s: run `systemctl disable --now %s`", u.Name, r.does, u.Name)
			}
		}
	}
}

// unitsByFiles finds units where systemd does not answer. A unit that runs a
// process has a control group; one that ran to its end, as wg-quick's, has none.
// root is "/" except in tests.
func unitsByFiles(root string, names []string) (units []Unit) {
	exists := func(patterns ...string) bool {
		for _, p := range patterns {
			if found, err := filepath.Glob(filepath.Join(root, p)); err == nil && len(found) > 0 {
				return true
			}
		}
		return false
	}
	for _, name := range names {
		u := Unit{
			Name:    name,
			Active:  exists("sys/fs/cgroup/system.slice/"+name, "sys/fs/cgroup/systemd/system.slice/"+name),
			Enabled: exists("etc/systemd/system/*.wants/" + name),
		}
		if u.Active || u.Enabled {
			units = append(units, u)
		}
	}
	return units
}

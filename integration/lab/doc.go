// Package lab builds networks of servers on this machine, in namespaces, and
// runs the real jiji-node in them, so that a test reads like a story:
//
//	l := lab.New(t)
//	lan := l.Network("lan", "192.0.2.0/24")
//	a, b := l.Server("a").On(lan), l.Server("b").On(lan)
//	web := a.Container("web", "10.210.0.10")
//
//	a.Run("ping", "-c1", b.Addr(lan).String())
//	node := a.Start("run")
//	node.WaitReady()
//	web.Run("dig", "+short", "b.node.jiji")
//
//	lan.Cut(a, b)
//	path := l.Path(a, b) // another way from a to b, through a forwarder
//	path.Forward.Set(lab.Faults{Delay: 20 * time.Millisecond, Loss: 0.1})
//
// A server has its own network, mount, process and host name namespaces: /run,
// /var/lib, /etc and /sys are its own, all else, /tmp above all, is this machine's.
// A network is a bridge in one more such host, the world, whose address on it is
// the servers' default gateway. Nothing outside the namespaces is touched, and all
// of it goes when the test ends, or when its process is killed.
//
// Boot makes a server a machine of its own, with systemd, that shares its network
// with the server alone:
//
//	a.Boot("systemctl -q mask firewalld")
//	a.Run("systemctl", "is-active", "dbus")
//
// Methods that do not return an error end the test when they fail; like Fatalf of
// a test, they belong to the test's goroutine. A failed test leaves the logs of
// what it ran, its captures and each host's network state in out/lab/<test name>
// of the repository, or in the directory that JIJI_LAB_DIR names.
//
// JIJI_NODE_BINARY names a jiji-node to run instead of building one, and
// JIJI_LAB_RACE=1 builds it with the race detector.
package lab

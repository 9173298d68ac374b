//go:build linux

package integration_test

import (
	"net/netip"
	"testing"

	"github.com/acidtib/jiji-node/node/host/firewall"
)

// Rules that engines write which cannot run in this lab, for the networks of a
// firewallLab: in the words of their versions' own tests and sources, with a service
// published as theirs are.
const (
	// Docker 28: a chain of its own behind DOCKER-USER, containers that may be reached
	// by their published ports only, and addresses that may not be asked for from outside.
	docker28 = `
		iptables -P FORWARD DROP
		for c in DOCKER DOCKER-BRIDGE DOCKER-CT DOCKER-FORWARD DOCKER-ISOLATION-STAGE-1 DOCKER-ISOLATION-STAGE-2 DOCKER-USER; do iptables -N $c; done
		iptables -A FORWARD -j DOCKER-USER
		iptables -A FORWARD -j DOCKER-FORWARD
		iptables -A DOCKER-FORWARD -j DOCKER-CT
		iptables -A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
		iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE
		for b in docker0 jiji-br0; do
			iptables -A DOCKER-CT -o $b -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables -A DOCKER-BRIDGE -o $b -j DOCKER
			iptables -A DOCKER-FORWARD -i $b -j ACCEPT
			iptables -A DOCKER-ISOLATION-STAGE-1 -i $b ! -o $b -j DOCKER-ISOLATION-STAGE-2
			iptables -A DOCKER-ISOLATION-STAGE-2 -o $b -j DROP
		done
		iptables -A DOCKER -d 10.210.0.10/32 ! -i jiji-br0 -o jiji-br0 -p udp --dport 7000 -j ACCEPT
		iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
		iptables -A DOCKER ! -i jiji-br0 -o jiji-br0 -j DROP
		for a in 10.210.0.10 10.210.0.11; do iptables -t raw -A PREROUTING -d $a/32 ! -i jiji-br0 -j DROP; done
		iptables -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP
		iptables -t nat -N DOCKER
		iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
		iptables -t nat -A POSTROUTING -s 10.210.0.0/24 ! -o jiji-br0 -j MASQUERADE
		iptables -t nat -A POSTROUTING -s 172.17.0.0/24 ! -o docker0 -j MASQUERADE
		iptables -t nat -A POSTROUTING -s 10.210.0.0/24 -d 10.210.0.10 -p udp --dport 7000 -m conntrack --ctstate DNAT -j MASQUERADE
		iptables -t nat -A DOCKER -p udp --dport 8080 -j DNAT --to-destination 10.210.0.10:7000`

	// Docker 29 with its nftables, told of the tunnel by the network's option and of our
	// packets by bridge-accept-fwmark.
	docker29 = `nft -f - <<-END
		table ip docker-bridges {
			map filter-forward-in-jumps { type ifname : verdict; }
			map filter-forward-out-jumps { type ifname : verdict; }
			map nat-postrouting-out-jumps { type ifname : verdict; }
			chain filter-forward-in__jiji-br0 {
				ct state established,related counter accept
				meta mark and 4096 == 4096 counter accept comment "ALLOW FW MARK"
				iifname "jiji-br0" counter accept comment "ICC"
				ip daddr 10.210.0.10 udp dport 7000 ct status dnat counter accept
				counter drop comment "UNPUBLISHED PORT DROP"
			}
			chain filter-forward-out__jiji-br0 {
				ct state established,related counter accept
				counter accept comment "OUTGOING"
			}
			chain filter-forward-in__docker0 {
				ct state established,related counter accept
				iifname "docker0" counter accept comment "ICC"
				counter drop comment "UNPUBLISHED PORT DROP"
			}
			chain filter-forward-out__docker0 { counter accept comment "OUTGOING"; }
			chain nat-postrouting-out__jiji-br0 { oifname != "jiji-br0" ip saddr 10.210.0.0/24 counter masquerade; }
			chain nat-postrouting-out__docker0 { oifname != "docker0" ip saddr 172.17.0.0/24 counter masquerade; }
			chain filter-FORWARD {
				type filter hook forward priority filter; policy accept;
				oifname vmap @filter-forward-in-jumps
				iifname vmap @filter-forward-out-jumps
			}
			chain nat-prerouting-and-output { udp dport 8080 counter dnat to 10.210.0.10:7000; }
			chain nat-PREROUTING {
				type nat hook prerouting priority dstnat; policy accept;
				fib daddr type local counter jump nat-prerouting-and-output
			}
			chain nat-POSTROUTING {
				type nat hook postrouting priority srcnat; policy accept;
				ip saddr 10.210.0.0/24 ip daddr 10.210.0.10 ct status dnat masquerade
				iifname vmap @nat-postrouting-out-jumps
			}
			chain raw-PREROUTING {
				type filter hook prerouting priority raw; policy accept;
				ip daddr 10.210.0.0/24 iifname != { "jiji-br0", "lo", "jiji0" } counter drop comment "SUBNET DROP EXTERNAL"
				ip daddr 172.17.0.0/24 iifname != { "docker0", "lo" } counter drop comment "SUBNET DROP EXTERNAL"
			}
		}
		add element ip docker-bridges filter-forward-in-jumps { "jiji-br0" : jump filter-forward-in__jiji-br0, "docker0" : jump filter-forward-in__docker0 }
		add element ip docker-bridges filter-forward-out-jumps { "jiji-br0" : jump filter-forward-out__jiji-br0, "docker0" : jump filter-forward-out__docker0 }
		add element ip docker-bridges nat-postrouting-out-jumps { "jiji-br0" : jump nat-postrouting-out__jiji-br0, "docker0" : jump nat-postrouting-out__docker0 }
		END`

	// Podman 5 with netavark's nftables.
	netavarkNFT = `nft -f - <<-END
		table inet netavark {
			chain NETAVARK-HOSTPORT-SETMARK { meta mark set meta mark or 0x2000; }
			chain NETAVARK-ISOLATION-2 { }
			chain NETAVARK-ISOLATION-3 {
				oifname "jiji-br0" drop
				oifname "docker0" drop
				jump NETAVARK-ISOLATION-2
			}
			chain NETAVARK-ISOLATION-1 { }
			chain nv_jiji { ip daddr 10.210.0.0/24 accept; ip daddr != 224.0.0.0/4 masquerade; }
			chain nv_podman { ip daddr 172.17.0.0/24 accept; ip daddr != 224.0.0.0/4 masquerade; }
			chain nv_jiji_dnat {
				ip saddr 10.210.0.0/24 udp dport 8080 jump NETAVARK-HOSTPORT-SETMARK
				udp dport 8080 dnat ip to 10.210.0.10:7000
			}
			chain NETAVARK-HOSTPORT-DNAT { udp dport 8080 jump nv_jiji_dnat; }
			chain INPUT { type filter hook input priority filter; policy accept; }
			chain FORWARD {
				type filter hook forward priority filter; policy accept;
				ct state invalid drop
				jump NETAVARK-ISOLATION-1
				ip daddr 10.210.0.0/24 ct state established,related accept
				ip saddr 10.210.0.0/24 accept
				ip daddr 172.17.0.0/24 ct state established,related accept
				ip saddr 172.17.0.0/24 accept
			}
			chain POSTROUTING {
				type nat hook postrouting priority srcnat; policy accept;
				meta mark and 0x2000 == 0x2000 masquerade
				ip saddr 10.210.0.0/24 jump nv_jiji
				ip saddr 172.17.0.0/24 jump nv_podman
			}
			chain PREROUTING {
				type nat hook prerouting priority dstnat; policy accept;
				fib daddr type local jump NETAVARK-HOSTPORT-DNAT
			}
			chain OUTPUT {
				type nat hook output priority -100; policy accept;
				fib daddr type local jump NETAVARK-HOSTPORT-DNAT
			}
		}
		END`
)

// Beside the rules of engines that came after the lab's, before and after them, the
// mesh has its way and its addresses, nobody else has one, and what the engine does
// for its containers stays.
func TestFirewallBesideEngines(t *testing.T) {
	for name, engine := range map[string]string{"docker 28": docker28, "docker 29 nftables": docker29, "netavark nftables": netavarkNFT} {
		for _, first := range []string{"engine first", "node first"} {
			t.Run(name+", "+first, func(t *testing.T) {
				f := newFirewallLab(t)
				f.pass(f.mesh(netip.Addr{})...)
				f.arrive(f.outside()...) // so it is the firewall that stops them
				if first == "node first" {
					f.apply()
				}
				f.a.Run("sh", "-ec", engine)
				f.apply()
				if got := call[[]firewall.Obstacle](f, "obstacles"); len(got) > 0 {
					t.Errorf("obstacles: %q", got)
				}
				f.pass(f.mesh(f.ca.Addr)...)
				f.pass(f.engine()...)
				f.stop(f.outside()...)
				call[[]firewall.Change](f, "remove")
			})
		}
	}
}

//go:build linux

package firewall

import (
	"reflect"
	"testing"
)

// As ufw 0.36 and firewalld 1.3 print it.
func TestManagersOutput(t *testing.T) {
	added := parseAdded(`Added user rules (see 'ufw status' for running firewall):
ufw allow 22/tcp
ufw allow 51820/udp comment 'jiji-node'
ufw route allow in on jiji0 out on jiji-br0 comment 'jiji-node'
ufw allow 80/tcp comment 'not jiji-node'
`)
	if want := []ufwRule{{"allow 22/tcp", false}, {"allow 51820/udp", true},
		{"route allow in on jiji0 out on jiji-br0", true}, {"allow 80/tcp", false}}; !reflect.DeepEqual(added, want) {
		t.Errorf("got %v, want %v", added, want)
	}
	zones := parseZones(`public
  target: default
  interfaces: 
  services: dhcpv6-client ssh
  rich rules: 
	rule priority="-5182" port port="51820" protocol="udp" accept
	rule family="ipv4" source address="192.0.2.1" drop

trusted (active)
  target: ACCEPT
  interfaces: jiji-br0 jiji0
  rich rules: 

`)
	if want := []zone{
		{name: "public", interfaces: []string{}, rules: []string{`rule priority="-5182" port port="51820" protocol="udp" accept`, `rule family="ipv4" source address="192.0.2.1" drop`}},
		{name: "trusted", interfaces: []string{"jiji-br0", "jiji0"}}}; !reflect.DeepEqual(zones, want) {
		t.Errorf("got %v, want %v", zones, want)
	}
}

package registry

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

var serverKey = wgkey.Public{1}

func serverRow() ServerRow {
	return ServerRow{ID: "web1", Hostname: "web1", Subnet: "10.210.1.0/24", WireGuardIP: "10.210.1.1", Key: serverKey.String(),
		ManagementIP: "fdcc::1", Endpoints: `["203.0.113.10:51820","203.0.113.10:51820","[2001:db8::1]:51820"]`, LastSeen: int64(1000),
		Version: "1", BootID: "b", MTU: int64(1420), ClaimedAt: int64(2000)}
}

func TestServerRow(t *testing.T) {
	s, ok, skipped := serverRow().Server()
	want := Server{ID: "web1", Hostname: "web1", Subnet: netip.MustParsePrefix("10.210.1.0/24"), WireGuardIP: netip.MustParseAddr("10.210.1.1"),
		Key: serverKey, ManagementIP: netip.MustParseAddr("fdcc::1"),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.10:51820"), netip.MustParseAddrPort("[2001:db8::1]:51820")},
		LastSeen:  time.UnixMilli(1000).UTC(), Version: "1", BootID: "b", MTU: 1420, ClaimedAt: time.UnixMilli(2000).UTC()}
	if !ok || skipped != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("%+v, %v, %v, want %+v", s, ok, skipped, want)
	}
	for name, c := range map[string]struct {
		change func(*ServerRow)
		ok     bool
		reason string // a part of why it is not believed; "": it is, or is not here yet
	}{
		"no row of ours":             {func(r *ServerRow) { r.Version, r.BootID, r.MTU, r.ClaimedAt = nil, nil, nil, nil }, true, ""},
		"no endpoints":               {func(r *ServerRow) { r.Endpoints = "[]" }, true, ""},
		"never seen":                 {func(r *ServerRow) { r.LastSeen = int64(0) }, true, ""},
		"no key yet":                 {func(r *ServerRow) { r.Key = "" }, false, ""},
		"no subnet yet":              {func(r *ServerRow) { r.Subnet = "" }, false, ""},
		"no endpoints yet":           {func(r *ServerRow) { r.Endpoints = "" }, false, ""},
		"all at their defaults":      {func(r *ServerRow) { *r = ServerRow{ID: "web1", Hostname: "", Key: "", LastSeen: int64(0)} }, false, ""},
		"tombstone":                  {func(r *ServerRow) { r.RemovedAt = int64(3) }, true, ""},
		"tombstone of id and key":    {func(r *ServerRow) { *r = ServerRow{ID: "web1", Key: serverKey.String(), RemovedAt: int64(3)} }, true, ""},
		"tombstone of an id":         {func(r *ServerRow) { *r = ServerRow{ID: "web1", Key: "", RemovedAt: int64(3)} }, false, ""},
		"tombstone, bad endpoints":   {func(r *ServerRow) { r.RemovedAt, r.Endpoints = int64(3), "nonsense" }, true, ""},
		"removed at 0":               {func(r *ServerRow) { r.RemovedAt = int64(0) }, false, "removed_at"},
		"removed by text":            {func(r *ServerRow) { r.RemovedAt = "now" }, false, "removed_at"},
		"removed before 1970":        {func(r *ServerRow) { r.RemovedAt = int64(-1) }, false, "removed_at"},
		"removed at the end of time": {func(r *ServerRow) { r.RemovedAt = int64(1) << 62 }, false, "removed_at"},
		"id of spaces":               {func(r *ServerRow) { r.ID = "a b" }, false, "id"},
		"id is a number":             {func(r *ServerRow) { r.ID = int64(4) }, false, "id"},
		"key is short":               {func(r *ServerRow) { r.Key = "AAAA" }, false, "wireguard_pubkey"},
		"key is bytes":               {func(r *ServerRow) { r.Key = []byte("AAAA") }, false, "wireguard_pubkey"},
		"subnet is a number":         {func(r *ServerRow) { r.Subnet = 7.5 }, false, "subnet"},
		"subnet is an address":       {func(r *ServerRow) { r.Subnet = "10.210.1.0" }, false, "subnet"},
		"address is a name":          {func(r *ServerRow) { r.WireGuardIP = "web1" }, false, "wireguard_ip"},
		"management is a name":       {func(r *ServerRow) { r.ManagementIP = "web1" }, false, "management_ip"},
		"endpoints are no JSON":      {func(r *ServerRow) { r.Endpoints = "203.0.113.10:51820" }, false, "endpoints"},
		"endpoints are numbers":      {func(r *ServerRow) { r.Endpoints = "[1]" }, false, "endpoints"},
		"an endpoint is a name":      {func(r *ServerRow) { r.Endpoints = `["example.com:1"]` }, false, "endpoint"},
		"65 endpoints":               {func(r *ServerRow) { r.Endpoints = manyEndpoints(65) }, false, "at most 64"},
		"64 endpoints":               {func(r *ServerRow) { r.Endpoints = manyEndpoints(64) }, true, ""},
		"last_seen is text":          {func(r *ServerRow) { r.LastSeen = "yesterday" }, false, "last_seen"},
		"mtu is huge":                {func(r *ServerRow) { r.MTU = int64(1 << 40) }, false, "mtu"},
		"claimed_at is real":         {func(r *ServerRow) { r.ClaimedAt = 1.5 }, false, "claimed_at"},
		"version is huge":            {func(r *ServerRow) { r.Version = strings.Repeat("x", 10_000) }, false, "version"},
		"boot id is huge":            {func(r *ServerRow) { r.BootID = strings.Repeat("y", 10_000) }, false, "boot_id"},
	} {
		r := serverRow()
		c.change(&r)
		s, ok, skipped := r.Server()
		if ok != c.ok || (skipped != nil) != (c.reason != "") {
			t.Errorf("%s: %+v, %v, %v", name, s, ok, skipped)
			continue
		}
		if skipped != nil && (skipped.Table != "servers" || !strings.HasPrefix(skipped.Reason, c.reason) && !strings.Contains(skipped.Reason, c.reason) || len(skipped.Reason) > 1000 || strings.Contains(skipped.Reason, "\n")) {
			t.Errorf("%s: skipped %+v, want %s", name, skipped, c.reason)
		}
		if skipped != nil && strings.HasSuffix(name, "huge") && !strings.Contains(skipped.Reason, c.reason) {
			t.Errorf("%s: %s does not name %s", name, skipped.Reason, c.reason)
		}
	}
}

func manyEndpoints(n int) string {
	var eps []netip.AddrPort
	for i := range n {
		eps = append(eps, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(i+1)))
	}
	return FormatEndpoints(eps)
}

// A row is believed and stays the same when it is written, or is refused in one
// short line, or is not here yet.
func FuzzServerRow(f *testing.F) {
	r := serverRow()
	f.Add("web1", "web1", "10.210.1.0/24", "10.210.1.1", serverKey.String(), "fdcc::1", r.Endpoints.(string), int64(1), int64(0), "1", "b", byte(0))
	f.Add("", "", "", "", "", "", "", int64(0), int64(3), "", "", byte(1))
	f.Add("a\nb", "\x00", "::/0", "::", "x", "fe80::1%eth0", `["[fe80::1%eth0]:1"]`, int64(-1), int64(1)<<62, "\n", "\xff", byte(3))
	f.Fuzz(func(t *testing.T, id, hostname, subnet, ip, key, management, endpoints string, seen, removed int64, version, boot string, kind byte) {
		r := ServerRow{ID: id, Hostname: hostname, Subnet: subnet, WireGuardIP: ip, Key: key, ManagementIP: management, Endpoints: endpoints,
			LastSeen: seen, Version: version, BootID: boot, MTU: seen, ClaimedAt: seen}
		if kind&1 != 0 {
			r.RemovedAt = removed
		}
		if kind&2 != 0 {
			r.Subnet, r.Hostname = []byte(subnet), float64(seen)
		}
		s, ok, skipped := r.Server()
		if ok && skipped != nil {
			t.Fatal("believed and skipped")
		}
		if skipped != nil && (skipped.Reason == "" || len(skipped.Reason) > 2000 || strings.ContainsAny(skipped.Reason+skipped.Key, "\n\x00")) {
			t.Fatalf("skipped %q", skipped)
		}
		if !ok || !s.RemovedAt.IsZero() {
			return
		}
		again, ok, skipped := ServerRow{ID: s.ID, Hostname: s.Hostname, Subnet: s.Subnet.String(), WireGuardIP: s.WireGuardIP.String(), Key: s.Key.String(),
			ManagementIP: s.ManagementIP.String(), Endpoints: FormatEndpoints(s.Endpoints)}.Server()
		if !ok || !again.Equal(s) {
			t.Fatalf("%+v became %+v, %v, %s", s, again, ok, fmt.Sprint(skipped))
		}
	})
}

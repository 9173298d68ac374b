package node

import (
	"bytes"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/registry"
)

func TestCacheIsReadAsWritten(t *testing.T) {
	full := registry.Container{
		ID: "0123456789abcdef", Service: "api", Project: "shop", Instance: "1", Name: "shop-api-1", ServerID: "web2", IP: netip.MustParseAddr("10.210.1.15"),
		StartedAt: time.UnixMilli(1700000000123).UTC(), Health: registry.Unhealthy, LastCheck: time.UnixMilli(1700000001000).UTC(), Failures: 3, HealthPort: 8080,
		Ports: []registry.Port{{Number: 53, Proto: "udp"}, {Number: 8080, Proto: "tcp"}}, External: true,
	}
	least := registry.Container{ID: "x", Service: "db", ServerID: "web3", IP: netip.MustParseAddr("10.210.2.2"), Health: registry.Healthy}
	for _, want := range [][]registry.Container{{}, {full}, {full, least}} {
		doc := cacheDoc{Versions: map[string]int64{"00112233445566778899aabbccddeeff": 7}, WrittenAt: time.UnixMilli(1700000002000).UTC()}
		var b bytes.Buffer
		err := formatCache(&b, doc, func(yield func(control.Container) bool) {
			for _, c := range want {
				if !yield(containerOf(c)) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		got := []registry.Container{}
		read, err := parseCache(b.Bytes(), func(v control.Container) {
			c, err := cachedContainer(v)
			if err != nil {
				t.Error(err)
			}
			got = append(got, c)
		})
		if err != nil || !reflect.DeepEqual(read, doc) || !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v %+v, %v\nwant %+v %+v\nof %s", read, got, err, doc, want, &b)
		}
		for n := range b.Len() - 2 { // the file of a machine that lost some of it
			if _, err := parseCache(b.Bytes()[:n], func(control.Container) {}); err == nil {
				t.Fatalf("%d of %d bytes are taken for all", n, b.Len())
			}
		}
	}
}

// BenchmarkFormatCache writes the cache of the largest cluster.
func BenchmarkFormatCache(b *testing.B) {
	snapshot := fullSnapshot().Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		err := formatCache(io.Discard, cacheDoc{}, func(yield func(control.Container) bool) {
			for c := range snapshot.All() {
				if !yield(containerOf(*c)) {
					return
				}
			}
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCache(f *testing.F) {
	for _, text := range []string{
		`{"containers":[{"id":"x","service":"db","serverId":"web3","ip":"10.210.2.2","health":"healthy","ports":["80/tcp"]}],"versions":{"00":1},"writtenAt":"2026-01-01T00:00:00Z"}`,
		`{"containers":[],"more":{"a":[1,2]},"writtenAt":"2026-01-01T00:00:00Z"}`, `{}`, `[]`, `{"containers":null}`, "",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parseCache([]byte(text), func(v control.Container) {
			if c, err := cachedContainer(v); err == nil {
				if again, err := c.Normalize(); err != nil || !slices.Equal(again.Ports, c.Ports) {
					t.Errorf("%+v is taken, and not valid: %v", c, err)
				}
			}
		})
	})
}

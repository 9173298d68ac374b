package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/statefile"
	"github.com/acidtib/jiji-node/registry"
	"github.com/acidtib/jiji-node/registry/cluster"
)

const (
	cacheFile  = "containers.json"
	maxCache   = 256 << 20       // bytes
	cacheRest  = 5 * time.Second // between two writings of the cache
	cacheShare = 50              // at least that many times as long as one takes
)

// A cacheDoc is what containers.json has beside "containers": those of others as
// last known, for a start without an agent. Fields may be added.
type cacheDoc struct {
	Versions  map[string]int64 `json:"versions,omitempty"` // that the agent had of each writer, by its site id in hexadecimal digits
	WrittenAt time.Time        `json:"writtenAt"`
}

func (n *Node) cachePath() string { return filepath.Join(n.cfg.StateDir, cacheFile) }

// readCache returns what the last run knew. A file that cannot be read is none.
func (n *Node) readCache() ([]registry.Container, cluster.Versions) {
	text, _, err := statefile.Read(n.cachePath(), maxCache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []registry.Container
	var doc cacheDoc
	if err == nil {
		doc, err = parseCache(text, func(v control.Container) {
			if c, err := cachedContainer(v); err == nil {
				list = append(list, c)
			}
		})
	}
	if err != nil {
		n.log.Warn("containers of other servers as last known cannot be read; waiting for the registry", "file", n.cachePath(), "err", err)
		return nil, nil
	}
	versions := cluster.Versions{}
	for site, version := range doc.Versions {
		if id, err := hex.DecodeString(site); err == nil && len(id) == 16 {
			versions[[16]byte(id)] = version
		}
	}
	return list, versions
}

// cachedContainer is the reverse of containerOf.
func cachedContainer(v control.Container) (registry.Container, error) {
	c := registry.Container{ID: v.ID, Service: v.Service, Project: v.Project, Instance: v.Instance, Name: v.Name, ServerID: v.ServerID, IP: v.IP,
		StartedAt: v.StartedAt, Health: registry.Health(v.Health), Failures: v.Failures, HealthPort: v.HealthPort, External: v.External}
	if v.LastCheck != nil {
		c.LastCheck = *v.LastCheck
	}
	for _, text := range v.Ports {
		number, proto, _ := strings.Cut(text, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return c, err
		}
		c.Ports = append(c.Ports, registry.Port{Number: uint16(n), Proto: proto})
	}
	return c.Normalize()
}

// cacheLoop keeps the file of others' containers.
func (p *clusterPart) cacheLoop(ctx context.Context) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for failing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-p.cache:
		}
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		began := time.Now()
		err := p.writeCache()
		if err != nil && !failing {
			p.log.Error("containers of other servers not written for the next start", "err", err)
		}
		if failing = err != nil; failing {
			poke(p.cache) // nothing else may change before there is room again
		}
		rest.Reset(max(cacheRest, cacheShare*time.Since(began)))
	}
}

func (p *clusterPart) writeCache() error {
	if !p.store.Whole() {
		return nil
	}
	doc := cacheDoc{Versions: map[string]int64{}, WrittenAt: time.Now().UTC().Truncate(time.Second)}
	for site, version := range p.store.Seen() {
		doc.Versions[hex.EncodeToString(site[:])] = version
	}
	self := p.members.Self().ID
	return statefile.WriteBy(p.cachePath(), 0o600, func(w io.Writer) error {
		return formatCache(w, doc, func(yield func(control.Container) bool) {
			for c := range p.store.Snapshot().All() {
				if c.ServerID != self && !yield(containerOf(*c)) {
					return
				}
			}
		})
	})
}

// formatCache writes the cache one container after the other: all of them as one
// text would be as large as the registry itself.
func formatCache(w io.Writer, doc cacheDoc, containers iter.Seq[control.Container]) error {
	buffer := bufio.NewWriter(w)
	lines := json.NewEncoder(buffer)
	buffer.WriteString(`{"containers":[`)
	var line control.Container // one for all: the encoder keeps its text, too
	between := "\n"
	for line = range containers {
		buffer.WriteString(between)
		if err := lines.Encode(&line); err != nil {
			return err
		}
		between = ","
	}
	rest, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	buffer.WriteString("],")
	buffer.Write(rest[1:]) // an object continues
	buffer.WriteString("\n")
	return buffer.Flush() // has the first error of all writes
}

// parseCache is the reverse of formatCache.
func parseCache(text []byte, container func(control.Container)) (doc cacheDoc, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if err := expect(d, json.Delim('{')); err != nil {
		return doc, err
	}
	for d.More() {
		field, err := d.Token()
		if err != nil {
			return doc, err
		}
		switch field {
		case "containers":
			if err := expect(d, json.Delim('[')); err != nil {
				return doc, err
			}
			for d.More() {
				var c control.Container
				if err := d.Decode(&c); err != nil {
					return doc, err
				}
				container(c)
			}
			err = expect(d, json.Delim(']'))
		case "versions":
			err = d.Decode(&doc.Versions)
		case "writtenAt":
			err = d.Decode(&doc.WrittenAt)
		default: // of a newer version
			err = d.Decode(&json.RawMessage{})
		}
		if err != nil {
			return doc, err
		}
	}
	return doc, expect(d, json.Delim('}'))
}

// expect reads a token that has to be want.
func expect(d *json.Decoder, want json.Token) error {
	got, err := d.Token()
	if err == nil && got != want {
		err = fmt.Errorf("%v at byte %d, want %v", got, d.InputOffset(), want)
	}
	return err
}

package peerlink

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	bootsPath = "/v1/boots"
	bootLen   = 8               // bytes of a boot id
	bootsKept = 5 * time.Minute // how long a process that asked is remembered
	maxBoots  = 8               // processes that are remembered of one address
)

// A Boot is a process that asked from this node's address, and is not this one.
type Boot struct {
	ID  string        // 16 hexadecimal digits
	Age time.Duration // since it asked last
}

// A bootsAnswer is the body of the answer.
type bootsAnswer struct {
	Others []bootSeen `json:"others"`
}

type bootSeen struct {
	Boot string `json:"boot"`
	Age  int64  `json:"ageMs"`
}

// A guestbook is which processes asked from which address lately.
type guestbook struct {
	mu   sync.Mutex // guards seen
	seen map[netip.Addr]map[string]time.Time
}

// enter notes that the process boot asked from an address, and returns the
// others that did.
func (g *guestbook) enter(from netip.Addr, boot string, now time.Time) []bootSeen {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seen == nil {
		g.seen = map[netip.Addr]map[string]time.Time{}
	}
	at := g.seen[from]
	if at == nil {
		at = map[string]time.Time{}
		g.seen[from] = at
	}
	others := []bootSeen{}
	for id, last := range at {
		switch {
		case now.Sub(last) > bootsKept:
			delete(at, id)
		case id != boot:
			others = append(others, bootSeen{id, now.Sub(last).Milliseconds()})
		}
	}
	if _, known := at[boot]; known || len(at) < maxBoots {
		at[boot] = now
	}
	return others
}

func (l *Link) handleBoots(w http.ResponseWriter, r *http.Request) {
	boot := r.URL.Query().Get("boot")
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !isBoot(boot) {
		http.Error(w, fmt.Sprintf("boot %.40q: expected %d hexadecimal digits, lower-case", boot, 2*bootLen), http.StatusBadRequest)
		return
	}
	a := bootsAnswer{l.guests.enter(from.Addr().Unmap(), boot, time.Now())}
	l.stats.answered.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // fails only when the peer went away
}

func isBoot(text string) bool {
	b, err := hex.DecodeString(text)
	return err == nil && len(b) == bootLen && hex.EncodeToString(b) == text
}

// Boots tells the node at peer that the process boot is here, and returns what
// other processes said the same from this node's address in the last minutes: of
// two machines with one key, each hears of the other so.
func (l *Link) Boots(ctx context.Context, peer netip.Addr, boot string) ([]Boot, error) {
	if !isBoot(boot) {
		return nil, fmt.Errorf("boot %q: expected %d hexadecimal digits, lower-case", boot, 2*bootLen)
	}
	body, err := l.get(ctx, peer, bootsPath+"?boot="+boot)
	if err != nil {
		return nil, fmt.Errorf("ask peer %v for boots: %w", peer, err)
	}
	boots, err := parseBoots(body)
	if err != nil {
		return nil, fmt.Errorf("ask peer %v for boots: parse the answer: %w", peer, err)
	}
	return boots, nil
}

func parseBoots(b []byte) ([]Boot, error) {
	var a bootsAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, err
	}
	if len(a.Others) > maxBoots {
		return nil, fmt.Errorf("%d boots: expected at most %d", len(a.Others), maxBoots)
	}
	var boots []Boot
	for _, o := range a.Others {
		if !isBoot(o.Boot) || o.Age < 0 || o.Age > bootsKept.Milliseconds() {
			return nil, fmt.Errorf("boot %.40q, %d ms ago: expected %d hexadecimal digits, and at most %v", o.Boot, o.Age, 2*bootLen, bootsKept)
		}
		boots = append(boots, Boot{o.Boot, time.Duration(o.Age) * time.Millisecond})
	}
	return boots, nil
}

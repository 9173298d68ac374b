package peerlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	agentPath  = "/v1/agent"
	maxVersion = 200 // bytes of an agent's version
)

// An Agent is what a node says of the Corrosion agent that it uses.
type Agent struct {
	Version string // as the agent calls itself, in one line; "": the node does not know
	Managed bool   // the node runs it, and it runs now: it gossips on the node's management address
}

// An agentAnswer is the body of the answer.
type agentAnswer struct {
	Version string `json:"version"`
	Managed bool   `json:"managed"`
}

func (l *Link) handleAgent(w http.ResponseWriter) {
	if l.cfg.Agent == nil {
		http.Error(w, "this node tells nothing of its agent", http.StatusServiceUnavailable)
		return
	}
	a := l.cfg.Agent()
	l.stats.answered.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(agentAnswer(a)) // fails only when the peer went away
}

// Agent asks the node at peer which agent it uses. A node that is older than the
// question answers with an error.
func (l *Link) Agent(ctx context.Context, peer netip.Addr) (Agent, error) {
	body, err := l.get(ctx, peer, agentPath)
	if err != nil {
		return Agent{}, fmt.Errorf("ask peer %v for its agent: %w", peer, err)
	}
	a, err := parseAgent(body)
	if err != nil {
		return Agent{}, fmt.Errorf("ask peer %v for its agent: parse the answer: %w", peer, err)
	}
	return a, nil
}

func parseAgent(b []byte) (Agent, error) {
	var a struct {
		Version *string `json:"version"`
		Managed bool    `json:"managed"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return Agent{}, err
	}
	if a.Version == nil {
		return Agent{}, errors.New(`no "version": expected a text of that name`)
	}
	if v := *a.Version; len(v) > maxVersion || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return Agent{}, fmt.Errorf("version %.40q: expected at most %d bytes of printable text", v, maxVersion)
	}
	return Agent{*a.Version, a.Managed}, nil
}

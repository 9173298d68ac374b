//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

const frame = 500 * time.Millisecond

// A panel draws the mesh: in place on a terminal, a line for each change elsewhere.
type panel struct {
	*stage
	jiji    string
	servers []*server

	states map[string]control.Status
	drawn  int    // lines on the terminal that the next picture replaces
	last   string // what was printed last elsewhere

	from  *lab.Container // pings to, once a frame; nil: none
	to    string
	pings []bool
}

// between has a container ping an address while the panel shows.
func (p *panel) between(from *lab.Container, to string) { p.from, p.to, p.pings = from, to, nil }

// answered reports whether the latest ping was.
func (p *panel) answered() bool { return len(p.pings) > 0 && p.pings[len(p.pings)-1] }

// until shows the mesh until done; what happens too late ends the story.
func (p *panel) until(timeout time.Duration, what string, done func() bool) {
	for start := time.Now(); ; {
		p.alive()
		next := time.After(frame)
		p.observe()
		p.draw(time.Since(start))
		if done() {
			break
		}
		if time.Since(start) > timeout {
			p.Fatalf("%s: not within %s", what, timeout)
		}
		<-next
	}
	p.drawn = 0
	p.say("\n%s\n", what)
}

func (p *panel) observe() {
	if p.from != nil {
		_, err := p.from.Try("ping", "-c", "1", "-W", "0.4", p.to)
		p.pings = append(p.pings, err == nil)
	}
	p.states = map[string]control.Status{}
	for _, v := range p.servers {
		p.states[v.name] = status(v, p.jiji)
	}
}

// all reports whether every peer of every server is in state, on endpoints that
// begin with prefix.
func (p *panel) all(state, prefix string) bool {
	for _, v := range p.servers {
		peers := p.states[v.name].Peers
		if len(peers) != len(p.servers)-1 {
			return false
		}
		for _, peer := range peers {
			if peer.State != state || !strings.HasPrefix(peer.Endpoint.String(), prefix) {
				return false
			}
		}
	}
	return true
}

// peer reports whether from has to up, on an endpoint that begins with prefix.
func (p *panel) peer(from, to, prefix string) bool {
	peer, ok := find(p.states[from], to)
	return ok && peer.State == "up" && strings.HasPrefix(peer.Endpoint.String(), prefix)
}

func find(s control.Status, id string) (control.Peer, bool) {
	for _, peer := range s.Peers {
		if peer.ID == id {
			return peer, true
		}
	}
	return control.Peer{}, false
}

// history is how from's path to a peer changed, for people.
func (p *panel) history(from, to string) string {
	peer, _ := find(p.states[from], to)
	var out strings.Builder
	fmt.Fprintf(&out, "what %s did about %s:\n", from, to)
	for _, c := range peer.Changes {
		fmt.Fprintf(&out, "  %s  %-7s  %s", c.At.Format("15:04:05.000"), c.State, c.Reason)
		if c.Old != c.New && c.Old.IsValid() {
			fmt.Fprintf(&out, " (%s -> %s)", c.Old, c.New)
		}
		if c.Outage > 0 {
			fmt.Fprintf(&out, ", silent for %s", time.Duration(c.Outage).Round(100*time.Millisecond))
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func (p *panel) draw(elapsed time.Duration) {
	if !p.terminal {
		if text := p.edges(plain); text != p.last {
			p.last = text
			fmt.Printf("after %4.1f s\n%s", elapsed.Seconds(), text)
		}
		return
	}
	picture := p.boxes() + "\n" + p.edges(paint) + p.sparks(elapsed)
	if p.drawn > 0 {
		fmt.Printf("\x1b[%dA", p.drawn)
	}
	fmt.Print(strings.ReplaceAll(picture, "\n", "\x1b[K\n"))
	p.drawn = strings.Count(picture, "\n")
}

// boxes are the servers side by side.
func (p *panel) boxes() string {
	const width = 20
	var rows [4]strings.Builder
	for _, v := range p.servers {
		ip := "starting"
		if st := p.states[v.name]; st.Server.WireGuardIP.IsValid() {
			ip = st.Server.WireGuardIP.String()
		}
		fmt.Fprintf(&rows[0], "  ┌ %s %s┐", v.name, strings.Repeat("─", width-len(v.name)-1))
		fmt.Fprintf(&rows[1], "  │ %-*s│", width, ip)
		fmt.Fprintf(&rows[2], "  │ %-*s│", width, v.service+" "+v.ip)
		fmt.Fprintf(&rows[3], "  └%s┘", strings.Repeat("─", width+1))
	}
	var out strings.Builder
	for i := range rows {
		out.WriteString(rows[i].String() + "\n")
	}
	return out.String()
}

// edges are the peers of each pair, seen from both ends.
func (p *panel) edges(style func(state, text string) string) string {
	var out strings.Builder
	for i, a := range p.servers {
		for _, b := range p.servers[i+1:] {
			fmt.Fprintf(&out, "  %s %s  %s\n", a.name, p.edge(a, b, style), b.name)
		}
	}
	return out.String()
}

func (p *panel) edge(a, b *server, style func(state, text string) string) string {
	var half [2]string
	for i, pair := range [][2]*server{{a, b}, {b, a}} {
		peer, ok := find(p.states[pair[0].name], pair[1].name)
		state, endpoint := "unknown", "no endpoint"
		if ok {
			state = peer.State
		}
		if peer.Endpoint.IsValid() {
			endpoint = peer.Endpoint.Addr().String()
		}
		half[i] = style(state, fmt.Sprintf("━━ %-7s %-15s", state, endpoint))
	}
	return half[0] + " ━━ " + half[1] + " ━━"
}

func plain(_, text string) string { return text }

func paint(state, text string) string {
	color := map[string]int{"up": 32, "suspect": 33, "down": 31}[state]
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, text)
}

// sparks is one mark for each ping, the latest to the right.
func (p *panel) sparks(elapsed time.Duration) string {
	if p.from == nil {
		return fmt.Sprintf("\n  %4.1f s\n", elapsed.Seconds())
	}
	var out strings.Builder
	for _, ok := range p.pings[max(0, len(p.pings)-50):] {
		if ok {
			out.WriteString("\x1b[32m▂\x1b[0m")
		} else {
			out.WriteString("\x1b[31m·\x1b[0m")
		}
	}
	return fmt.Sprintf("\n  %4.1f s  ping %s %s\n", elapsed.Seconds(), p.to, out.String())
}

package node

import (
	"fmt"
	"testing"
	"time"
)

func TestMixedAgents(t *testing.T) {
	const klukai, upstream = "klukai 0.1.4", "corrosion 0.2.0-beta.0 (11edb1e)"
	many := []agentOf{{server: "odd", version: upstream}}
	for i := range 9 {
		many = append(many, agentOf{server: fmt.Sprint("w", i), version: klukai})
	}
	for _, c := range []struct {
		name   string
		own    string
		others []agentOf
		mixed  string
		unseen string
	}{
		{"alone", klukai, nil, "", ""},
		{"alike", klukai, []agentOf{{server: "web2", version: klukai, seen: true}}, "", ""},
		{"one is not known", klukai, []agentOf{{server: "web2"}}, "", ""},
		{"ours is not known", "", []agentOf{{server: "web2", version: klukai}}, "", ""},
		{"two kinds", klukai, []agentOf{{server: "web2", version: klukai, seen: true}, {server: "web3", version: upstream, unseen: true}},
			upstream + " on web3; " + klukai + " on web1, web2",
			"the agent of web1 (" + klukai + ") does not see that of web3 (" + upstream + "), though the tunnel is up: what is registered on one side is not known on the other; if their versions differ, give all the same"},
		{"two kinds of others", "", []agentOf{{server: "web2", version: klukai}, {server: "web3", version: upstream}}, upstream + " on web3; " + klukai + " on web2", ""},
		{"unseen, and alike", klukai, []agentOf{{server: "web2", version: klukai, unseen: true}}, "",
			"the agent of web1 (" + klukai + ") does not see that of web2, though the tunnel is up: what is registered on one side is not known on the other; if their versions differ, give all the same"},
		{"one has not told its commit", "corrosion 0.2.0-beta.0", []agentOf{{server: "web2", version: upstream}}, "", ""},
		{"two commits", "corrosion 0.2.0-beta.0 (32d07ed)", []agentOf{{server: "web2", version: upstream}, {server: "web3", version: "corrosion 0.2.0-beta.0"}},
			upstream + " on web2; corrosion 0.2.0-beta.0 (32d07ed) on web1", ""},
		{"many", klukai, many, upstream + " on odd; " + klukai + " on w0, w1, w2, w3, w4, 5 more", ""},
	} {
		if got := mixedAgents(byVersion("web1", c.own, c.others)); got != c.mixed {
			t.Errorf("%s: mixed %q, want %q", c.name, got, c.mixed)
		}
		if got := unseenAgents("web1", c.own, c.others); got != c.unseen {
			t.Errorf("%s: unseen %q, want %q", c.name, got, c.unseen)
		}
	}
}

func TestShortfall(t *testing.T) {
	begun := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return begun.Add(time.Duration(seconds) * time.Second) }
	var s shortfall
	for _, step := range []struct {
		second, lacks int
		stuck         bool
	}{{0, 0, false}, {300, 0, false}, {305, 900, false}, {400, 500, false}, {519, 400, false}, {600, 400, false}, {638, 700, false}, {639, 700, true}, {700, 401, true}, {705, 399, false}, {900, 399, true}, {905, 0, false}} {
		s = s.next(step.lacks, at(step.second))
		if got := s.stuck(nil, at(step.second)); (got != "") != step.stuck {
			t.Errorf("after %d s, with %d missing: %q", step.second, step.lacks, got)
		}
	}
	s = shortfall{2, at(0)}
	for want, tables := range map[string][]string{
		"the agent has got none of the versions of others that it lacks (2) since 2026-08-01T12:00:00Z: what came before tables were added to it waits until it is started again":                                nil,
		"the agent has got none of the versions of others that it lacks (2) since 2026-08-01T12:00:00Z: it lacks jiji_meta, jiji_servers: give it the schema of `jiji-node registry schema`, and start it again": {"jiji_meta", "jiji_servers"},
	} {
		if got := s.stuck(tables, at(120)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

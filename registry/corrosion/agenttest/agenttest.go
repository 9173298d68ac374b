// Package agenttest starts a real Corrosion agent for tests.
package agenttest

import (
	"os"
	"testing"
)

// Options say what agent to start. All may be zero.
type Options struct {
	Schema    string   // SQL; empty: no tables
	Token     string   // that the API wants; empty: none
	Gossip    string   // address and port; empty: a free one on 127.0.0.1
	Bootstrap []string // gossip addresses of other agents
}

// An Agent is one that runs, or ran.
type Agent struct {
	URL    string // of the API: http://127.0.0.1:PORT
	Token  string
	Gossip string // 127.0.0.1:PORT
	Dir    string // its database, configuration and log
}

// Start starts an agent on loopback and returns when it answers queries. It is
// stopped at the end of the test. Without a binary the test is skipped, or fails
// when the environment says CI=true. The binary is JIJI_TEST_CORROSION, else
// jiji-node/klukai-0.1.4/bin/corrosion in XDG_CACHE_HOME or ~/.cache, else
// /opt/klukai/bin/corrosion.
func Start(tb testing.TB, opts Options) *Agent { panic("todo") }

// Stop ends the agent with sig and waits until it is gone.
func (a *Agent) Stop(tb testing.TB, sig os.Signal) {}

// Restart starts the agent again, with the same database and ports, after Stop;
// one that runs is stopped with SIGTERM first. It returns when it answers queries.
func (a *Agent) Restart(tb testing.TB) {}

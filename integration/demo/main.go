//go:build linux

// Command demo shows a mesh of three servers on this machine, each one a
// namespace with a real jiji-node: `make demo`.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/acidtib/jiji-node/integration/lab"
	"github.com/acidtib/jiji-node/node/control"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	s := &stage{ctx: ctx, terminal: term.IsTerminal(int(os.Stdout.Fd()))}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer s.cleanup() // also when Fatalf ends this goroutine
		play(s)
	}()
	<-ended
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		fmt.Println("\nstopped; all is cleaned up")
		os.Exit(130)
	case s.failed:
		os.Exit(1)
	}
}

// A server is one of the three, with what it runs.
type server struct {
	*lab.Server
	name, service, ip string // ip: of the container that serves
	container         *lab.Container
}

const (
	peers    = 20 * time.Second // for the peers to find one another
	rotation = 25 * time.Second // for the peers to leave a broken endpoint
)

func play(s *stage) {
	started := time.Now()
	l := lab.New(s)
	jiji := lab.Binary(s)
	internet, backup := l.Network("internet", "192.0.2.0/24"), l.Network("backup", "198.51.100.0/24")

	s.chapter("Three servers, each with two links and a bridge for containers")
	servers := []*server{
		{name: "web1", service: "api", ip: "10.210.0.10"},
		{name: "web2", service: "db", ip: "10.210.1.10"},
		{name: "web3", service: "cache", ip: "10.210.2.10"},
	}
	var entries strings.Builder
	for i, v := range servers {
		v.Server = l.Server(v.name).On(internet, backup)
		v.container = v.Container(v.service, v.ip)
		entries.WriteString(s.run(v, jiji, "init", "--name", v.name, "--index", fmt.Sprint(i),
			"--endpoint", v.Addr(internet).String(), "--endpoint", v.Addr(backup).String()))
	}
	for _, v := range servers {
		s.say("%s# cat *.json | jiji-node server add -", v.name)
		s.say("%s", v.RunInput(entries.String(), jiji, "server", "add", "-"))
	}
	for _, v := range servers {
		s.say("%s# jiji-node run", v.name)
		v.Start("run").WaitReady()
	}
	for _, v := range servers {
		s.show(v, jiji, "service", "register", v.service, "--ip", v.ip)
	}
	panel := &panel{stage: s, jiji: jiji, servers: servers}
	panel.until(peers, "every peer is up", func() bool { return panel.all("up", "192.0.2.") })

	s.chapter("Peers, names and packets")
	one, two := servers[0], servers[1]
	s.show(one, jiji, "status")
	s.show(one, "wg", "show", "jiji0", "endpoints")
	s.show(one, "dig", "@10.210.0.1", "api.jiji", "+short")
	s.show(two, "dig", "@10.210.1.1", "web1.node.jiji", "+noall", "+answer")
	s.say("the container of %s asks for a name and reaches the container of %s:", one.name, two.name)
	s.show(one.container, "getent", "ahostsv4", "web2.node.jiji")
	s.show(one.container, "ping", "-c", "3", "-i", "0.2", two.ip)
	s.show(one.container, "traceroute", "-n", "-q", "1", "-w", "1", two.ip)

	s.chapter("An endpoint breaks: nothing passes between web1 and web2 on the first network")
	internet.Cut(one.Server, two.Server)
	panel.between(one.container, two.ip)
	panel.until(rotation, "web1 and web2 meet on the other network", func() bool {
		return panel.peer("web1", "web2", "198.51.100.") && panel.peer("web2", "web1", "198.51.100.") && panel.answered()
	})
	s.say("%s", panel.history("web1", "web2"))
	s.show(one.container, "ping", "-c", "2", "-i", "0.2", two.ip)
	s.say("done in %s", time.Since(started).Round(time.Second))
}

// A runner is a namespace in which commands run.
type runner interface {
	Run(name string, args ...string) string
}

// A stage prints the story, and is the lab's test.
type stage struct {
	ctx      context.Context
	terminal bool
	failed   bool
	cleanups []func()
}

func (s *stage) chapter(title string) {
	s.alive()
	if s.terminal {
		fmt.Printf("\n\x1b[1m%s\x1b[0m\n\n", title)
		return
	}
	fmt.Printf("\n== %s\n\n", title)
}

func (s *stage) say(format string, args ...any) {
	fmt.Println(strings.TrimRight(fmt.Sprintf(format, args...), "\n"))
}

// run runs a command quietly.
func (s *stage) run(in *server, name string, args ...string) string {
	s.alive()
	return in.Run(name, args...)
}

// show runs a command and prints it with its output.
func (s *stage) show(in runner, name string, args ...string) {
	s.alive()
	where := "container"
	if v, ok := in.(*server); ok {
		where = v.name
	}
	shown := name[strings.LastIndexByte(name, '/')+1:]
	s.say("%s# %s", where, strings.Join(append([]string{shown}, args...), " "))
	s.say("%s", in.Run(name, args...))
	fmt.Println()
}

// alive ends the story after Ctrl-C.
func (s *stage) alive() {
	if s.ctx.Err() != nil {
		s.Fatalf("interrupted")
	}
}

func (s *stage) cleanup() {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
}

// status asks the node on v; a node that does not answer has none.
func status(v *server, jiji string) (st control.Status) {
	out, err := v.Try(jiji, "status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	if err != nil {
		return control.Status{}
	}
	return st
}

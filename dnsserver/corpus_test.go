package dnsserver

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var update = flag.Bool("update", false, "write what the zone answers now into testdata/corpus, to be read and checked")

const corpusFile = "testdata/corpus"

// A corpusCase is a question to testConfig's zone and the whole answer to it.
type corpusCase struct {
	comment  string // why
	question string // "name class type", in zone-file text
	client   netip.Addr
	want     string // lines: rcode and flags, then records; "forward" if it is not for the zone
}

func (c corpusCase) name() string {
	return strings.TrimSuffix(fmt.Sprint(c.question, " from ", c.client), " from invalid IP")
}

// readCorpus reads cases: a line with the question, and one with a tab in front
// for all that is answered.
func readCorpus(t testing.TB) []corpusCase {
	t.Helper()
	b, err := os.ReadFile(corpusFile)
	if err != nil {
		t.Fatal(err)
	}
	var cases []corpusCase
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" || line[0] == ';':
		case line[0] == '\t':
			cases[len(cases)-1].want += line[1:] + "\n"
		default:
			asked, comment, _ := strings.Cut(line, " ; ")
			asked, from, ok := strings.Cut(asked, " from ")
			c := corpusCase{comment: comment, question: asked}
			if ok {
				c.client = netip.MustParseAddr(from)
			}
			cases = append(cases, c)
		}
	}
	return cases
}

// shown is a message as the corpus has it; "forward" is none.
func shown(t testing.TB, b []byte) string {
	t.Helper()
	if b == nil {
		return "forward\n"
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("reply does not parse: %v\n%x", err, b)
	}
	lines := rcode(m)
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"", m.Answer}, {"authority ", m.Ns}, {"additional ", m.Extra}} {
		for _, line := range text(section.rrs) {
			lines += "\n" + section.name + line
		}
	}
	return lines + "\n"
}

// TestDNSShow1Corpus asks all questions of the corpus in each way that there is to ask.
func TestDNSShow1Corpus(t *testing.T) {
	z := newTestZone(t)
	cases := readCorpus(t)
	if *update {
		writeCorpus(t, z)
		return
	}
	if len(cases) < 150 {
		t.Fatalf("%d cases, want 150 or more", len(cases))
	}
	s := start(t, Config{})
	for _, c := range cases {
		t.Run(c.name(), func(t *testing.T) {
			r := asking(t, c.question)
			library := respond(z, r, c.client, true, 0)
			if got := shown(t, library); got != c.want {
				t.Errorf("%s: got\n%swant\n%s", c.comment, got, c.want)
			}
			p, err := r.Pack()
			if err != nil {
				t.Fatal(err)
			}
			var room [maxName]byte
			if q, ok := parseQuery(p, &room); ok {
				q.limit = dns.MaxMsgSize
				if plain := z.reply(nil, &q, c.client, 0); !bytes.Equal(plain, library) {
					t.Errorf("a datagram is answered otherwise:\n%x\n%x", plain, library)
				}
			} else if c.want != "REFUSED\n" {
				t.Error("not taken for a plain query")
			}
			if c.client.IsValid() {
				return // on loopback nobody is a container
			}
			if c.want == "forward\n" {
				return // what of those is package forward's
			}
			for _, network := range []string{"udp", "tcp"} {
				m := askServer(t, s, network, r)
				checkHeader(t, r, m)
				b, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				if got := shown(t, b); got != c.want && len(m.Answer) < 2 {
					t.Errorf("by %s: got\n%swant\n%s", network, got, c.want)
				}
			}
		})
	}
}

// writeCorpus writes the corpus anew, its questions and comments as they are.
func writeCorpus(t *testing.T, z *Zone) {
	b, err := os.ReadFile(corpusFile)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		out.WriteString(line)
		if line == "\n" || line[0] == ';' {
			continue
		}
		asked, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ; ")
		asked, from, ok := strings.Cut(asked, " from ")
		var client netip.Addr
		if ok {
			client = netip.MustParseAddr(from)
		}
		for l := range strings.Lines(shown(t, respond(z, asking(t, asked), client, true, 0))) {
			out.WriteString("\t" + l)
		}
	}
	if err := os.WriteFile(corpusFile, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

//go:build linux

// Command bench measures jiji-node against its peers, side by side in one run:
// `make bench`. It is no test: what the machine does beside it moves the figures, so it
// prints how far they spread and which bars they meet, and fails only when something
// could not be measured.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// parts in the order in which they run.
var parts = []struct {
	name    string
	measure func(*stage) *Part
}{
	{"tunnel", measureTunnel},
	{"dns", measureDNS},
	{"node", measureNode},
	{"registry", measureRegistry},
}

const quickPairs = 3

func main() {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	pairs := flag.Int("pairs", 9, "how often each side is measured")
	quick := flag.Bool("quick", false, fmt.Sprintf("%d pairs: the interval is wide then", quickPairs))
	run := flag.String("run", strings.Join(names, ","), "the parts to run")
	file := flag.String("json", "", "write the figures to this `file` too, with every sample")
	flag.Parse()
	if *quick {
		*pairs = quickPairs
	}
	chosen := strings.Split(*run, ",")
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			wrong("-run %q: no such part, want some of %s", name, strings.Join(names, ","))
		}
	}
	switch {
	case flag.NArg() > 0:
		wrong("%q: takes no arguments", flag.Arg(0))
	case *pairs < 1:
		wrong("-pairs %d: want 1 or more", *pairs)
	case os.Geteuid() != 0:
		fmt.Fprintln(os.Stderr, "bench: needs root, to make network namespaces: run it as root")
		os.Exit(1)
	}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	r := report{Facts: facts(*pairs)}
	failed := false
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) || ctx.Err() != nil {
			continue
		}
		s := &stage{ctx: ctx, part: p.name, pairs: *pairs}
		s.play(func(s *stage) { r.Parts = append(r.Parts, p.measure(s)) })
		for _, name := range s.against {
			if !slices.Contains(r.Facts.Against, name) {
				r.Facts.Against = append(r.Facts.Against, name)
			}
		}
		failed = failed || s.failed
	}
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "bench: stopped; all is cleaned up")
		os.Exit(130)
	}
	r.Took = time.Since(r.Facts.Time).Round(time.Second).String()
	fmt.Print(r.text())
	if *file != "" {
		if err := r.write(*file); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}

func wrong(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
	os.Exit(2)
}

// A report is what a run came to.
type report struct {
	Facts Facts   `json:"machine"`
	Took  string  `json:"took"`
	Parts []*Part `json:"parts"`
}

func (r *report) text() string {
	f := r.Facts
	var b strings.Builder
	fmt.Fprintf(&b, "# jiji-node %s, measured %s in %s\n\n", f.Commit, f.Time.Format(time.RFC3339), r.Took)
	b.WriteString(align([][]string{
		{"processor", "cores", "kernel", "Go", "load before"},
		{f.CPU, fmt.Sprint(f.Cores), f.Kernel, f.Go, f.Load},
	}))
	fmt.Fprintf(&b, `
Against %s.
Cells are medians of %d rounds, with the range. Rounds alternate between the sides. The ratio is the
geometric mean of the pairs' ratios, ours to theirs; its interval is Student's t on their logarithms.
A bar is met when the end of the 95 %% interval that is nearer to it is: of the ratio, or of our own mean.
`, strings.Join(f.Against, ", "), f.Pairs)
	for _, p := range r.Parts {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", p.Name, p.table())
		for _, note := range p.Notes {
			fmt.Fprintf(&b, "- %s\n", note)
		}
	}
	met, missed := bars(r.Parts)
	fmt.Fprintf(&b, "\n%d of %d bars are met.\n", met, met+len(missed))
	for _, line := range missed {
		fmt.Fprintf(&b, "- not met: %s\n", line)
	}
	return b.String()
}

// bars counts the bars that are met, and names the others.
func bars(parts []*Part) (met int, missed []string) {
	for _, p := range parts {
		for _, f := range p.Figures {
			switch verdict, end := f.judge(); verdict {
			case Met:
				met++
			case NotMet:
				missed = append(missed, fmt.Sprintf("%s: %s, want %s", f.Name, f.end(end), f.bar()))
			}
		}
	}
	return met, missed
}

func (r *report) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

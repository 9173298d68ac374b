package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxLine   = 16 << 10 // bytes of a line that are read; the rest is dropped
	maxText   = 400      // bytes of a line that are passed on
	keepLines = 20       // for the reason of an end
	burst     = 40       // lines passed on at once,
	perSecond = 5        // and then in each second
)

// An output takes what one run of the agent writes, passes it on to a log and
// keeps the last complaints.
type output struct {
	log    *slog.Logger
	token  string      // is never passed on
	ending atomic.Bool // the agent was told to end: what it complains about then is of no interest

	mu      sync.Mutex // guards what follows
	last    []string   // at most keepLines
	credit  float64    // lines that may be passed on now
	filled  time.Time  // when credit was right
	dropped int        // lines since the last that was passed on
}

func newOutput(log *slog.Logger, token string) *output {
	return &output{log: log, token: token, credit: burst, filled: time.Now()}
}

// lastLines returns the last complaints, the oldest first.
func (o *output) lastLines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

func (o *output) line(text string) {
	level, msg, target := parseLine(text)
	if o.token != "" {
		msg = strings.ReplaceAll(msg, o.token, "[token]")
	}
	if msg = oneLine(msg); msg == "" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if level >= slog.LevelWarn {
		if len(o.last) == keepLines {
			o.last = o.last[1:]
		}
		o.last = append(o.last, msg)
	}
	if target == "" || target == "tower_http::trace::on_failure" || o.ending.Load() {
		level = slog.LevelDebug // a panic is in State.LastExit; who sent a request knows how it failed
	}
	ctx := context.Background()
	if !o.log.Enabled(ctx, level) {
		return
	}
	now := time.Now()
	o.credit = min(burst, o.credit+now.Sub(o.filled).Seconds()*perSecond)
	o.filled = now
	if o.credit < 1 {
		o.dropped++
		return
	}
	o.credit--
	if o.dropped > 0 {
		o.log.Warn("corrosion agent wrote too much", "lines dropped", o.dropped)
		o.dropped = 0
	}
	o.log.Log(ctx, level, "corrosion agent says", "line", msg, "target", target)
}

// parseLine reads a line of the agent's log. What an agent informs about is of
// no interest to who runs a node, hence Debug. A line that is not of the log is
// from a panic, or from a start that failed.
func parseLine(text string) (level slog.Level, msg, target string) {
	var l struct {
		Level  string
		Fields struct{ Message, Error string }
		Target string
	}
	if err := json.Unmarshal([]byte(text), &l); err != nil || l.Level == "" {
		return slog.LevelWarn, text, ""
	}
	switch l.Level {
	case "ERROR":
		level = slog.LevelError
	case "WARN":
		level = slog.LevelWarn
	default:
		level = slog.LevelDebug
	}
	msg = l.Fields.Message
	switch {
	case strings.HasPrefix(msg, "could not apply schema"), // old agents say so for want of their own token, having applied it
		strings.HasPrefix(msg, "could not execute schema"), strings.HasPrefix(msg, "could not merge schemas"): // settle finds out
		level = slog.LevelDebug
	case strings.HasPrefix(msg, "No existing cluster member state"): // of each new one
		level = slog.LevelDebug
	}
	if l.Fields.Error != "" {
		msg += ": " + l.Fields.Error
	}
	return level, msg, l.Target
}

// oneLine returns text as one line of at most maxText bytes that a terminal can
// take.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, "?"))
	text = strings.TrimSpace(text)
	if len(text) <= maxText {
		return text
	}
	cut := maxText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "..."
}

// causes joins what follows "Caused by:" in the lines of a panic, where several
// are numbered.
func causes(lines []string) string {
	if len(lines) == 0 || lines[0] != "Caused by:" {
		return ""
	}
	text := ""
	for _, line := range lines[1:] {
		if line == "Location:" || strings.HasPrefix(line, "note: ") {
			break
		}
		if number, rest, ok := strings.Cut(line, ": "); ok && strings.Trim(number, "0123456789") == "" {
			line = rest
		}
		text += ": " + line
	}
	return text
}

// A liner is a writer that hands over whole lines, of each the first maxLine
// bytes.
type liner struct {
	emit func(string)
	buf  []byte
}

func (l *liner) Write(p []byte) (int, error) {
	n := len(p)
	for {
		part, rest, found := bytes.Cut(p, []byte("\n"))
		l.buf = append(l.buf, part[:min(len(part), maxLine-len(l.buf))]...)
		if !found {
			return n, nil
		}
		l.flush()
		p = rest
	}
}

func (l *liner) flush() {
	if len(l.buf) > 0 {
		l.emit(string(l.buf))
	}
	l.buf = l.buf[:0]
}

// explain says in one line how an agent ended, which wrote lines before.
func explain(ended string, ran time.Duration, lines []string) error {
	text := fmt.Sprintf("ended after %v: %s", ran.Round(time.Millisecond), ended)
	killed := strings.HasPrefix(ended, "signal: killed") || strings.HasPrefix(ended, "signal: terminated")
	if why := reason(lines); why != "" && !killed { // by others, whatever it wrote
		text += ": " + why
	}
	return errors.New(text)
}

// reason picks the lines that say most: of a panic the message, which follows
// the place, and its causes; else the last.
func reason(lines []string) string {
	for i := len(lines) - 2; i >= 0; i-- {
		if strings.HasPrefix(lines[i], "thread '") && strings.Contains(lines[i], "panicked at ") {
			return oneLine("panic: " + strings.TrimSuffix(lines[i+1], ":") + causes(lines[i+2:]))
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

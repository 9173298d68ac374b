package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	maxAnswer = 1 << 20 // bytes of an answer of the agent that are read
	maxFrames = 10_000  // of one answer on the admin socket
)

// Ready returns nil once the agent answers queries and has the tables of the
// schema; else it says which are missing, or why there is no agent.
func (a *Agent) Ready(ctx context.Context) error {
	if s := a.State(); !s.Running {
		if s.LastExit == "" {
			return errors.New("corrosion agent is not started")
		}
		return fmt.Errorf("corrosion agent is down: %s", s.LastExit)
	}
	have, err := a.tables(ctx)
	if err != nil {
		return fmt.Errorf("corrosion agent: %w", err)
	}
	missing := slices.DeleteFunc(schemaTables(a.cfg.Schema), func(t string) bool { return slices.Contains(have, t) })
	if len(missing) == 0 {
		return nil
	}
	err = fmt.Errorf("corrosion agent: missing tables: %s", strings.Join(missing, ", "))
	if r := a.refused.Load(); r != nil {
		err = fmt.Errorf("%w: %s", err, *r)
	}
	return err
}

// settle waits until the agent that was just started answers, hands it the schema,
// asks what it was built from, and notes that. It has read the schema's files
// itself, but where it refused them, only its log says so.
func (a *Agent) settle(ctx context.Context) {
	if !a.settleSchema(ctx) {
		return
	}
	if commit, err := a.readCommit(ctx); err != nil {
		a.cfg.Log.Debug("corrosion agent does not tell what it was built from", "err", err)
	} else {
		a.commit.Store(&commit)
	}
	if err := noteUse(a.cfg.Dir, a.State().Version); err != nil {
		a.cfg.Log.Debug("corrosion agent's version not noted", "err", err)
	}
}

// settleSchema reports whether the agent answers.
func (a *Agent) settleSchema(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for delay := minDelay; ; delay = min(2*delay, time.Second) {
		_, err := a.tables(ctx)
		if err == nil {
			err = a.reload(ctx)
		}
		var refusal *refusedError
		switch {
		case errors.As(err, &refusal):
			text := "schema refused: " + oneLine(refusal.text)
			a.refused.Store(&text)
			a.cfg.Log.Error("corrosion agent refuses the schema", "err", oneLine(refusal.text))
			return true
		case err == nil:
			return true
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				a.cfg.Log.Error("corrosion agent does not answer", "err", err, "after", settleWithin)
			}
			return false
		case <-time.After(delay):
		}
	}
}

// A refusedError is what the agent answered.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// reload makes the agent apply the schema. Agents until May 2026 take its text by
// HTTP; newer ones know no such path and read the files when told to on the admin
// socket. In this order neither logs an error.
func (a *Agent) reload(ctx context.Context) error {
	if len(a.cfg.Schema) == 0 {
		return nil
	}
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Schema)) {
		texts = append(texts, a.cfg.Schema[name])
	}
	status, body, err := a.post(ctx, "/v1/migrations", texts)
	switch {
	case err != nil:
		return err
	case status == http.StatusOK:
		return nil
	case status == http.StatusNotFound:
		_, err := ask(ctx, a.cfg.Socket, "Reload")
		return err
	}
	var answer struct{ Results []struct{ Error string } }
	if json.Unmarshal(body, &answer) == nil && len(answer.Results) > 0 && answer.Results[0].Error != "" {
		return &refusedError{answer.Results[0].Error}
	}
	return &refusedError{fmt.Sprintf("POST /v1/migrations: %d %s", status, body)}
}

// buildInfo is a line of an agent's metrics. All of upstream's call themselves
// 0.2.0-beta.0: the commit alone tells them apart.
var buildInfo = regexp.MustCompile(`(?m)^corro_build_info\{[^}\n]*\bgit_commit="([0-9a-f]{7,40})"`)

// readCommit returns what the running agent was built from, as its metrics say. One
// that was not built in a git repository does not know.
func (a *Agent) readCommit(ctx context.Context) (string, error) {
	if !a.cfg.Metrics.IsValid() {
		return "", errors.New("it has no metrics")
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.cfg.Metrics.String()+"/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return "", err
	}
	found := buildInfo.FindSubmatch(body)
	if resp.StatusCode != http.StatusOK || found == nil {
		return "", fmt.Errorf("metrics: %s, no commit in corro_build_info", resp.Status)
	}
	return string(found[1]), nil
}

// Members returns the gossip addresses of the other agents that this one has in
// its cluster now.
func (a *Agent) Members(ctx context.Context) ([]netip.AddrPort, error) {
	found, err := ask(ctx, a.cfg.Socket, map[string]string{"Cluster": "Members"})
	if err != nil {
		return nil, err
	}
	at := make([]netip.AddrPort, 0, len(found))
	for _, text := range found {
		var member struct {
			State struct {
				Addr netip.AddrPort `json:"addr"`
			} `json:"state"`
		}
		if err := json.Unmarshal(text, &member); err != nil {
			return nil, fmt.Errorf("admin socket %s: member %s: %w", a.cfg.Socket, oneLine(string(text)), err)
		}
		at = append(at, member.State.Addr)
	}
	return at, nil
}

// tables returns the names of the tables that the agent has.
func (a *Agent) tables(ctx context.Context) ([]string, error) {
	status, body, err := a.post(ctx, "/v1/queries", map[string]string{"query": "SELECT name FROM sqlite_schema WHERE type = 'table'"})
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("query: %d %s", status, oneLine(string(body)))
	}
	return parseNames(body)
}

// parseNames reads the events of a query for one column of text.
func parseNames(body []byte) ([]string, error) {
	var out []string
	d := json.NewDecoder(bytes.NewReader(body))
	for {
		var event struct {
			Row   []json.RawMessage
			EOQ   json.RawMessage
			Error *string
		}
		if err := d.Decode(&event); err != nil {
			return nil, fmt.Errorf("query: answer without end: %w", err)
		}
		switch {
		case event.Error != nil:
			return nil, fmt.Errorf("query: %s", oneLine(*event.Error))
		case event.EOQ != nil:
			return out, nil
		case event.Row != nil:
			var cells []string
			if len(event.Row) != 2 || json.Unmarshal(event.Row[1], &cells) != nil || len(cells) != 1 {
				return nil, fmt.Errorf("query: row %s: want a number and one text", event.Row)
			}
			out = append(out, cells[0])
		}
	}
}

func (a *Agent) post(ctx context.Context, path string, in any) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	data, err := json.Marshal(in)
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.URL()+path, bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+a.token)
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, body, err
}

// ask sends one command to the admin socket and returns the values of the
// answer. That the agent refuses it is a *refusedError.
func ask(ctx context.Context, socket string, command any) ([]json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	data, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", socket, err)
	}
	out, err := readAnswer(bufio.NewReader(conn))
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", socket, err)
	}
	return out, nil
}

// readAnswer reads the frames of an answer: four bytes of length, then JSON.
func readAnswer(r io.Reader) ([]json.RawMessage, error) {
	var out []json.RawMessage
	left := int64(maxAnswer)
	for range maxFrames {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, fmt.Errorf("answer without end: %w", err)
		}
		size := int64(binary.BigEndian.Uint32(head[:]))
		if left -= size; left < 0 {
			return nil, fmt.Errorf("answer has more than %d bytes", maxAnswer)
		}
		frame := make([]byte, size)
		if _, err := io.ReadFull(r, frame); err != nil {
			return nil, fmt.Errorf("answer without end: %w", err)
		}
		if string(frame) == `"Success"` {
			return out, nil
		}
		var f struct {
			Log   json.RawMessage
			JSON  json.RawMessage `json:"Json"`
			Error *struct{ Msg string }
		}
		if err := json.Unmarshal(frame, &f); err != nil {
			return nil, fmt.Errorf("answer %q: %w", oneLine(string(frame)), err)
		}
		switch {
		case f.Error != nil:
			return nil, &refusedError{f.Error.Msg}
		case f.JSON != nil:
			out = append(out, f.JSON)
		case f.Log == nil:
			return nil, fmt.Errorf("answer %q: want Log, Json, Error or Success", oneLine(string(frame)))
		}
	}
	return nil, fmt.Errorf("answer has more than %d frames", maxFrames)
}

var (
	sqlComment  = regexp.MustCompile(`--[^\n]*|(?s:/\*.*?\*/)`)
	createTable = regexp.MustCompile(`(?i)\bCREATE\s+TABLE\b\s*(?:IF\s+NOT\s+EXISTS\s+)?["` + "`" + `\[]?(\w+)`)
)

// schemaTables returns the names of the tables that schema makes, in order.
func schemaTables(schema map[string]string) []string {
	var out []string
	for _, sql := range schema {
		for _, m := range createTable.FindAllStringSubmatch(sqlComment.ReplaceAllString(sql, " "), -1) {
			out = append(out, m[1])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

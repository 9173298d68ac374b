package corrotest

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// serve answers one request as the agent would, unless a fault was ordered.
func (a *Agent) serve(w http.ResponseWriter, r *http.Request) {
	if status := a.allowed(r); status != 0 {
		answer(w, status, "", nil)
		return
	}
	handler, route, method := a.find(r.URL.Path)
	switch {
	case handler == nil:
		answer(w, http.StatusNotFound, "", nil)
		return
	case r.Method != method && !(method == http.MethodGet && r.Method == http.MethodHead):
		w.Header().Set("Allow", method)
		answer(w, http.StatusMethodNotAllowed, "", nil)
		return
	}
	f := a.strike(route)
	switch f.kind {
	case answerInstead:
		answer(w, f.status, "text/plain; charset=utf-8", []byte(f.body))
		return
	case hangAfterHeaders:
		noContentType(w)
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush() // fails if the client is gone
		a.hang(r)
	case neverAnswer:
		a.hang(r)
	}
	handler(w, r, f)
}

// hang waits until the client or the agent goes, and breaks the connection.
func (a *Agent) hang(r *http.Request) {
	// The server watches the connection only once the body is read.
	_, _ = io.Copy(io.Discard, r.Body)
	a.mu.Lock()
	down := a.down
	a.mu.Unlock()
	select {
	case <-r.Context().Done():
	case <-down:
	}
	panic(http.ErrAbortHandler)
}

type handler func(http.ResponseWriter, *http.Request, fault)

func (a *Agent) find(path string) (handler, Route, string) {
	switch Route(path) {
	case Transactions:
		return a.serveTransactions, Transactions, http.MethodPost
	case Queries:
		return a.serveQueries, Queries, http.MethodPost
	case Subscriptions:
		return a.servePostSubscription, Subscriptions, http.MethodPost
	case TableStats:
		return a.serveTableStats, TableStats, http.MethodPost
	case HealthRoute:
		if a.flavour() == Klukai {
			return nil, "", ""
		}
		return a.serveHealth, HealthRoute, http.MethodGet
	case "/v1/migrations":
		if a.flavour() == Upstream {
			return nil, "", ""
		}
		return a.serveMigrations, "/v1/migrations", http.MethodPost
	}
	if id, ok := strings.CutPrefix(path, string(Subscriptions)+"/"); ok && id != "" && !strings.Contains(id, "/") {
		return func(w http.ResponseWriter, r *http.Request, f fault) { a.serveGetSubscription(w, r, f, id) }, Subscriptions, http.MethodGet
	}
	if table, ok := strings.CutPrefix(path, string(Updates)+"/"); ok && table != "" && !strings.Contains(table, "/") {
		return func(w http.ResponseWriter, r *http.Request, _ fault) { a.serveUpdates(w, r, table) }, Updates, http.MethodPost
	}
	return nil, "", ""
}

func (a *Agent) flavour() Flavour { return a.cfg.Flavour } // never changes

const (
	plainText = "text/plain; charset=utf-8"
	jsonType  = "application/json"
)

// noContentType keeps net/http from guessing one: most answers carry none.
func noContentType(w http.ResponseWriter) { w.Header()["Content-Type"] = nil }

func answer(w http.ResponseWriter, status int, contentType string, body []byte) {
	if contentType == "" {
		noContentType(w)
	} else {
		w.Header().Set("Content-Type", contentType)
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails if the client is gone
}

// refuse answers a query or subscription that cannot be.
func (a *Agent) refuse(w http.ResponseWriter, status int, text string) {
	answer(w, status, "", append(appendString([]byte(`{"error":`), text), '}'))
	a.chunk(w)
}

// refuseSubscription is refuse, for subscriptions and updates.
func (a *Agent) refuseSubscription(w http.ResponseWriter, status int, text string) {
	if a.flavour() == Klukai {
		answer(w, http.StatusInternalServerError, "", appendString(nil, "Error: "+text))
		a.chunk(w)
		return
	}
	a.refuse(w, status, text)
}

// chunk makes the answer one without Content-Length, where the fork does so.
func (a *Agent) chunk(w http.ResponseWriter) {
	if a.flavour() == Klukai {
		_ = http.NewResponseController(w).Flush() // fails if the client is gone
	}
}

// body reads a JSON body, or answers why it cannot.
func body(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != jsonType && !strings.HasSuffix(kind, "+json") {
		answer(w, http.StatusUnsupportedMediaType, plainText, []byte("Expected request with `Content-Type: application/json`"))
		return nil, false
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return b, true
}

func answerBodyError(w http.ResponseWriter, err error) {
	var refused *bodyError
	if !errors.As(err, &refused) {
		refused = &bodyError{http.StatusBadRequest, err.Error()}
	}
	answer(w, refused.status, plainText, []byte(refused.text))
}

// number64 reads a u64 of the query string, fallback if it is not there.
func number64(query url.Values, name string, fallback int64) (int64, error) {
	if !query.Has(name) {
		return fallback, nil
	}
	n, err := strconv.ParseUint(query.Get(name), 10, 63)
	if err == nil {
		return int64(n), nil
	}
	text := "invalid digit found in string"
	switch {
	case query.Get(name) == "":
		text = "cannot parse integer from empty string"
	case errors.Is(err, strconv.ErrRange):
		text = "number too large to fit in target type"
	}
	return 0, fmt.Errorf("Failed to deserialize query string: %s: %s", name, text) //lint:ignore ST1005 the agent's words
}

func (a *Agent) execResponse(results []byte, took time.Duration, v version) []byte {
	b := append([]byte(`{"results":[`), results...)
	b = appendFloat(append(b, `],"time":`...), took.Seconds())
	b = append(b, `,"version":`...)
	if v.dbVersion == 0 {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, v.dbVersion, 10)
	}
	return fmt.Appendf(b, `,"actor_id":%q}`, hex.EncodeToString(a.store.site[:]))
}

func (a *Agent) serveTransactions(w http.ResponseWriter, r *http.Request, f fault) {
	seconds, err := number64(r.URL.Query(), "timeout", 0)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	b, ok := body(w, r)
	if !ok {
		return
	}
	statements, err := parseStatements(b)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	a.mu.Lock()
	hold, down := a.faults.hold, a.down
	if hold != nil {
		a.faults.held++
	}
	a.mu.Unlock()
	if hold != nil {
		ended := false
		select {
		case <-hold:
		case <-down:
			ended = true
		}
		a.mu.Lock()
		a.faults.held--
		a.mu.Unlock()
		if ended {
			panic(http.ErrAbortHandler)
		}
	}

	a.mu.Lock()
	begin := time.Now()
	status := http.StatusOK
	var results []byte
	var v version
	if len(statements) == 0 {
		status, err = http.StatusBadRequest, errors.New("at least 1 statement is required")
	} else if results, v, err = a.transact(statements, time.Duration(seconds)*time.Second); err != nil {
		status, err = http.StatusInternalServerError, fmt.Errorf("rusqlite: %w (actor_id: None, version: None)", err)
	}
	took := time.Since(begin)
	if err != nil {
		results, took = append(appendString([]byte(`{"error":`), err.Error()), '}'), 0
	}
	response := a.execResponse(results, took, v)
	a.announce(v.changes)
	a.mu.Unlock()
	if v.dbVersion > 0 {
		a.gossip(v)
	}
	if f.kind == loseResponse {
		panic(http.ErrAbortHandler)
	}
	answer(w, status, jsonType, response)
}

// transact runs the statements in one transaction, or none of them. The mutex
// is held.
func (a *Agent) transact(statements []statement, limit time.Duration) (results []byte, v version, err error) {
	s := a.store
	defer s.rollback()
	if _, err := s.run("BEGIN IMMEDIATE"); err != nil {
		return nil, version{}, err
	}
	for i, st := range statements {
		begin := time.Now()
		stop := s.interruptAfter(limit)
		n, err := s.execute(st)
		stop()
		if err != nil {
			return nil, version{}, err
		}
		if i > 0 {
			results = append(results, ',')
		}
		results = appendFloat(fmt.Appendf(results, `{"rows_affected":%d,"time":`, n), time.Since(begin).Seconds())
		results = append(results, '}')
	}
	v, err = s.commit()
	return results, v, err
}

var errRow = errors.New("Execute returned results - did you mean to call query?") //lint:ignore ST1005 the agent's words

// execute runs one statement of a transaction. A statement that does not write
// reports the rows of the one before, as the agent does.
func (s *store) execute(st statement) (int64, error) {
	p, err := s.prepare(st.sql)
	if err != nil {
		return 0, err
	}
	defer p.finalize()
	if err := p.bindAll(st); err != nil {
		return 0, err
	}
	row, err := p.step()
	switch {
	case err != nil:
		return 0, err
	case row:
		return 0, errRow
	}
	if !p.readOnly() {
		s.lastChanges = s.changes()
	}
	return s.lastChanges, nil
}

// bindAll binds the parameters of st, which have to be as many as there are.
func (s *stmt) bindAll(st statement) error {
	if st.named != nil {
		for _, n := range st.named {
			at := s.parameter(n.name)
			if at == 0 {
				return fmt.Errorf("Invalid parameter name: %s", n.name) //lint:ignore ST1005 the agent's words
			}
			if err := s.bind(at, n.value); err != nil {
				return err
			}
		}
		return nil
	}
	if want := s.parameters(); len(st.args) != want {
		return fmt.Errorf("Wrong number of parameters passed to query. Got %d, needed %d", len(st.args), want) //lint:ignore ST1005 the agent's words
	}
	for i, v := range st.args {
		if err := s.bind(i+1, v); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) serveQueries(w http.ResponseWriter, r *http.Request, f fault) {
	seconds, err := number64(r.URL.Query(), "timeout", 60)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	b, ok := body(w, r)
	if !ok {
		return
	}
	st, err := parseOne(b)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	limit := time.Duration(seconds) * time.Second
	if a.flavour() == Klukai {
		limit = 0 // it ignores the parameter
	}
	lines, status, err := a.query(st, limit)
	if err != nil {
		a.refuse(w, status, err.Error())
		return
	}
	if f.kind == endBeforeEOQ {
		lines = lines[:min(1+f.rows, len(lines)-1)]
	}
	noContentType(w)
	for _, line := range lines {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
	_ = http.NewResponseController(w).Flush() // fails if the client is gone
}

// query runs one statement and returns its events, or an error with its status.
func (a *Agent) query(st statement, limit time.Duration) (lines [][]byte, status int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.store
	if err := s.refresh(st.sql); err != nil {
		return nil, http.StatusInternalServerError, err
	}
	p, err := s.prepare(st.sql)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	defer p.finalize()
	if !p.readOnly() {
		return nil, http.StatusBadRequest, errors.New("statement is not readonly")
	}
	if err := p.bindAll(st); err != nil {
		return nil, http.StatusInternalServerError, err
	}
	lines = append(lines, columnsEvent(p.columns()))
	for rowid := int64(1); ; rowid++ {
		stop := s.interruptAfter(limit)
		more, err := p.step()
		stop()
		var line []byte
		if err == nil && more {
			line, err = rowEvent(rowid, p.row())
		}
		switch {
		case err != nil:
			return append(lines, errorEvent(err.Error())), 0, nil
		case !more:
			return append(lines, eoqEvent(nil)), 0, nil
		}
		lines = append(lines, line)
	}
}

// subParams are what a subscriber says in the query string.
type subParams struct {
	from     int64 // zero is like none, once there is a subscription
	hasFrom  bool
	skipRows bool
}

func readSubParams(r *http.Request) (subParams, error) {
	q := r.URL.Query()
	p := subParams{hasFrom: q.Has("from")}
	var err error
	if p.from, err = number64(q, "from", 0); err != nil {
		return p, err
	}
	switch text := q.Get("skip_rows"); {
	case text == "true":
		p.skipRows = true
	case text != "false" && q.Has("skip_rows"):
		return p, errors.New("Failed to deserialize query string: skip_rows: provided string was not `true` or `false`") //lint:ignore ST1005 the agent's words
	}
	return p, nil
}

func (a *Agent) servePostSubscription(w http.ResponseWriter, r *http.Request, f fault) {
	params, err := readSubParams(r)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	b, ok := body(w, r)
	if !ok {
		return
	}
	st, err := parseOne(b)
	if err != nil {
		answerBodyError(w, err)
		return
	}

	a.mu.Lock()
	sub, isNew, status, err := a.subscribe(st, params)
	if err != nil {
		a.mu.Unlock()
		if errors.Is(err, errPanic) {
			panic(http.ErrAbortHandler)
		}
		a.refuseSubscription(w, status, err.Error())
		return
	}
	if isNew && a.faults.lose {
		a.faults.lose = false
		f = fault{kind: endBeforeEOQ, rows: a.faults.firstRows}
	}
	l := a.attach(sub, params, f)
	a.mu.Unlock()
	a.stream(w, r, l, sub)
}

var errCannotExpand = errors.New("could not expand sql statement")

// subscribe finds the subscription of st, or makes it. The mutex is held.
func (a *Agent) subscribe(st statement, params subParams) (sub *subscription, isNew bool, status int, err error) {
	s := a.store
	p, err := s.prepare(st.sql)
	if err != nil {
		return nil, false, http.StatusBadRequest, err
	}
	// Parameters that do not fit stay NULL.
	for i, v := range st.args {
		if err := p.bind(i+1, v); err != nil {
			p.finalize()
			return nil, false, http.StatusBadRequest, err
		}
	}
	for _, n := range st.named {
		if at := p.parameter(n.name); at > 0 {
			if err := p.bind(at, n.value); err != nil {
				p.finalize()
				return nil, false, http.StatusBadRequest, err
			}
		}
	}
	text := p.expanded()
	p.finalize()
	if text == "" {
		return nil, false, http.StatusInternalServerError, errCannotExpand
	}
	if sub := a.byText[text]; sub != nil {
		return sub, false, 0, nil
	}
	if sub, err = newSubscription(s, newID(), text); err != nil {
		return nil, false, http.StatusBadRequest, err
	}
	if params.hasFrom {
		return nil, false, http.StatusBadRequest, errors.New("a `from` query param was supplied, but no existing subscription found")
	}
	a.subs[sub.id], a.byText[text] = sub, sub
	return sub, true, 0, nil
}

// attach makes a listener of sub, with what it missed. The mutex is held.
func (a *Agent) attach(sub *subscription, params subParams, f fault) *listener {
	l := newListener()
	l.queue, l.end = sub.catchUp(params.from, params.skipRows)
	if n := len(l.queue); n > 0 {
		l.last = l.queue[n-1]
	}
	if f.kind == endBeforeEOQ && len(l.queue) > 0 {
		l.queue, l.end = l.queue[:min(1+f.rows, len(l.queue)-1)], true
	}
	sub.listeners[l] = true
	return l
}

func (a *Agent) serveGetSubscription(w http.ResponseWriter, r *http.Request, f fault, id string) {
	if err := checkUUID(id); err != nil {
		answer(w, http.StatusBadRequest, plainText, []byte(err.Error()))
		return
	}
	params, err := readSubParams(r)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	a.mu.Lock()
	sub := a.subs[strings.ToLower(id)]
	if sub == nil {
		a.mu.Unlock()
		text := appendString([]byte(`{"error":`), "could not find subscription with id "+strings.ToLower(id))
		contentType := jsonType
		if a.flavour() == Klukai {
			contentType = ""
		}
		answer(w, http.StatusNotFound, contentType, append(text, '}'))
		a.chunk(w)
		return
	}
	l := a.attach(sub, params, f)
	a.mu.Unlock()
	a.stream(w, r, l, sub)
}

// checkUUID returns the agent's complaint about a path that is no UUID.
func checkUUID(id string) error {
	fault := ""
	hexes := 0
	for i, c := range id {
		if c == '-' {
			continue
		}
		if !strings.ContainsRune("0123456789abcdefABCDEF", c) {
			fault = fmt.Sprintf("invalid character: expected an optional prefix of `urn:uuid:` followed by [0-9a-fA-F-], found `%c` at %d", c, i+1)
			break
		}
		hexes++
	}
	if fault == "" && (hexes != 32 || len(id) != 36) {
		fault = fmt.Sprintf("invalid length: expected 36 characters with hyphens, found %d", len(id))
	}
	if fault == "" {
		return nil
	}
	return fmt.Errorf("Invalid URL: Cannot parse `id` with value `%s`: UUID parsing failed: %s", id, fault) //lint:ignore ST1005 the agent's words
}

func (a *Agent) stream(w http.ResponseWriter, r *http.Request, l *listener, sub *subscription) {
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(sub.listeners, l)
	}()
	noContentType(w)
	w.Header().Set("corro-query-id", sub.id)
	w.Header().Set("corro-query-hash", sub.hash)
	a.forward(w, r, l)
}

func (a *Agent) serveUpdates(w http.ResponseWriter, r *http.Request, table string) {
	// The server watches the connection only once the body is read.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	a.mu.Lock()
	if a.store.tables[table] == nil {
		a.mu.Unlock()
		a.refuseSubscription(w, http.StatusBadRequest, "table not found in schema: "+table)
		return
	}
	u := a.updates[table]
	if u == nil {
		u = &tableUpdates{id: newID(), table: table, todo: newCandidates(), listeners: map[*listener]bool{}}
		a.updates[table] = u
	}
	l := newListener()
	u.listeners[l] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(u.listeners, l)
	}()
	noContentType(w)
	w.Header().Set("corro-query-id", u.id)
	a.forward(w, r, l)
}

func (a *Agent) serveTableStats(w http.ResponseWriter, r *http.Request, _ fault) {
	b, ok := body(w, r)
	if !ok {
		return
	}
	if err := checkJSON(b); err != nil {
		answerBodyError(w, err)
		return
	}
	var request struct {
		Tables *[]string `json:"tables"`
	}
	line, column := position(b, len(b))
	if err := json.Unmarshal(b, &request); err != nil {
		answerBodyError(w, wrongShape("invalid type at line %d column %d", line, column))
		return
	}
	if request.Tables == nil {
		answerBodyError(w, wrongShape("missing field `tables` at line %d column %d", line, column))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	total := int64(0)
	invalid := []byte("[")
	for _, name := range *request.Tables {
		if a.store.tables[name] == nil {
			if len(invalid) > 1 {
				invalid = append(invalid, ',')
			}
			invalid = appendString(invalid, name)
			continue
		}
		rows, err := a.store.run("SELECT count(*) FROM " + quote(name))
		if err != nil {
			answer(w, http.StatusInternalServerError, jsonType, []byte(`{"total_row_count":0,"invalid_tables":[]}`))
			return
		}
		total += rows[0][0].(int64)
	}
	answer(w, http.StatusOK, jsonType, fmt.Appendf(nil, `{"total_row_count":%d,"invalid_tables":%s]}`, total, invalid))
}

func (a *Agent) serveHealth(w http.ResponseWriter, r *http.Request, _ fault) {
	q := r.URL.Query()
	limits := map[string]float64{}
	status := int64(http.StatusServiceUnavailable)
	for _, name := range []string{"gaps", "max_queue", "queue_size", "failure_status"} {
		n, err := number64(q, name, -1)
		if err != nil {
			answerBodyError(w, err)
			return
		}
		switch {
		case n >= 0 && name == "failure_status":
			status = n
		case n >= 0:
			limits[name] = float64(n)
		}
	}
	if q.Has("p99_lag") {
		lag, err := strconv.ParseFloat(q.Get("p99_lag"), 64)
		if err != nil {
			answer(w, http.StatusBadRequest, plainText, []byte("Failed to deserialize query string: p99_lag: invalid float literal"))
			return
		}
		limits["p99_lag"] = lag
	}
	if status < 200 || status > 599 {
		status = http.StatusServiceUnavailable
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.faults.health
	if h == nil {
		if a.faults.noLag || a.lastSync.IsZero() || time.Since(a.lastSync) > lagMemory {
			answer(w, int(status), jsonType, []byte(`{"error":"no p99 lag information available"}`))
			return
		}
		h = &Health{Members: 1 + len(a.links), P99Lag: 10 * time.Millisecond}
		for _, g := range a.store.gaps() {
			h.Gaps += int(g.end - g.start + 1)
		}
	}
	got := map[string]float64{"gaps": float64(h.Gaps), "queue_size": float64(h.QueueSize), "max_queue": float64(h.QueueSize), "p99_lag": h.P99Lag.Seconds()}
	over := false
	for name, limit := range limits {
		over = over || got[name] > limit
	}
	if !over {
		status = http.StatusOK
	}
	b := appendFloat(fmt.Appendf(nil, `{"response":{"gaps":%d,"members":%d,"p99_lag":`, h.Gaps, h.Members), h.P99Lag.Seconds())
	answer(w, int(status), jsonType, fmt.Appendf(b, `,"queue_size":%d}}`, h.QueueSize))
}

func (a *Agent) serveMigrations(w http.ResponseWriter, r *http.Request, _ fault) {
	b, ok := body(w, r)
	if !ok {
		return
	}
	statements, err := parseStatements(b)
	if err != nil {
		answerBodyError(w, err)
		return
	}
	var schema strings.Builder
	for _, st := range statements {
		schema.WriteString(strings.TrimSuffix(strings.TrimSpace(st.sql), ";") + ";\n")
	}
	begin := time.Now()
	err = a.Reload(schema.String())
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		answer(w, http.StatusInternalServerError, jsonType, a.execResponse(append(appendString([]byte(`{"error":`), err.Error()), '}'), 0, version{}))
		return
	}
	answer(w, http.StatusOK, jsonType, a.execResponse(nil, time.Since(begin), version{}))
}

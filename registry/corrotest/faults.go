package corrotest

import "time"

// A Route is an endpoint, for faults that hit requests.
type Route string

// The routes of the API. Any stands for all of them.
const (
	Any           Route = ""
	Transactions  Route = "/v1/transactions"
	Queries       Route = "/v1/queries"
	Subscriptions Route = "/v1/subscriptions" // both POST, and GET of an ID
	Updates       Route = "/v1/updates"
	TableStats    Route = "/v1/table_stats"
	HealthRoute   Route = "/v1/health"
)

type faultKind int

const (
	answerInstead faultKind = iota + 1
	neverAnswer
	hangAfterHeaders
	endBeforeEOQ
	loseResponse
)

// A fault waits for one request.
type fault struct {
	route  Route
	kind   faultKind
	status int
	body   string
	rows   int
}

// faults are what was ordered; guarded by the agent's mutex.
type faults struct {
	waiting   []fault
	hold      chan struct{} // transactions wait until it is closed; nil: they do not
	held      int           // transactions that wait
	firstRows int           // rows that the next first subscriber gets
	lose      bool          // whether there is such a limit
	health    *Health
	noLag     bool
}

func (a *Agent) order(n int, f fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range n {
		a.faults.waiting = append(a.faults.waiting, f)
	}
}

// strike takes the fault that hits a request to route; none has no kind.
func (a *Agent) strike(route Route) fault {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, f := range a.faults.waiting {
		if f.route == Any || f.route == route {
			a.faults.waiting = append(a.faults.waiting[:i:i], a.faults.waiting[i+1:]...)
			return f
		}
	}
	return fault{}
}

// Shed refuses the next n requests to route as an agent with too many does.
func (a *Agent) Shed(route Route, n int) {
	a.Answer(route, n, 503, "max concurrency limit reached")
}

// Answer answers the next n requests to route with that, whatever they ask: an
// error that the agent can give, or garbage that it cannot.
func (a *Agent) Answer(route Route, n, status int, body string) {
	a.order(n, fault{route: route, kind: answerInstead, status: status, body: body})
}

// NeverAnswer lets the next n requests to route wait until their client gives up.
func (a *Agent) NeverAnswer(route Route, n int) {
	a.order(n, fault{route: route, kind: neverAnswer})
}

// HangAfterHeaders answers the next n requests to route with 200 and headers,
// and then with nothing until their client gives up. It is what a second
// subscriber gets whose first one's query failed.
func (a *Agent) HangAfterHeaders(route Route, n int) {
	a.order(n, fault{route: route, kind: hangAfterHeaders})
}

// EndBeforeEOQ ends the next n bodies of route, Queries or Subscriptions,
// cleanly after that many rows.
func (a *Agent) EndBeforeEOQ(route Route, n, rows int) {
	a.order(n, fault{route: route, kind: endBeforeEOQ, rows: rows})
}

// LoseResponse lets the next n transactions commit, and breaks their
// connections instead of answering.
func (a *Agent) LoseResponse(n int) {
	a.order(n, fault{route: Transactions, kind: loseResponse})
}

// HoldCommits lets transactions wait for the returned function. They commit
// then, even if their client has gone.
func (a *Agent) HoldCommits() (release func()) {
	hold := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults.hold = hold
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.faults.hold == hold {
			a.faults.hold = nil
			close(hold)
		}
	}
}

// Held returns how many transactions wait for their commits to be released.
func (a *Agent) Held() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.faults.held
}

// LoseRowsOfFirst lets the next subscription that is new end cleanly after that
// many rows, without end of query: its first subscriber was too slow. The
// subscription lives, and the second attempt succeeds.
func (a *Agent) LoseRowsOfFirst(rows int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults.firstRows, a.faults.lose = rows, true
}

// SetToken makes the agent want another token.
func (a *Agent) SetToken(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cfg.Token = token
}

// Health is what /v1/health says of an agent.
type Health struct {
	Gaps, Members, QueueSize int
	P99Lag                   time.Duration
}

// SetHealth makes /v1/health say h, whatever is true.
func (a *Agent) SetHealth(h Health) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults.health, a.faults.noLag = &h, false
}

// SetNoLag makes /v1/health answer 503 "no p99 lag information available", as
// that of an agent does which no change of another has reached for a while.
func (a *Agent) SetNoLag() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults.health, a.faults.noLag = nil, true
}

// streams does something to all open streams.
func (a *Agent) streams(f func(*listener)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.eachListener(f)
}

// CutMidLine breaks the connections of all open streams inside an event.
func (a *Agent) CutMidLine() {
	a.streams(func(l *listener) {
		l.queue, l.abort = append(l.queue, []byte(`{"change":["update",1,["x`)), true
	})
}

// EndMidLine ends the bodies of all open streams cleanly, inside an event.
func (a *Agent) EndMidLine() {
	a.streams(func(l *listener) {
		l.queue, l.end = append(l.queue, []byte(`{"change":["update",1,["x`)), true
	})
}

// EndStreams ends the bodies of all open streams cleanly, without an error: a
// slow subscriber, or a matcher that failed.
func (a *Agent) EndStreams() { a.streams(func(l *listener) { l.end = true }) }

// FailStreams sends an error event on all open streams and ends them.
func (a *Agent) FailStreams(text string) {
	a.streams(func(l *listener) { l.queue, l.end = append(l.queue, errorEvent(text)), true })
}

// SendGarbage sends a line on all open streams that is no event.
func (a *Agent) SendGarbage(line string) {
	a.streams(func(l *listener) { l.queue = append(l.queue, []byte(line+"\n")) })
}

// DuplicateEvent sends the last event on all open streams once more.
func (a *Agent) DuplicateEvent() {
	a.streams(func(l *listener) {
		if l.last != nil {
			l.queue = append(l.queue, l.last)
		}
	})
}

// SkipEvent swallows the next event of all open streams: a change ID is
// missing there, and in the history it is not.
func (a *Agent) SkipEvent() { a.streams(func(l *listener) { l.skip++ }) }

// Stall stops sending on all open streams, without closing them.
func (a *Agent) Stall() { a.streams(func(l *listener) { l.stall = true }) }

// Resume ends Stall.
func (a *Agent) Resume() { a.streams(func(l *listener) { l.stall = false }) }

// PurgeHistory forgets the changes of all subscriptions but for the newest keep.
func (a *Agent) PurgeHistory(keep int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.subs {
		s.purge(keep)
	}
}

// ForgetSubscriptions ends the open subscriptions cleanly and forgets all, so
// that their IDs are not found: a matcher that failed, or nobody listened for
// ten minutes. Kill and Start is how a crash does it.
func (a *Agent) ForgetSubscriptions() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.subs {
		a.remove(s)
	}
}

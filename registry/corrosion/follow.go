package corrosion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Kind is what happened to a row.
type Kind int

// The kinds of a Change. Zero is none.
const (
	Insert Kind = iota + 1
	Update
	Delete
)

func (k Kind) String() string {
	switch k {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// A View is told what a subscription delivers. All its methods are called from
// the goroutine of Follow, and return soon: the agent drops a reader who is
// slow. The slices are used again for the next row, what their cells hold is not.
//
// What arrives is (Begin Row* End Change*)*, broken anywhere by Lost. After that
// comes Begin, and then all rows again, or Resumed, or another Lost.
type View interface {
	// Begin says that a complete result follows. What an unfinished one
	// delivered is void; the last complete one holds until End.
	Begin()

	// Row is a row of the result. Rows may come in any order.
	Row(cells []any)

	// End says that the result since Begin is complete.
	End()

	// Change is a change since End: the whole row as it is now, or, for Delete,
	// as it last was. The agent joins changes that follow within 0.6 s, so that
	// a row that comes and goes is never seen.
	Change(kind Kind, cells []any)

	// Lost says that the stream ended or cannot be had. What was delivered
	// stays and may be old, until End or Resumed. It is called once for each
	// failure, with the latest reason.
	Lost(err error)

	// Resumed says that the stream goes on where it was and nothing was missed;
	// what changed meanwhile follows as Changes.
	Resumed()
}

// Follow subscribes to s and tells v, for ever: after any failure it tries
// again, within 0.1 to 5 s (0.5 s where nothing listens), from where it was if the
// agent still can. It returns
// nil soon after ctx is done, and v hears nothing after that. Its error says that
// s cannot be sent at all.
//
// What s may be is the agent's to say, and it does not say all: aggregates,
// DISTINCT, LIMIT and tables that only a subquery names are accepted, and wrong
// after the first change. List the columns; do not write values that vary into
// the text, for each text costs the agent a database.
//
// A stream has no heartbeat. The kernel finds out within seconds that the other
// end is gone (TCP keep-alive), but not that an agent is stopped, or forgot a
// change, as some versions did. A caller who has to know compares its view with
// a Query now and then, and ends Follow's context and calls it again if they differ.
func (c *Client) Follow(ctx context.Context, s Statement, v View) error {
	body, err := appendStatement(nil, s)
	if err != nil {
		return err
	}
	f := follower{c: c, view: v, body: body}
	text, spaces := s.SQL, 0
	for failures, stuck, refused := 0, 0, false; ; {
		end := f.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if stuck++; !end.stuck {
			stuck = 0
		}
		if stuck == maxStuck {
			stuck, spaces = 0, (spaces+1)%spellings
			s.SQL = text + strings.Repeat(" ", spaces)
			f.body, _ = appendStatement(nil, s) // no error, as without the spaces
		}
		now := errors.Is(end.err, syscall.ECONNREFUSED)
		if end.progress || refused && !now { // an agent that was just started knows no former subscription
			failures = 0
		}
		refused = now
		if end.void {
			f.at = position{}
		}
		wait := backoff(failures, end.err, rand.Float64())
		failures++
		c.log.Debug("subscription lost", "err", end.err, "resumable", f.at.resumable(), "retry", wait)
		v.Lost(end.err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

const (
	minWait = 100 * time.Millisecond
	maxWait = 5 * time.Second

	maxWaitRefused = 500 * time.Millisecond // for a connection that was refused

	// How long a stream that was resumed has to be silent, for the agent to have
	// had time to say that it cannot be.
	settle = 500 * time.Millisecond

	// A subscription can get stuck in an agent (superfly/corrosion #360, #368,
	// #488), and stays so while somebody asks for it. It is known by its text,
	// so after this many tries another text gets another: one more space.
	maxStuck  = 3
	spellings = 4
)

// backoff is the time to wait after so many failures in a row, the last one of
// them err, and another. jitter is from 0 to 1, so that nodes do not return all at
// once. Where nothing listens asking costs nothing, and whoever starts an agent
// waits for its reader.
func backoff(failures int, err error, jitter float64) time.Duration {
	most := maxWait
	if errors.Is(err, syscall.ECONNREFUSED) {
		most = maxWaitRefused
	}
	d := most
	if failures < 10 {
		d = min(d, 2*minWait<<failures)
	}
	return d/2 + time.Duration(jitter*float64(d/2))
}

var (
	// errCut is of an agent that died, or dropped a reader for being slow, or a
	// first reader for being one (superfly/corrosion #183): the next is served.
	errCut    = errors.New("response ended before the end of query")
	errEnded  = errors.New("agent ended the stream")
	errGap    = errors.New("changes are missing")
	errFuture = errors.New("agent is behind what was seen of this subscription")
)

// A position is where a reader is in a subscription.
type position struct {
	id      string // of the subscription; empty: it cannot be resumed
	phase   phase
	columns int   // of each row
	last    int64 // id of the change that is the latest, or is in the result; -1 for queries, which have none
}

type phase int

const (
	attached phase = iota // nothing came yet, and a result is due
	resumed               // nothing came yet, and changes after the last one are due
	inResult
	live // a result is complete
)

// resumable is whether the stream can go on after the last change. From 0 it
// would begin anew in any case.
func (p position) resumable() bool { return p.id != "" && p.phase == live && p.last > 0 }

// take moves p past ev and returns whether ev is news, or its error if ev
// cannot come next.
func (p *position) take(ev event) (news bool, err error) {
	switch ev.typ {
	case eventColumns:
		if p.phase != attached && p.phase != resumed {
			break
		}
		p.phase, p.columns = inResult, ev.columns
		return true, nil
	case eventRow:
		if p.phase != inResult {
			break
		}
		return true, p.width(ev)
	case eventEnd:
		if p.phase != inResult {
			break
		}
		if ev.id < 0 && p.last >= 0 {
			return false, errors.New("end of query without change id")
		}
		p.phase, p.last = live, ev.id
		return true, nil
	case eventChange:
		if p.phase != live && p.phase != resumed {
			break
		}
		if err := p.width(ev); err != nil {
			return false, err
		}
		switch {
		case ev.id > p.last+1:
			return false, fmt.Errorf("%w: %d to %d", errGap, p.last+1, ev.id-1)
		case ev.id <= p.last && p.phase == resumed:
			return false, fmt.Errorf("%w: change %d after %d", errFuture, ev.id, p.last)
		case ev.id <= p.last:
			return false, nil // seen: it came between the result and the stream
		}
		p.phase, p.last = live, ev.id
		return true, nil
	}
	due := [...]string{"columns", "a change or columns", "a row or the end of query", "a change"}[p.phase]
	return false, fmt.Errorf("got %v, want %s", ev.typ, due)
}

func (p *position) width(ev event) error {
	if len(ev.cells) != p.columns {
		return fmt.Errorf("%v of %d cells, want %d as there are columns", ev.typ, len(ev.cells), p.columns)
	}
	return nil
}

// A follower is one call of Follow.
type follower struct {
	c    *Client
	view View
	body []byte
	at   position // between attempts: phase is live, or nothing is known
}

// An ending is how an attempt ended.
type ending struct {
	err      error
	void     bool // the position cannot be used again
	progress bool // it got somewhere: what follows is not a repeated failure
	stuck    bool // the agent seems unable to serve this text
}

// attempt follows one stream to its end.
func (f *follower) attempt(ctx context.Context) ending {
	if f.at.resumable() {
		return f.resume(ctx)
	}
	s, err := f.c.stream(ctx, http.MethodPost, "/v1/subscriptions", f.body)
	if err != nil {
		return ending{err: err, void: true, stuck: isStuck(err)}
	}
	defer s.close()
	f.at = position{id: queryID(s.resp)}
	s.begin()
	return f.read(s, time.Time{})
}

func (f *follower) resume(ctx context.Context) ending {
	path := "/v1/subscriptions/" + f.at.id + "?from=" + strconv.FormatInt(f.at.last, 10)
	s, err := f.c.stream(ctx, http.MethodGet, path, nil)
	if err != nil {
		return ending{err: err, void: !keeps(err)}
	}
	defer s.close()
	f.at.phase = resumed

	// There may be nothing to say for hours, but what there is to say against
	// it comes at once.
	came := make(chan struct{})
	go func() {
		defer close(came)
		s.lines.Peek(1)
	}()
	var since time.Time
	select {
	case <-came:
	case <-time.After(settle):
		since = time.Now()
		f.view.Resumed()
		<-came
	}
	return f.read(s, since)
}

// read tells the view what s delivers, until s ends. since is when the view was
// told that it is up to date, zero if it was not yet.
func (f *follower) read(s *stream, since time.Time) ending {
	result, changed := false, false
	for {
		ev, err := s.next()
		if err != nil {
			return f.ended(s, err, changed, since)
		}
		news, err := f.at.take(ev)
		if err != nil {
			return f.ended(s, &brokenError{s.request, err}, changed, since)
		}
		if !news {
			continue
		}
		switch ev.typ {
		case eventColumns:
			s.begin()
			since, result = time.Time{}, true
			f.view.Begin()
		case eventRow:
			f.view.Row(ev.cells)
		case eventEnd:
			s.end()
			since = time.Now()
			f.view.End()
		case eventChange:
			if since.IsZero() {
				since = time.Now()
				f.view.Resumed()
			}
			changed = !result
			f.view.Change(ev.kind, ev.cells)
		}
	}
}

// ended judges a stream that ended with err. changed is whether it was resumed
// and brought changes.
func (f *follower) ended(s *stream, err error, changed bool, since time.Time) ending {
	end := ending{err: err}
	_, failed := errors.AsType[*Error](err)
	_, broken := errors.AsType[*brokenError](err)
	if f.at.phase == resumed {
		f.at.phase = live // it is as good as before
	}
	switch {
	case failed, broken:
		end.void = true
	case f.at.phase != live: // the result is incomplete
		end.void = true
		end.stuck = f.at.phase == attached && isStuck(err)
		if err == io.EOF {
			end.err = s.error(errCut)
		}
	case err == io.EOF:
		end.err = s.error(errEnded)
	}
	// A 200 is no progress, nor is a result, or an agent that fails after each
	// would be asked for all its rows several times a second.
	end.progress = changed && !end.void || !since.IsZero() && time.Since(since) >= maxWait
	return end
}

// keeps is whether a subscription that could not be resumed for err may be
// resumed later. Any answer but those says that the agent cannot; and one that
// does not answer may be stuck with this subscription.
func keeps(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Is(ErrUnauthorized) || e.Is(ErrBusy)
	}
	return !errors.Is(err, errSilent)
}

func isStuck(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && strings.Contains(e.Message, "missing broadcaster") || errors.Is(err, errSilent)
}

// queryID returns the id of the subscription, empty if it is not a UUID.
func queryID(resp *http.Response) string {
	id := resp.Header.Get("corro-query-id")
	if len(id) != 36 || strings.Trim(id, "0123456789abcdefABCDEF-") != "" {
		return ""
	}
	return id
}

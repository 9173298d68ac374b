package corrosion

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"
)

// An Outcome is what a transaction did.
type Outcome struct {
	// Changed is whether a replicated cell changed, which RowsAffected does not
	// tell: it counts updates to the same value too.
	Changed      bool
	Version      int64    // the agent's own, that the change became; zero if nothing changed
	Actor        [16]byte // the agent's id, which is its site id; zero if it did not say
	RowsAffected []int64  // of each statement, as SQLite counts
}

// Exec runs list in one transaction, which is committed whole or not at all. It
// is never sent twice. If the error is an *Error, or one about a statement that
// cannot be sent, nothing was written. After any other it is not known whether
// the transaction was committed, or will be: write only what does no harm when
// it is written again.
func (c *Client) Exec(ctx context.Context, list ...Statement) (Outcome, error) {
	if len(list) == 0 {
		return Outcome{}, errors.New("transaction without statements: want at least one")
	}
	body := []byte{'['}
	for i, s := range list {
		if i > 0 {
			body = append(body, ',')
		}
		var err error
		if body, err = appendStatement(body, s); err != nil {
			return Outcome{}, err
		}
	}
	k, err := c.call(ctx, http.MethodPost, "/v1/transactions", append(body, ']'))
	if err != nil {
		return Outcome{}, err
	}
	defer k.close()
	reply, err := k.all(maxError + 256*len(list))
	if err != nil {
		return Outcome{}, err
	}
	out, failure, err := parseReply(reply, len(list))
	switch {
	case err != nil:
		return Outcome{}, k.error(fmt.Errorf("reply %q: %w", clip(c.redact(string(reply)), 120), err))
	case failure != "":
		return Outcome{}, k.failed(http.StatusOK, failure)
	}
	return out, nil
}

// parseReply reads the reply to a transaction of n statements, which is an
// outcome or a failure.
func parseReply(reply []byte, n int) (out Outcome, failure string, err error) {
	var v struct {
		Results []struct {
			RowsAffected *int64 `json:"rows_affected"`
			Error        *string
		}
		Version *int64
		ActorID *string `json:"actor_id"`
	}
	if err := json.Unmarshal(reply, &v); err != nil {
		return Outcome{}, "", err
	}
	for _, r := range v.Results {
		if r.Error != nil {
			return Outcome{}, "statement failed: " + *r.Error, nil
		}
	}
	if len(v.Results) != n {
		return Outcome{}, "", fmt.Errorf("%d results for %d statements", len(v.Results), n)
	}
	for i, r := range v.Results {
		if r.RowsAffected == nil || *r.RowsAffected < 0 {
			return Outcome{}, "", fmt.Errorf("result %d: want rows_affected of 0 or more, or an error", i+1)
		}
		out.RowsAffected = append(out.RowsAffected, *r.RowsAffected)
	}
	if v.Version != nil {
		out.Changed, out.Version = true, *v.Version
		if out.Version < 1 {
			return Outcome{}, "", fmt.Errorf("version %d: want 1 or more, or null", out.Version)
		}
	}
	if v.ActorID != nil {
		id, err := hex.DecodeString(strings.ReplaceAll(*v.ActorID, "-", ""))
		if err != nil || len(id) != len(out.Actor) {
			return Outcome{}, "", fmt.Errorf("actor_id %q: want 32 hexadecimal digits", clip(*v.ActorID, 40))
		}
		out.Actor = [16]byte(id)
	}
	return out, "", nil
}

// Query runs one statement that only reads, and calls row for each row of its
// result, in order. The slice is used again for the next row, what its cells
// hold is not. row has to be quick: a reader who is slow holds up others. Its
// error ends the query and is wrapped. Rows before an error are only a part of
// the result; a result that the agent did not finish is always an error.
func (c *Client) Query(ctx context.Context, s Statement, row func(cells []any) error) error {
	body, err := appendStatement(nil, s)
	if err != nil {
		return err
	}
	in, err := c.stream(ctx, http.MethodPost, "/v1/queries", body)
	if err != nil {
		return err
	}
	defer in.close()
	in.begin()
	at := position{last: -1}
	for n := 1; ; n++ {
		ev, err := in.next()
		if err == io.EOF {
			return in.error(errCut)
		}
		if err != nil {
			return err
		}
		if _, err := at.take(ev); err != nil {
			return in.error(err)
		}
		switch ev.typ {
		case eventRow:
			if err := row(ev.cells); err != nil {
				return in.error(fmt.Errorf("row %d: %w", n-1, err)) // event 1 is the columns
			}
		case eventEnd:
			// The end of the body, so that the connection can be used again.
			in.end()
			in.within(time.Second, "end of body")
			in.line()
			return nil
		}
	}
}

// A Health is what an agent says of its replication.
type Health struct {
	// Idle is whether it said nothing, for lack of anything to measure: no change
	// of another agent came within two minutes. The other fields are zero then.
	Idle      bool
	Members   int           // other agents that are alive, up to a minute old
	Gaps      int           // versions that it knows of and does not have
	Lag       time.Duration // p99 of the age of changes at arrival
	QueueSize int64         // changes that wait to be applied
}

const noLag = "no p99 lag information available" // of an agent that is idle

// Health asks how well the agent keeps up. ErrNoHealth is wrapped for one that
// cannot be asked.
func (c *Client) Health(ctx context.Context) (Health, error) {
	k, err := c.call(ctx, http.MethodGet, "/v1/health", nil)
	if e, ok := errors.AsType[*Error](err); ok {
		switch {
		case e.Status == http.StatusNotFound:
			return Health{}, fmt.Errorf("%s: %w", e.Request, ErrNoHealth)
		case e.Message == noLag:
			return Health{Idle: true}, nil
		}
	}
	if err != nil {
		return Health{}, err
	}
	defer k.close()
	reply, err := k.all(maxError)
	if err != nil {
		return Health{}, err
	}
	h, err := parseHealth(reply)
	if err != nil {
		return Health{}, k.error(fmt.Errorf("reply %q: %w", clip(c.redact(string(reply)), 120), err))
	}
	return h, nil
}

func parseHealth(reply []byte) (Health, error) {
	var v struct {
		Response *struct {
			Gaps      *int64
			Members   *int64
			Lag       *float64 `json:"p99_lag"`
			QueueSize *int64   `json:"queue_size"`
		}
	}
	if err := json.Unmarshal(reply, &v); err != nil {
		return Health{}, err
	}
	r := v.Response
	if r == nil {
		return Health{}, errors.New("want a response")
	}
	for _, f := range []struct {
		name  string
		value *int64
	}{{"gaps", r.Gaps}, {"members", r.Members}, {"queue_size", r.QueueSize}} {
		if f.value == nil || *f.value < 0 || f.name != "queue_size" && *f.value > math.MaxInt32 {
			return Health{}, fmt.Errorf("%s: want a number, 0 or more", f.name)
		}
	}
	const most = 1e9 // 31 years, which a Duration holds
	if r.Lag == nil || math.Abs(*r.Lag) > most {
		return Health{}, errors.New("p99_lag: want seconds")
	}
	return Health{
		Gaps:      int(*r.Gaps),
		Members:   int(*r.Members),
		Lag:       time.Duration(max(0, *r.Lag) * float64(time.Second)), // clocks differ
		QueueSize: *r.QueueSize,
	}, nil
}

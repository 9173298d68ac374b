package corrosion

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

const (
	maxError   = 64 << 10 // bytes read of the body of an error
	maxMessage = 500      // bytes kept of it
	maxLine    = 4 << 20  // bytes of one event: a row, in which a BLOB takes up to 4 per byte
	readBuffer = 64 << 10 // what the agent sends at once
)

// errSilent is wrapped when the agent let a deadline of Config pass.
var errSilent = errors.New("agent is silent")

// A call is a request and the response to it, for one goroutine.
type call struct {
	c       *Client
	request string // for errors
	resp    *http.Response
	ctx     context.Context // ends when the caller's does, or with errSilent
	cancel  context.CancelCauseFunc
	timer   *time.Timer // that cancels
}

// call sends a request and returns when the headers of the response are there,
// or its error if that is not 200. A POST is sent once: net/http takes another
// connection only if the first one was dead before a byte of it was written.
func (c *Client) call(ctx context.Context, method, path string, body []byte) (*call, error) {
	k := &call{c: c, request: method + " " + c.base + path}
	k.ctx, k.cancel = context.WithCancelCause(ctx)
	k.within(c.cfg.ReplyTimeout, "response")
	req, err := http.NewRequestWithContext(k.ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		k.close()
		return nil, fmt.Errorf("%s: %w", k.request, err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "jiji-node")
	c.authorize(req.Header)
	if k.resp, err = c.http.Do(req); err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // what it adds is in k.request
		}
		err = k.error(err)
		k.close()
		return nil, err
	}
	if k.resp.StatusCode != http.StatusOK {
		defer k.close()
		// What cannot be read of the text does not change that it failed.
		text, _ := io.ReadAll(io.LimitReader(k.resp.Body, maxError))
		return nil, k.failed(k.resp.StatusCode, message(text))
	}
	return k, nil
}

// within cancels the call unless it is called again, or rest is, within d.
func (k *call) within(d time.Duration, what string) {
	k.rest()
	k.timer = time.AfterFunc(d, func() { k.cancel(fmt.Errorf("no %s within %v: %w", what, d, errSilent)) })
}

func (k *call) rest() {
	if k.timer != nil {
		k.timer.Stop()
	}
}

func (k *call) close() {
	k.rest()
	k.cancel(nil)
	if k.resp != nil {
		k.resp.Body.Close()
	}
}

// error says what was done when err came, and why if it was for a context.
func (k *call) error(err error) error {
	if cause := context.Cause(k.ctx); cause != nil {
		err = cause
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("connection ended inside the response: %w", err)
	}
	return fmt.Errorf("%s: %w", k.request, err)
}

func (k *call) failed(status int, text string) error {
	return &Error{Request: k.request, Status: status, Message: oneLine(k.c.redact(text))}
}

// all returns the body, which is short.
func (k *call) all(limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(k.resp.Body, int64(limit)+1))
	if err != nil {
		return nil, k.error(err)
	}
	if len(b) > limit {
		return nil, k.error(fmt.Errorf("reply of more than %d bytes", limit))
	}
	return b, nil
}

// message returns what the body of an error says. It is {"error": TEXT}, a
// transaction's results, or TEXT as JSON, after "Error: ", or as it is.
func message(body []byte) string {
	var object struct {
		Error   string
		Results []struct{ Error string }
	}
	var text string
	switch {
	case json.Unmarshal(body, &object) == nil && object.Error != "":
		return object.Error
	case len(object.Results) > 0 && object.Results[0].Error != "":
		return object.Results[0].Error
	case json.Unmarshal(body, &text) == nil:
		return strings.TrimPrefix(text, "Error: ")
	}
	return string(body)
}

// oneLine makes text of a stranger fit for a log.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
	return clip(strings.Join(strings.Fields(text), " "), maxMessage)
}

// A stream is a call whose response is events.
type stream struct {
	*call
	parser parser
	lines  *bufio.Reader
	long   []byte // a line that is longer than the buffer
	inside bool   // a result: silence and size are limited
	left   int64  // bytes it may still have
}

func (c *Client) stream(ctx context.Context, method, path string, body []byte) (*stream, error) {
	k, err := c.call(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	k.rest()
	s := &stream{call: k}
	s.lines = bufio.NewReaderSize(s, readBuffer)
	return s, nil
}

// begin limits what follows as one result.
func (s *stream) begin() {
	s.inside, s.left = true, s.c.cfg.MaxResult
	s.within(s.c.cfg.EventTimeout, "event")
}

// end lifts the limits.
func (s *stream) end() {
	s.inside = false
	s.rest()
}

// Read reads the body, for lines.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.resp.Body.Read(b)
	if s.inside {
		if n > 0 {
			s.timer.Reset(s.c.cfg.EventTimeout)
		}
		if s.left -= int64(n); s.left < 0 {
			return 0, s.error(fmt.Errorf("result of more than %d bytes", s.c.cfg.MaxResult))
		}
	}
	if err != nil && err != io.EOF {
		err = s.error(err)
	}
	return n, err
}

// next returns the next event; io.EOF after a body that ended between two.
func (s *stream) next() (event, error) {
	for {
		line, err := s.line()
		if err != nil {
			return event{}, err
		}
		ev, err := s.parser.parse(line)
		switch {
		case err != nil:
			return event{}, &brokenError{s.request, errors.New(s.c.redact(err.Error()))}
		case ev.typ == eventError:
			return event{}, s.failed(http.StatusOK, ev.message)
		case ev.typ != eventUnknown:
			return ev, nil
		}
	}
}

func (s *stream) line() ([]byte, error) {
	if cap(s.long) > 4*readBuffer {
		s.long = nil // one long row is no reason to keep this for ever
	}
	s.long = s.long[:0]
	for {
		part, err := s.lines.ReadSlice('\n')
		if err == nil && len(s.long) == 0 {
			return part, nil
		}
		if len(s.long)+len(part) > maxLine {
			return nil, &brokenError{s.request, fmt.Errorf("line of more than %d bytes", maxLine)}
		}
		s.long = append(s.long, part...)
		switch {
		case err == nil, err == io.EOF && len(s.long) > 0:
			return s.long, nil
		case err != bufio.ErrBufferFull:
			return nil, err
		}
	}
}

// A brokenError says that a stream is not what an agent sends, or not what
// comes next there: nothing that follows can be used.
type brokenError struct {
	request string
	err     error
}

func (e *brokenError) Error() string { return e.request + ": " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

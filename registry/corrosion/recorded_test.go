package corrosion

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

// An exchange is one that a running agent had.
type exchange struct {
	Note    string
	Request struct{ Method, Path, Body string }
	Status  *int
	Headers map[string]string
	Body    []struct{ Data string }
}

func (e exchange) body() string {
	var b strings.Builder
	for _, piece := range e.Body {
		b.WriteString(piece.Data)
	}
	return b.String()
}

// answer says what the agent said.
func (e exchange) answer(w http.ResponseWriter, r *http.Request) {
	for k, v := range e.Headers {
		if strings.HasPrefix(k, "content-type") || strings.HasPrefix(k, "corro-") {
			w.Header().Set(k, v)
		}
	}
	w.WriteHeader(*e.Status)
	for _, piece := range e.Body {
		w.Write([]byte(piece.Data))
		w.(http.Flusher).Flush()
	}
}

// The client understands what agents of both families said.
func TestRecorded(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.json")
	if err != nil || len(files) != 9 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ Exchanges []exchange }
		if err := json.Unmarshal(b, &v); err != nil || len(v.Exchanges) == 0 {
			t.Fatalf("%s: %d exchanges, %v", file, len(v.Exchanges), err)
		}
		for i, e := range v.Exchanges {
			path, query, _ := strings.Cut(e.Request.Path, "?")
			if e.Status == nil {
				continue
			}
			t.Run(filepath.Base(filepath.Dir(file))+" "+filepath.Base(file)+" "+strconv.Itoa(i), func(t *testing.T) {
				t.Log(e.Note)
				synctest.Test(t, func(t *testing.T) {
					switch {
					case path == "/v1/transactions":
						replayExec(t, e)
					case path == "/v1/queries":
						replayQuery(t, e)
					case path == "/v1/health":
						replayHealth(t, e)
					case strings.HasPrefix(path, "/v1/subscriptions"):
						replayStream(t, e, query)
					default:
						t.Skip("not a route of this client")
					}
				})
			})
		}
	}
}

func replayExec(t *testing.T, e exchange) {
	var list []json.RawMessage
	json.Unmarshal([]byte(e.Request.Body), &list) // some are no list on purpose
	statements := make([]Statement, max(1, len(list)))
	c, _ := play(t, Config{}, e.answer)
	out, err := c.Exec(t.Context(), statements...)
	if *e.Status != http.StatusOK {
		wantError(t, e, err)
		return
	}
	var want struct{ Version *int64 }
	json.Unmarshal([]byte(e.body()), &want)
	switch {
	case err != nil:
		t.Error(err)
	case len(out.RowsAffected) != len(statements), out.Changed != (want.Version != nil), out.Actor == [16]byte{}:
		t.Errorf("%+v of %s", out, e.body())
	case out.Changed && out.Version != *want.Version:
		t.Errorf("version %d, want %d", out.Version, *want.Version)
	}
}

func replayQuery(t *testing.T, e exchange) {
	c, _ := play(t, Config{}, e.answer)
	rows := 0
	err := c.Query(t.Context(), SQL("x"), func(cells []any) error {
		rows++
		return nil
	})
	if want := strings.Count(e.body(), `{"row":`); rows != want {
		t.Errorf("%d rows, want %d", rows, want)
	}
	if strings.Contains(e.body(), `{"eoq":`) {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if *e.Status == http.StatusOK && !strings.Contains(e.body(), `{"error":`) { // the recorder left
		if !errors.Is(err, errCut) {
			t.Errorf("error %v, want %v", err, errCut)
		}
		return
	}
	wantError(t, e, err)
}

func replayHealth(t *testing.T, e exchange) {
	c, _ := play(t, Config{}, e.answer)
	h, err := c.Health(t.Context())
	switch {
	case *e.Status == 404:
		if !errors.Is(err, ErrNoHealth) {
			t.Errorf("error %v, want ErrNoHealth", err)
		}
	case strings.Contains(e.body(), noLag):
		if err != nil || !h.Idle {
			t.Errorf("%+v, %v, want idle", h, err)
		}
	default:
		wantError(t, e, err)
	}
}

func replayStream(t *testing.T, e exchange, query string) {
	c, _ := play(t, Config{}, e.answer)
	s, err := c.stream(t.Context(), e.Request.Method, "/v1/subscriptions", nil)
	if *e.Status != http.StatusOK {
		wantError(t, e, err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if id := queryID(s.resp); id == "" || id != e.Headers["corro-query-id"] {
		t.Errorf("id %q, want %q", id, e.Headers["corro-query-id"])
	}
	at := position{}
	values, _ := url.ParseQuery(query)
	if from, _ := strconv.ParseInt(values.Get("from"), 10, 64); from > 0 {
		at = position{phase: resumed, last: from, columns: width(e)}
	}
	events := 0
	for ; ; events++ {
		ev, err := s.next()
		if err != nil {
			break
		}
		news, err := at.take(ev)
		if at.last == 1000 { // asked for from the future
			if !errors.Is(err, errFuture) {
				t.Errorf("error %v, want %v", err, errFuture)
			}
		} else if err != nil || !news {
			t.Errorf("event %d, %v: %v, %v", events+1, ev.typ, news, err)
		}
	}
	if want := strings.Count(e.body(), "\n"); events != want {
		t.Errorf("%d events, want %d", events, want)
	}
}

// width is how many cells the changes of e have.
func width(e exchange) int {
	line, _, _ := strings.Cut(e.body(), "\n")
	var v struct{ Change []any }
	if json.Unmarshal([]byte(line), &v) != nil {
		return 0
	}
	return len(v.Change[2].([]any))
}

func wantError(t *testing.T, e exchange, err error) {
	t.Helper()
	said, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("error %v, want what the agent said: %s", err, e.body())
	}
	if said.Status != *e.Status || (said.Message == "") != (e.body() == "") || strings.ContainsAny(said.Message, `{}`) && !strings.Contains(said.Message, "json") {
		t.Errorf("status %d, message %q of %d, %s", said.Status, said.Message, *e.Status, e.body())
	}
	if strings.Contains(e.body(), "no such table") != errors.Is(err, ErrNoTable) && !strings.Contains(e.body(), "not found in schema") {
		t.Errorf("%v: ErrNoTable %v", err, errors.Is(err, ErrNoTable))
	}
	if (*e.Status == 401) != errors.Is(err, ErrUnauthorized) {
		t.Errorf("%v: ErrUnauthorized %v", err, errors.Is(err, ErrUnauthorized))
	}
}

package cluster

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Whoever answers in the agent's place may send rows of any width: none is
// believed, and none ends the process.
func TestRowsOfAnotherWidth(t *testing.T) {
	asked := make(chan string, 1000)
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case asked <- r.URL.Path:
		default:
		}
		if r.URL.Path == "/v1/transactions" {
			io.WriteString(w, `{"results":[],"time":0,"version":1,"actor_id":"00"}`)
			return
		}
		io.WriteString(w, `{"columns":["a"]}`+"\n"+`{"row":[1,["x"]]}`+"\n"+`{"eoq":{"time":1e-8,"change_id":0}}`+"\n"+`{"change":["update",1,["y"],1]}`+"\n")
		if r.URL.Path == "/v1/subscriptions" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	t.Cleanup(agent.Close)
	s := open(t, agent.URL)
	s.cfg.Peers = func(context.Context) []Versions { return []Versions{{{1}: 1}} }
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.Heard([16]byte{2}, 5)
	queries := 0
	for late := time.After(20 * time.Second); queries < 8; {
		select {
		case path := <-asked:
			if path == "/v1/queries" {
				queries++
			}
		case <-late:
			t.Fatalf("%d queries, want more", queries)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	agent.CloseClientConnections()
	if s.Snapshot().Len() != 0 || len(s.Servers().List) != 0 {
		t.Errorf("rows of a stranger are believed: %+v, %+v", s.Snapshot(), s.Servers())
	}
}

// Package statuspage says over HTTP how a node is: a page for people, metrics for
// Prometheus, and whether the node lives and is ready. It only reads.
package statuspage

import (
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/dnsserver/arrival"
	"github.com/acidtib/jiji-node/node/control"
)

const (
	maxConns = 16          // at a time; more wait
	retry    = time.Second // between two attempts to listen
	quiet    = 10 * time.Second
)

// A Source is what the page shows. Its functions may be called at any time, by many
// goroutines.
type Source struct {
	Status  func() control.Status
	Names   func() dnsserver.Stats
	Answers func() []dnsserver.Answers

	// Answer reports whether to answer what arrives on an interface; nil: on any.
	Answer func(ifindex int) bool
}

// Serve answers on addr until ctx is done. While it cannot, be it that the address is
// not there yet or that somebody else has the port, it tries again every second;
// report is told why, and nil once it listens.
func Serve(ctx context.Context, addr netip.AddrPort, s Source, report func(error), log *slog.Logger) {
	lc := net.ListenConfig{Control: arrival.Want}
	for {
		l, err := lc.Listen(ctx, "tcp", addr.String())
		if err == nil {
			report(nil)
			err = serve(ctx, l, s, log)
		}
		if ctx.Err() != nil {
			return
		}
		report(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
	}
}

// serve answers on l, which it closes, until ctx is done or l fails.
func serve(ctx context.Context, l net.Listener, s Source, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           handler(s, log),
		ReadHeaderTimeout: quiet,
		ReadTimeout:       quiet,
		WriteTimeout:      quiet,
		IdleTimeout:       quiet, // a connection that waits takes the place of another one
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if s.Answer != nil {
		l = inside{l, s.Answer}
	}
	defer srv.Close()
	return srv.Serve(netutil.LimitListener(l, maxConns))
}

// inside is a listener for connections that arrive on an interface that is answered.
// Whoever routes a packet for an address of the mesh to one of the machine's other
// interfaces has it delivered, too.
type inside struct {
	net.Listener
	answer func(ifindex int) bool
}

func (l inside) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t := c.(*net.TCPConn)
		if ifindex, ok := arrival.Of(t, t.LocalAddr().(*net.TCPAddr).IP.To4() == nil); ok && l.answer(ifindex) {
			return c, nil
		}
		c.Close()
	}
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"ago":  func(t time.Time) string { return max(time.Since(t), 0).Round(time.Second).String() },
	"ms":   func(d control.Duration) string { return fmt.Sprintf("%.2f ms", time.Duration(d).Seconds()*1000) },
	"size": humanize.IBytes,
}).Parse(pageText))

func handler(s Source, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		_ = page.Execute(w, s.Status()) // fails only when the client went away
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "alive") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if st := s.Status(); !ready(st) {
			say(w, http.StatusServiceUnavailable, "not ready: "+st.State)
			return
		}
		say(w, http.StatusOK, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(newRegistry(s), promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError, // the rest of them is worth more than none
	}))
	return guarded(mux, func() string { return s.Status().Domain })
}

// ready reports whether the node carries traffic and answers the names that it knows.
func ready(st control.Status) bool { return st.State == "ready" }

func say(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, line+"\n")
}

// guarded refuses what a web page from elsewhere has a browser ask: under a name of
// its own that resolves to the node's address (DNS rebinding). A page cannot do so
// for an address, nor for a name of the mesh.
func guarded(h http.Handler, domain func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if !asked(r.Host, domain) {
			say(w, http.StatusMisdirectedRequest, fmt.Sprintf("host %q: want an IP address, localhost or a name of the mesh", r.Host))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// asked reports whether a Host header names this node.
func asked(host string, domain func() string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	return name == "localhost" || strings.HasSuffix(name, "."+strings.ToLower(domain()))
}

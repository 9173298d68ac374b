package node

import (
	"context"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/node/control"
	"github.com/acidtib/jiji-node/node/usage"
)

// Watch tells of queries of names, as they are answered.
func (n api) Watch(ctx context.Context, r control.WatchRequest, begun func(), saw func(control.SeenQuery) error) error {
	if r.Every < 0 {
		return usage.Errorf("every %d: want at least 1", r.Every)
	}
	if _, ok := dns.IsDomainName(r.Name); r.Name != "" && !ok {
		return usage.Errorf("name %q: want a domain name, such as api.jiji", r.Name)
	}
	w := n.dns.Watch(dnsserver.Filter{Name: r.Name, Client: r.Client, Every: r.Every})
	defer w.Close()
	begun()
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-w.C:
			s := control.SeenQuery{
				At: q.At, Took: control.Duration(q.Took), Client: q.Client, Proto: q.Proto, Name: q.Name, Type: q.Type, Rcode: q.Rcode,
				Source: q.Source.String(), Cached: q.Cached, Stale: q.Stale, Answers: q.Answers, Truncated: q.Truncated, Size: q.Size, Missed: w.Missed(),
			}
			if q.Upstream.IsValid() {
				s.Upstream = &q.Upstream
			}
			if q.Err != nil {
				s.Error = q.Err.Error()
			}
			if err := saw(s); err != nil {
				return err
			}
		}
	}
}

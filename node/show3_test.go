package node

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/acidtib/jiji-node/dnsserver"
	"github.com/acidtib/jiji-node/registry"
)

// A turning is the largest cluster with a few services that have one healthy container
// each, the next one with every version. Versions count the zones since the first.
type turning struct {
	catalog *registry.Catalog
	dir     directory
	view    view
	server  *dnsserver.Server

	begun, done atomic.Int64 // versions that may, and that must be answered by now
}

const (
	turners = 5  // services that turn, one with each version
	seats   = 32 // containers of a service
)

func newTurning(t testing.TB) *turning {
	w := &turning{catalog: fullSnapshot()}
	for k := range turners {
		for i := range seats {
			w.seat(k, i, i == 0)
		}
	}
	w.view = view{topo: fullMesh(), key: fullMesh().Servers[0].Key, down: nobody}
	var err error
	w.server, err = dnsserver.Listen(dnsserver.Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Apex: "jiji", Reverse: reverse(w.view.topo)})
	if err != nil {
		t.Fatal(err)
	}
	w.publish(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// number is which container of the cluster has seat i of turner k.
func number(k, i int) int { return k*400*seats + i }

func (w *turning) seat(k, i int, healthy bool) {
	n := number(k, i)
	c := registry.Container{
		ID: fmt.Sprintf("%064x", n), Service: fmt.Sprintf("service%d", n/seats), Project: fmt.Sprintf("project%d", n%16), Instance: fmt.Sprintf("i%d", n%40),
		Name: fmt.Sprintf("c%d", n), ServerID: fmt.Sprintf("web%d", n/253), IP: address(n), Health: registry.Unhealthy,
	}
	if healthy {
		c.Health = registry.Healthy
	}
	w.catalog.SetLocal(c)
}

func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 210, byte(n / 253), byte(2 + n%253)})
}

// seatAt is the one that is healthy of turner k in a version.
func seatAt(k int, version int64) int {
	if turns := (version + turners - int64(k) - 1) / turners; turns > 0 {
		return int(turns % seats)
	}
	return 0
}

// turn makes the next version.
func (w *turning) turn(t testing.TB) {
	version := w.begun.Add(1)
	k := int((version - 1) % turners)
	w.seat(k, seatAt(k, version-1), false)
	w.seat(k, seatAt(k, version), true)
	w.publish(t)
	w.done.Store(version)
}

func (w *turning) publish(t testing.TB) {
	w.view.catalog = w.catalog.Snapshot()
	if changed, err := w.dir.update(w.view); err != nil || !changed {
		t.Error("no new zone", err)
		return
	}
	w.server.SetZone(w.dir.zone)
}

// turnUntil makes a thousand versions a second until stop is closed, and catches up
// when the processors are busy.
func (w *turning) turnUntil(t testing.TB, stop <-chan struct{}) {
	for due := time.Now(); ; due = due.Add(time.Millisecond) {
		select {
		case <-stop:
			return
		case <-time.After(time.Until(due)):
			w.turn(t)
		}
	}
}

// check asks for turner k, and returns what is wrong with the answer: it has to be
// that of one version between question and answer.
func (w *turning) check(c *dns.Conn, q *dns.Msg, k int) error {
	q.Id = dns.Id()
	q.Question[0].Name = fmt.Sprintf("service%d.jiji.", number(k, 0)/seats)
	oldest := w.done.Load()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if err := c.WriteMsg(q); err != nil {
		return err
	}
	m, err := c.ReadMsg()
	if err != nil {
		return err
	}
	newest := w.begun.Load()
	if m.Id != q.Id || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		return fmt.Errorf("want one address: %v", m)
	}
	got, _ := netip.AddrFromSlice(m.Answer[0].(*dns.A).A.To4())
	for version := oldest; version <= newest; version++ {
		if got == address(number(k, seatAt(k, version))) {
			return nil
		}
	}
	return fmt.Errorf("%v is %v, which none of the versions %d to %d has", q.Question[0].Name, got, oldest, newest)
}

func (w *turning) dial(t testing.TB, network string) *dns.Conn {
	c, err := net.Dial(network, w.server.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &dns.Conn{Conn: c}
}

// TestDNSShow3ChangesUnderLoad: while the zone of the largest cluster changes a thousand
// times a second, and as many questions come as are answered, no answer is wrong, empty
// or of two versions.
func TestDNSShow3ChangesUnderLoad(t *testing.T) {
	const versions = 2000
	w := newTurning(t)
	stop := make(chan struct{})
	var asked [5]int
	var clients sync.WaitGroup
	for i := range asked {
		c := w.dial(t, []string{"udp", "udp", "udp", "udp", "tcp"}[i])
		clients.Go(func() {
			q := new(dns.Msg).SetQuestion("x.", dns.TypeA)
			for k := i; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.check(c, q, k%turners); err != nil {
					t.Error(err)
					return
				}
				asked[i]++
			}
		})
	}
	begun := time.Now()
	turner := make(chan struct{})
	go func() {
		defer close(turner)
		w.turnUntil(t, stop)
	}()
	for w.done.Load() < versions && !t.Failed() && time.Since(begun) < time.Minute {
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(begun)
	close(stop)
	<-turner
	clients.Wait()
	if n := w.done.Load(); n < versions {
		t.Errorf("%d versions in %v", n, took)
	}
	t.Logf("%.0f versions a second, %v questions by UDP and TCP, %.0f a second", versions/took.Seconds(), asked, float64(sum(asked[:]))/took.Seconds())
}

func sum(list []int) (n int) {
	for _, v := range list {
		n += v
	}
	return n
}

// BenchmarkDNSShow3 tells the p99 of answers at 10,000 a second in the largest cluster,
// while nothing changes and while a thousand containers a second do.
func BenchmarkDNSShow3(b *testing.B) {
	w := newTurning(b)
	for _, changes := range []bool{false, true} {
		b.Run(strings.Replace(fmt.Sprintf("changes=%v", changes), "true", "1000", 1), func(b *testing.B) {
			stop := make(chan struct{})
			var turner sync.WaitGroup
			if changes {
				turner.Go(func() { w.turnUntil(b, stop) })
			}
			c, q := w.dial(b, "udp"), new(dns.Msg).SetQuestion("x.", dns.TypeA)
			var micros []float64
			next := time.Now()
			for i := 0; b.Loop(); i++ {
				next = next.Add(100 * time.Microsecond)
				for time.Now().Before(next) {
				}
				begun := time.Now()
				if err := w.check(c, q, i%turners); err != nil {
					b.Fatal(err)
				}
				micros = append(micros, float64(time.Since(begun))/1e3)
			}
			close(stop)
			turner.Wait()
			slices.Sort(micros)
			b.ReportMetric(micros[len(micros)/2], "p50-us")
			b.ReportMetric(micros[len(micros)*99/100], "p99-us")
		})
	}
}

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// arrivals runs a direction in virtual time: it sends n datagrams, one each step, and
// returns the numbers of those that arrived and when, since the first was sent.
func arrivals(d *Direction, n int, step time.Duration, at func(i int)) (numbers []int, when []time.Duration) {
	start := time.Now()
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		d.run(stop)
		close(stopped)
	}()
	for i := range n {
		if at != nil {
			at(i)
		}
		d.take(time.Now(), binary.BigEndian.AppendUint32(nil, uint32(i)), func(b []byte) {
			numbers = append(numbers, int(binary.BigEndian.Uint32(b)))
			when = append(when, time.Since(start))
		})
		time.Sleep(step)
	}
	time.Sleep(time.Minute)
	close(stop)
	<-stopped
	return numbers, when
}

func TestDirectionPassesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		numbers, when := arrivals(d, 100, time.Millisecond, nil)
		for i := range 100 {
			if i >= len(numbers) || numbers[i] != i || when[i] != time.Duration(i)*time.Millisecond {
				t.Fatalf("arrived: %v at %v, want all in order and at once", numbers, when)
			}
		}
		if c := d.Counts(); c != (Counts{In: 100, Out: 100}) {
			t.Errorf("counted %+v", c)
		}
	})
}

func TestDirectionDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		d.Set(Faults{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond})
		numbers, when := arrivals(d, 1000, time.Millisecond, nil)
		if len(numbers) != 1000 || !slices.IsSorted(numbers) {
			t.Fatalf("%d arrived, want 1000 in order", len(numbers))
		}
		least, most := time.Hour, time.Duration(0)
		for i, w := range when {
			delay := w - time.Duration(i)*time.Millisecond
			least, most = min(least, delay), max(most, delay)
		}
		if least < 20*time.Millisecond || most >= 30*time.Millisecond || most-least < 5*time.Millisecond {
			t.Errorf("delays from %v to %v, want them spread over 20ms to 30ms", least, most)
		}
	})
}

func TestDirectionLosesAndDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		d.Set(Faults{Loss: 0.2, Duplicate: 0.1})
		numbers, _ := arrivals(d, 10_000, time.Millisecond, nil)
		c := d.Counts()
		if c.In != 10_000 || c.Lost < 1800 || c.Lost > 2200 {
			t.Errorf("lost %d of %d, want about 2000", c.Lost, c.In)
		}
		if copies := c.Out - (c.In - c.Lost); copies < 700 || copies > 900 {
			t.Errorf("duplicated %d, want about 800", copies)
		}
		if int(c.Out) != len(numbers) {
			t.Errorf("counted %d, %d arrived", c.Out, len(numbers))
		}

		again := newDirection(1)
		again.Set(Faults{Loss: 0.2, Duplicate: 0.1})
		if same, _ := arrivals(again, 10_000, time.Millisecond, nil); !slices.Equal(same, numbers) {
			t.Error("the same seed lost other datagrams")
		}
		other := newDirection(2)
		other.Set(Faults{Loss: 0.2, Duplicate: 0.1})
		if same, _ := arrivals(other, 10_000, time.Millisecond, nil); slices.Equal(same, numbers) {
			t.Error("another seed lost the same datagrams")
		}
	})
}

func TestDirectionReorders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		d.Set(Faults{Reorder: 0.1, Delay: 5 * time.Millisecond})
		numbers, _ := arrivals(d, 1000, time.Millisecond, nil)
		if len(numbers) != 1000 {
			t.Fatalf("%d arrived, want 1000", len(numbers))
		}
		late, highest := 0, 0
		for _, n := range numbers {
			if n < highest {
				late++
			}
			highest = max(highest, n)
		}
		if late < 70 || late > 130 {
			t.Errorf("%d of 1000 were overtaken, want about 100", late)
		}
	})
}

func TestDirectionDropsWhatIsTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		d.Set(Faults{MaxSize: 3})
		if numbers, _ := arrivals(d, 2, 0, nil); len(numbers) != 0 {
			t.Errorf("datagrams of 4 bytes arrived through a limit of 3")
		}
		d.Set(Faults{MaxSize: 4})
		if numbers, _ := arrivals(d, 2, 0, nil); len(numbers) != 2 {
			t.Errorf("%d datagrams of 4 bytes arrived through a limit of 4, want 2", len(numbers))
		}
	})
}

func TestBlackHoleSwallowsWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		d.Set(Faults{Delay: 50 * time.Millisecond})
		numbers, _ := arrivals(d, 300, time.Millisecond, func(i int) {
			switch i {
			case 100:
				d.Set(Faults{BlackHole: true})
			case 200:
				d.Set(Faults{Delay: 50 * time.Millisecond})
			}
		})
		for _, n := range numbers {
			if n > 50 && n < 200 { // number 50 is due when the hole opens
				t.Errorf("datagram %d arrived through the black hole", n)
			}
		}
		if len(numbers) < 150 || len(numbers) > 151 {
			t.Errorf("%d arrived, want the first 50 and the last 100", len(numbers))
		}
		if c := d.Counts(); c.In != 300 || c.Out+c.Lost != 300 {
			t.Errorf("counted %+v, want 300 that are out or lost", c)
		}
	})
}

func TestDirectionIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirection(1)
		d.Set(Faults{Delay: time.Second})
		numbers, _ := arrivals(d, queueLimit+100, 0, nil)
		if c := d.Counts(); len(numbers) != queueLimit || c.Overflown != 100 {
			t.Errorf("%d arrived and counted %+v, want %d and 100 overflown", len(numbers), c, queueLimit)
		}
	})
}

func TestFaultsThatMakeNoSense(t *testing.T) {
	for _, f := range []Faults{{Loss: 1.1}, {Loss: -0.1}, {Duplicate: 2}, {Reorder: -1}, {Delay: -1}, {Jitter: -1}, {MaxSize: -1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v was accepted", f)
				}
			}()
			newDirection(1).Set(f)
		}()
	}
}

// loopback returns a forwarder to a socket that the test reads, both on loopback.
func loopback(t *testing.T) (f *forwarder, target *net.UDPConn) {
	t.Helper()
	listen := func() *net.UDPConn {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	target = listen()
	t.Cleanup(func() { target.Close() })
	f = newForwarder(listen(), func() (*net.UDPConn, error) {
		return net.DialUDP("udp", nil, target.LocalAddr().(*net.UDPAddr))
	}, 1)
	t.Cleanup(f.close)
	return f, target
}

func dialForwarder(t *testing.T, f *forwarder) *net.UDPConn {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, f.near.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

func TestForwarderKeepsSourcesApart(t *testing.T) {
	f, target := loopback(t)
	target.SetDeadline(time.Now().Add(10 * time.Second))
	sources := []*net.UDPConn{dialForwarder(t, f), dialForwarder(t, f), dialForwarder(t, f)}
	buf := make([]byte, 100)
	seen := make(map[string]bool)
	for i, conn := range sources {
		question := []byte{byte(i)}
		if _, err := conn.Write(question); err != nil {
			t.Fatal(err)
		}
		n, from, err := target.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], question) {
			t.Fatalf("the target read %v, %v, want %v", buf[:n], err, question)
		}
		if seen[from.String()] {
			t.Errorf("the target sees two sources at %v", from)
		}
		seen[from.String()] = true
		if _, err := target.WriteToUDPAddrPort([]byte{byte(i), 'x'}, from); err != nil {
			t.Fatal(err)
		}
	}
	for i, conn := range sources {
		n, err := conn.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], []byte{byte(i), 'x'}) {
			t.Errorf("source %d read %v, %v, want its answer", i, buf[:n], err)
		}
	}
	if n := f.sources(); n != 3 {
		t.Errorf("%d sources, want 3", n)
	}
}

func TestForwarderSurvivesAnAbsentTarget(t *testing.T) {
	f, target := loopback(t)
	addr := target.LocalAddr().(*net.UDPAddr)
	target.Close()
	conn := dialForwarder(t, f)
	for range 3 { // each comes back as an ICMP error
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	Eventually(t, 10*time.Second, "three datagrams go out", func() error {
		if f.forward.Counts().Out != 3 {
			return errors.New("not yet")
		}
		return nil
	})
	target, err := net.ListenUDP("udp", addr)
	if err != nil {
		t.Skipf("the port is taken by now: %v", err)
	}
	defer target.Close()
	target.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	if _, err := conn.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	n, from, err := target.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "y" {
		t.Fatalf("the target read %q, %v", buf[:n], err)
	}
	target.WriteToUDPAddrPort([]byte("z"), from)
	if n, err = conn.Read(buf); err != nil || string(buf[:n]) != "z" {
		t.Fatalf("the source read %q, %v", buf[:n], err)
	}
}

func TestForwarderForgetsSources(t *testing.T) {
	f, _ := loopback(t)
	now := time.Now()
	first := netip.MustParseAddrPort("127.0.0.1:1")
	for i := range clientLimit + 10 {
		source := netip.AddrPortFrom(first.Addr(), first.Port()+uint16(i))
		if _, err := f.client(source, now.Add(time.Duration(i)*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.sources(); n != clientLimit {
		t.Errorf("%d sources, want at most %d", n, clientLimit)
	}
	if _, err := f.client(first, now.Add(2*clientIdle)); err != nil {
		t.Fatal(err)
	}
	if n := f.sources(); n != 1 {
		t.Errorf("%d sources after a long time, want the latest one", n)
	}
}

//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/acidtib/jiji-node/integration/lab"
)

const (
	warmUp       = 500 * time.Millisecond // of each load, before it is measured
	dialLimit    = 5 * time.Second
	streamBuffer = 256 << 10 // bytes, of each read and write of a TCP stream
	smallPacket  = 100       // bytes of UDP payload
	batch        = 64        // datagrams of each sendmmsg and recvmmsg
	roundTrip    = time.Second
)

// A flow is traffic from one host to another that goes on until it is stopped.
type flow struct {
	received atomic.Int64 // bytes of TCP, or datagrams of UDP
	stopping atomic.Bool
	closers  []io.Closer
	running  sync.WaitGroup

	mu  sync.Mutex
	err error // why a part of it ended by itself; guarded by mu
}

// run runs one end of the flow.
func (f *flow) run(end func() error) {
	f.running.Go(func() {
		if err := end(); err != nil && !f.stopping.Load() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.err = errors.Join(f.err, err)
		}
	})
}

// stop ends the flow and returns what was wrong with it.
func (f *flow) stop() error {
	f.stopping.Store(true)
	for _, c := range f.closers {
		c.Close()
	}
	f.running.Wait()
	return f.err // nobody else is left
}

// A load is what a flow came to in a stretch of time.
type load struct {
	received int64
	took     time.Duration
	cpu      time.Duration // of the daemons, all together
	memory   float64       // MB of the larger daemon: the median of what was seen
}

// measure lets f run for a while, and then measures it for window and stops it.
func (s *stage) measure(f *flow, window time.Duration, daemons []*lab.Process) (l load) {
	defer func() { s.check("traffic", f.stop()) }()
	s.sleep(warmUp)
	cpu, received, start := s.cpuTime(daemons...), f.received.Load(), time.Now()
	var seen []float64
	for time.Since(start) < window {
		s.sleep(min(100*time.Millisecond, max(window-time.Since(start), 0)))
		seen = append(seen, s.largest(daemons...).now)
	}
	l.received, l.took = f.received.Load()-received, time.Since(start)
	l.cpu, l.memory = s.cpuTime(daemons...)-cpu, median(seen)
	if l.received == 0 {
		s.Fatalf("traffic: nothing arrived within %v", l.took)
	}
	return l
}

// streams sends as much as goes over TCP connections between two hosts, to an address
// of the second.
func (s *stage) streams(from, to *lab.Host, addr netip.Addr, connections int) *flow {
	f := &flow{}
	var l *net.TCPListener
	s.check("listen", to.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	}))
	defer l.Close()
	for range connections {
		var out net.Conn
		s.check("connect", from.Do(func() (err error) {
			out, err = net.DialTimeout("tcp", l.Addr().String(), dialLimit)
			return err
		}))
		f.closers = append(f.closers, out)
		l.SetDeadline(time.Now().Add(dialLimit))
		in, err := l.Accept()
		s.check("accept", err)
		f.closers = append(f.closers, in)
		f.run(func() error {
			for buf := make([]byte, streamBuffer); ; {
				if _, err := out.Write(buf); err != nil {
					return err
				}
			}
		})
		f.run(func() error {
			for buf := make([]byte, streamBuffer); ; {
				n, err := in.Read(buf)
				f.received.Add(int64(n))
				if err != nil {
					return err
				}
			}
		})
	}
	return f
}

// datagrams sends small datagrams from one host to an address of another, as fast as
// the kernel takes them, and counts those that arrive.
func (s *stage) datagrams(from, to *lab.Host, addr netip.Addr) *flow {
	out, in := s.socketPair(from, to, addr)
	f := &flow{closers: []io.Closer{out, in}}
	f.run(func() error {
		conn, messages := ipv4.NewPacketConn(out), make([]ipv4.Message, batch)
		payload := make([]byte, smallPacket)
		for i := range messages {
			messages[i].Buffers = [][]byte{payload}
		}
		for {
			if _, err := conn.WriteBatch(messages, 0); err != nil {
				return err
			}
		}
	})
	f.run(func() error {
		conn, messages := ipv4.NewPacketConn(in), make([]ipv4.Message, batch)
		for i := range messages {
			messages[i].Buffers = [][]byte{make([]byte, smallPacket)}
		}
		for {
			n, err := conn.ReadBatch(messages, 0)
			if err != nil {
				return err
			}
			f.received.Add(int64(n))
		}
	})
	return f
}

// socketPair returns a socket of from that is connected to one of to.
func (s *stage) socketPair(from, to *lab.Host, addr netip.Addr) (out, in *net.UDPConn) {
	s.check("listen", to.Do(func() (err error) {
		if in, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))); err != nil {
			return err
		}
		return receiveBuffer(in, 8<<20)
	}))
	s.check("connect", from.Do(func() (err error) {
		out, err = net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	}))
	return out, in
}

// receiveBuffer sets a socket's receive buffer to bytes, whatever the kernel's limit.
func receiveBuffer(c *net.UDPConn, bytes int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
	})
	return errors.Join(err, set)
}

// roundTrips sends a datagram to and fro, one at a time, and returns how long each took,
// in microseconds.
func (s *stage) roundTrips(from, to *lab.Host, addr netip.Addr, window time.Duration) (micros []float64) {
	out, in := s.socketPair(from, to, addr)
	f := &flow{closers: []io.Closer{out, in}}
	defer func() { s.check("echo", f.stop()) }()
	f.run(func() error {
		for buf := make([]byte, smallPacket); ; {
			n, client, err := in.ReadFromUDPAddrPort(buf)
			if err != nil {
				return err
			}
			if _, err := in.WriteToUDPAddrPort(buf[:n], client); err != nil {
				return err
			}
		}
	})
	buf, lost := make([]byte, smallPacket), 0
	for start := time.Now(); time.Since(start) < warmUp+window; {
		s.alive()
		sent := time.Now()
		out.SetReadDeadline(sent.Add(roundTrip))
		_, err := out.Write(buf)
		if err == nil {
			_, err = out.Read(buf)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && lost < 3 {
			lost++
			continue
		}
		s.check(fmt.Sprintf("echo (%d lost before)", lost), err)
		if took := time.Since(sent); time.Since(start) > warmUp {
			micros = append(micros, float64(took)/float64(time.Microsecond))
		}
	}
	return micros
}

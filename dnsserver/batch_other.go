//go:build !linux

package dnsserver

import (
	"net"
	"net/netip"
)

func widen(*net.UDPConn) {}

// A packetBatch is one datagram that is read, and answered. It belongs to one goroutine.
type packetBatch struct {
	conn   *net.UDPConn
	room   [maxQuery + 1]byte
	asked  []byte
	client netip.AddrPort
	answer []byte
}

func newPacketBatch(c *net.UDPConn) (*packetBatch, error) { return &packetBatch{conn: c}, nil }

func (p *packetBatch) receive() (int, error) {
	n, from, err := p.conn.ReadFromUDPAddrPort(p.room[:])
	if err != nil {
		return 0, err
	}
	p.asked, p.client, p.answer = p.room[:n], from, nil
	return 1, nil
}

func (p *packetBatch) query(int) (q []byte, client netip.AddrPort, oob []byte) {
	return p.asked, p.client, nil
}

func (p *packetBatch) reply(_ int, b, _ []byte) { p.answer = b }

func (p *packetBatch) flush() (unsent int) {
	if p.answer == nil {
		return 0
	}
	if _, err := p.conn.WriteToUDPAddrPort(p.answer, p.client); err != nil {
		return 1
	}
	return 0
}

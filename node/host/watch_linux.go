package host

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed whenever interfaces, addresses, routes, rules of routing or
// forwarding change, and when changes may have been missed, at most once per 100 ms, until
// ctx is done. Of routes that is default ones and those that overlap mesh: where
// thousands of others are learned, they change all the time. The error is that watching could not begin; later ones it survives.
func Watch(ctx context.Context, mesh []netip.Prefix, changed func()) error {
	return watch(ctx, subscribe, mesh, changed)
}

func watch(ctx context.Context, subscribe func() (*nl.NetlinkSocket, error), mesh []netip.Prefix, changed func()) error {
	s, err := subscribe()
	if err != nil {
		return fmt.Errorf("watch interfaces and routes: %w", err)
	}
	events := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { Coalesce(ctx, events, changed) })
	for {
		receive(ctx, s, mesh, events)
		// The socket is of no more use: ENOBUFS, that is more events than it holds, or worse.
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
			if s, err = subscribe(); err == nil {
				break
			}
		}
		poke(events)
	}
}

func subscribe() (*nl.NetlinkSocket, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF)
}

// receive pokes events for each message of the kernel that matters, until s fails or
// ctx is done, and closes s.
func receive(ctx context.Context, s *nl.NetlinkSocket, mesh []netip.Prefix, events chan<- struct{}) {
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	for {
		messages, from, err := s.Receive()
		if err != nil {
			return
		}
		if from.Pid == nl.PidKernel && slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { return matters(m, mesh) }) {
			poke(events)
		}
	}
}

// matters reports whether what a message tells of may change what is wanted, or what is
// there of it.
func matters(m syscall.NetlinkMessage, mesh []netip.Prefix) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE || len(m.Data) < unix.SizeofRtMsg {
		return true
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type != unix.RTA_DST {
			continue
		}
		dst, _ := netip.AddrFromSlice(a.Value)
		p := netip.PrefixFrom(dst, int(m.Data[1])) // rtm_dst_len
		return !p.IsValid() || slices.ContainsFunc(mesh, p.Overlaps)
	}
	return true // a default route
}

func poke(events chan<- struct{}) {
	select {
	case events <- struct{}{}:
	default: // one is pending already
	}
}

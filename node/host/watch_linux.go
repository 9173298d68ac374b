package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed whenever interfaces, addresses, routes, forwarding or
// nftables' rules change, and when changes may have been missed, at most once
// per 100 ms, until ctx is done. The error is that watching could not begin;
// later ones it survives.
func Watch(ctx context.Context, changed func()) error {
	return watch(ctx, []subscribe{subscribeRoute, subscribeFirewall}, changed)
}

// A subscribe opens a socket that tells of changes.
type subscribe func() (*nl.NetlinkSocket, error)

func watch(ctx context.Context, all []subscribe, changed func()) error {
	events := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, subscribe := range all {
		s, err := subscribe()
		if err != nil {
			return fmt.Errorf("watch interfaces and routes: %w", err)
		}
		if s != nil {
			wg.Go(func() { follow(ctx, s, subscribe, events) })
		}
	}
	coalesce(ctx, events, changed)
	return nil
}

// follow pokes events for what s tells, and for what another one has to tell
// once s is of no more use: ENOBUFS, that is more events than it holds, or worse.
func follow(ctx context.Context, s *nl.NetlinkSocket, subscribe subscribe, events chan<- struct{}) {
	for {
		receive(ctx, s, events)
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
			var err error
			s, err = subscribe()
			again = err == nil
		}
		poke(events)
	}
}

func subscribeRoute() (*nl.NetlinkSocket, error) {
	return nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
}

// subscribeFirewall returns nil where the kernel has no nftables.
func subscribeFirewall() (*nl.NetlinkSocket, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	return s, err
}

// receive pokes events for each message of the kernel that matters, until s
// fails or ctx is done, and closes s.
func receive(ctx context.Context, s *nl.NetlinkSocket, events chan<- struct{}) {
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	for {
		messages, from, err := s.Receive()
		if err != nil {
			return
		}
		if from.Pid == nl.PidKernel && slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { return matters(m.Header.Type) }) {
			poke(events)
		}
	}
}

// matters reports whether a message of this type is about anything that a node
// keeps in place. Of nftables these are tables, chains and rules: the elements
// of sets come and go many times a second where a program bans addresses.
func matters(messageType uint16) bool {
	if messageType>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return true
	}
	switch messageType & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		return true
	}
	return false
}

func poke(events chan<- struct{}) {
	select {
	case events <- struct{}{}:
	default: // one is pending already
	}
}

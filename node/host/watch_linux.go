package host

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch calls changed whenever interfaces, addresses, routes or forwarding
// change, and when changes may have been missed, at most once per 100 ms, until
// ctx is done. The error is that watching could not begin; later ones it survives.
func Watch(ctx context.Context, changed func()) error {
	return watch(ctx, subscribe, changed)
}

func watch(ctx context.Context, subscribe func() (*nl.NetlinkSocket, error), changed func()) error {
	s, err := subscribe()
	if err != nil {
		return fmt.Errorf("watch interfaces and routes: %w", err)
	}
	events := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { Coalesce(ctx, events, changed) })
	for {
		receive(ctx, s, events)
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
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
}

// receive pokes events for each message of the kernel, until s fails or ctx is
// done, and closes s.
func receive(ctx context.Context, s *nl.NetlinkSocket, events chan<- struct{}) {
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	for {
		_, from, err := s.Receive()
		if err != nil {
			return
		}
		if from.Pid == nl.PidKernel {
			poke(events)
		}
	}
}

func poke(events chan<- struct{}) {
	select {
	case events <- struct{}{}:
	default: // one is pending already
	}
}

package firewall

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls changed when tables of nftables change that Apply cares about, until
// ctx is done: iptables-nft's, too, but not those of legacy iptables, of which the
// kernel says nothing. What Apply itself does is told as well.
func Watch(ctx context.Context, changed func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // more came than there was room for
			changed()
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		case slices.ContainsFunc(messages, matters):
			changed()
		}
	}
}

// matters reports whether a message of nftables is about a chain or a rule that may
// be ours, or be ahead of ours.
func matters(m netlink.Message) bool {
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
	default:
		return false
	}
	if len(m.Data) < 4 {
		return false
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[4:]) // after nfgenmsg
	if err != nil {
		return false
	}
	for attrs.Next() {
		if attrs.Type() == unix.NFTA_TABLE_NAME { // of chains and rules, too
			return slices.Contains([]string{tableName, "raw", "filter", "mangle", "nat", "firewalld"}, attrs.String())
		}
	}
	return false
}

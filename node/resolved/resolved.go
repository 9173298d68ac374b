// Package resolved tells systemd-resolved, over D-Bus, which names of this host's
// programs it is to ask a server on one link for (org.freedesktop.resolve1(5)).
package resolved

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/godbus/dbus/v5"
)

const (
	systemBus = "/run/dbus/system_bus_socket"
	directory = "/run/systemd/resolve" // of its files
	service   = "org.freedesktop.resolve1"
	inet      = 2 // Linux's AF_INET

	patience     = 2 * time.Second        // for the bus and systemd-resolved together
	settle       = 200 * time.Millisecond // after the first of a row of changes: each setting writes its files anew
	pollInterval = 30 * time.Second       // for a directory that appears
)

var (
	ErrAbsent = errors.New("systemd-resolved does not run")
	ErrNoLink = errors.New("systemd-resolved does not know the interface") // not yet, or not any more
)

// A Link is one interface and its name server.
type Link struct {
	Index   int
	Server  netip.AddrPort // IPv4
	Domains []string       // without a final dot; they and what is below them is asked of Server, nothing else is, and they are not searched for single labels
}

// Apply has systemd-resolved use l, and returns the settings that were others
// before; none if all was so. It takes 2 s at most, starts nothing, and the settings
// are gone with the interface. bus is the socket of the system's bus; "": the usual.
// The error is ErrAbsent or ErrNoLink, or that it could not be done.
func Apply(ctx context.Context, bus string, l Link) (changed []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := connect(ctx, bus)
	if err != nil {
		return nil, fail(ctx, "connect to the system bus", err)
	}
	defer conn.Close()
	manager := conn.Object(service, "/org/freedesktop/resolve1")
	var path dbus.ObjectPath
	if err := manager.CallWithContext(ctx, service+".Manager.GetLink", dbus.FlagNoAutoStart, int32(l.Index)).Store(&path); err != nil {
		return nil, fail(ctx, "ask systemd-resolved for the interface", err)
	}
	var have map[string]dbus.Variant
	call := conn.Object(service, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", dbus.FlagNoAutoStart, service+".Link")
	if err := call.Store(&have); err != nil {
		return nil, fail(ctx, "ask systemd-resolved for its settings of the interface", err)
	}
	want := l.settings(have)
	for _, s := range want {
		if same, err := s.is(have[s.property]); err != nil {
			return nil, fmt.Errorf("systemd-resolved's %s: %w", s.property, err)
		} else if !same {
			changed = append(changed, s.property)
		}
	}
	if len(changed) == 0 {
		return nil, nil
	}
	for _, s := range want {
		if err := manager.CallWithContext(ctx, service+".Manager.SetLink"+s.property, dbus.FlagNoAutoStart, int32(l.Index), s.value).Err; err != nil {
			return nil, fail(ctx, "set "+s.property+" of systemd-resolved", err)
		}
	}
	return changed, nil
}

// connect opens a connection that ends with ctx, in all its steps.
func connect(ctx context.Context, bus string) (*dbus.Conn, error) {
	if bus == "" {
		bus = systemBus
	}
	socket, err := new(net.Dialer).DialContext(ctx, "unix", bus)
	if err != nil {
		return nil, err
	}
	end, _ := ctx.Deadline()
	if err := socket.SetDeadline(end); err != nil {
		socket.Close()
		return nil, err
	}
	conn, err := dbus.NewConn(socket, dbus.WithContext(ctx))
	if err != nil {
		socket.Close()
		return nil, err
	}
	if err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// fail is the error of a step in the terms of Apply.
func fail(ctx context.Context, step string, err error) error {
	var refused dbus.Error
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return ErrAbsent
	case errors.As(err, &refused):
		switch strings.TrimPrefix(refused.Name, "org.freedesktop.") {
		case "DBus.Error.ServiceUnknown", "DBus.Error.NameHasNoOwner":
			return ErrAbsent
		case "resolve1.NoSuchLink", "DBus.Error.UnknownObject": // the latter: it went between two calls
			return ErrNoLink
		case "resolve1.LinkBusy":
			return fmt.Errorf("%s: systemd-networkd manages the interface, and keeps others from it: give it a file in /etc/systemd/network with [Match] Name= that interface and [Link] Unmanaged=yes", step)
		}
	case ctx.Err() == context.DeadlineExceeded, os.IsTimeout(err):
		return fmt.Errorf("%s: no answer within %v", step, patience)
	}
	return fmt.Errorf("%s: %w", step, err)
}

// A setting is one of a link: the end of the method that sets it, and the property
// that shows it.
type setting struct {
	property string
	value    any // of the method
}

// Types of D-Bus: a(iay), a(iayqs) and a(sb).
type (
	server struct {
		Family  int32
		Address []byte
	}
	serverEx struct {
		Family  int32
		Address []byte
		Port    uint16 // 0: 53
		Name    string
	}
	domain struct {
		Name      string
		RouteOnly bool
	}
)

// settings are those that l takes of a systemd-resolved that has the properties in
// have: older ones lack some. The server comes last, so that it is never asked for
// names that are none of its own.
func (l Link) settings(have map[string]dbus.Variant) (list []setting) {
	domains := make([]domain, len(l.Domains))
	for i, name := range l.Domains {
		domains[i] = domain{name, true}
	}
	list = []setting{{"DefaultRoute", false}, {"Domains", domains}, {"LLMNR", "no"}, {"MulticastDNS", "no"}, {"DNSOverTLS", "no"}, {"DNSSEC", "no"}}
	list = slices.DeleteFunc(list, func(s setting) bool {
		_, known := have[s.property]
		return !known && s.property != "Domains"
	})
	address := l.Server.Addr().AsSlice()
	if _, known := have["DNSEx"]; known || l.Server.Port() != 53 {
		return append(list, setting{"DNSEx", []serverEx{{inet, address, l.Server.Port(), ""}}})
	}
	return append(list, setting{"DNS", []server{{inet, address}}})
}

// is reports whether a property shows the setting.
func (s setting) is(shown dbus.Variant) (same bool, err error) {
	if shown.Value() == nil {
		return false, errors.New("it has none: it is too old")
	}
	switch want := s.value.(type) {
	case []domain:
		var have []domain
		err = shown.Store(&have)
		return slices.Equal(have, want), err
	case []server:
		var have []server
		err = shown.Store(&have)
		return slices.EqualFunc(have, want, func(a, b server) bool { return a.Family == b.Family && string(a.Address) == string(b.Address) }), err
	case []serverEx:
		var have []serverEx
		err = shown.Store(&have)
		return slices.EqualFunc(have, want, func(a, b serverEx) bool {
			return a.Family == b.Family && string(a.Address) == string(b.Address) && a.Name == b.Name && (a.Port == b.Port || a.Port == 0 && b.Port == 53)
		}), err
	default:
		return shown.Value() == want, nil
	}
}

// Watch calls changed when systemd-resolved has written its files: at its start, and
// when it was told of servers. It returns nil when ctx is done.
func Watch(ctx context.Context, changed func()) error { return watch(ctx, directory, changed) }

func watch(ctx context.Context, dir string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer w.Close()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	var settled <-chan time.Time // nil: nothing has changed
	for {
		_ = w.Add(dir) // it may be absent, or have been made anew
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			if settled == nil {
				settled = time.After(settle)
			}
		case <-w.Errors: // which none of the events that it lost matters to: there are many
		case <-settled:
			settled = nil
			changed()
		case <-poll.C:
		}
	}
}

// Package resolved has systemd-resolved ask the VIF's DNS server for the cluster's
// names, and nobody else's: the machine's own configuration stays as it is.
//
// It speaks to the service by D-Bus (org.freedesktop.resolve1(5)). What it sets
// belongs to the link, so that it vanishes with the interface, and a vif that is
// killed leaves nothing. Names go by their domains: each routing domain's to the
// VIF, all others where they went before. Domains that are a top-level domain of
// the Internet too (a namespace "dev") lose nothing: what the cluster does not know
// is asked of the original servers ([Resolver.Original]).
package resolved

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"berth.dev/services/vif/internal/resolvconf"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	service = "org.freedesktop.resolve1"
	object  = "/org/freedesktop/resolve1"
	manager = service + ".Manager."
)

// Dir is where systemd-resolved keeps its files.
const Dir = "/run/systemd/resolve"

// Its files (systemd-resolved(8)): what /etc/resolv.conf is to be a link to, with
// all search domains, so that they reach every program, and the servers that it
// asks itself.
const (
	stubFile    = "stub-resolv.conf"
	uplinksFile = "resolv.conf"
)

// callWithin bounds each call.
const callWithin = 5 * time.Second

// Resolver is the machine's systemd-resolved.
type Resolver struct {
	conn    *dbus.Conn
	iface   string
	uplinks string

	mu     sync.Mutex
	link   int32      // whose configuration is ours; 0: none
	server netip.Addr // the VIF's, which is listed among the uplinks too
}

// ErrNotUsed says that programs of this machine do not ask systemd-resolved.
var ErrNotUsed = errors.New("this machine's names are not resolved by systemd-resolved")

// Open opens the service, if it runs and is whom the machine's programs ask: if
// the resolv.conf is a link to its own, and not a file of somebody else's that
// merely names it, since that would lack the search domain. dir is where it keeps
// its files, iface the VIF's name.
func Open(resolvConf, dir, iface string) (*Resolver, error) {
	if real, err := filepath.EvalSymlinks(resolvConf); err != nil || real != filepath.Join(dir, stubFile) {
		return nil, ErrNotUsed
	}
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotUsed, err)
	}
	var owned bool
	if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, service).Store(&owned); err != nil || !owned {
		return nil, errors.Join(ErrNotUsed, err, conn.Close())
	}
	return &Resolver{conn: conn, iface: iface, uplinks: filepath.Join(dir, uplinksFile)}, nil
}

// Original are the servers that systemd-resolved asks. It asks whom it finds best
// for a name; here they are asked in turn.
func (r *Resolver) Original() resolvconf.Config {
	data, err := os.ReadFile(r.uplinks)
	if err != nil {
		return resolvconf.Config{}
	}
	c := resolvconf.Parse(data)
	r.mu.Lock()
	defer r.mu.Unlock()
	c.Servers = slices.DeleteFunc(c.Servers, func(a netip.Addr) bool { return a == r.server })
	return c
}

// Sockets are none: it is asked at its address at the VIF.
func (*Resolver) Sockets() ([]net.PacketConn, []net.Listener) { return nil, nil }

// address and domain are as the service takes them: (iay) and (sb).
type address struct {
	Family  int32
	Address []byte
}

type domain struct {
	Domain      string
	RoutingOnly bool
}

// Point has server asked for names in the domains: search is also added to the
// names that programs look up, routes are not.
func (r *Resolver) Point(server netip.Addr, search, routes []string) ([]string, error) {
	link, err := net.InterfaceByName(r.iface)
	if err != nil {
		return nil, fmt.Errorf("find the VIF: %w", err)
	}
	r.mu.Lock()
	r.link, r.server = int32(link.Index), server
	r.mu.Unlock()
	family := int32(unix.AF_INET)
	if server.Is6() {
		family = unix.AF_INET6
	}
	var domains []domain
	for _, s := range search {
		domains = append(domains, domain{s, false})
	}
	for _, s := range routes {
		domains = append(domains, domain{s, true})
	}
	for _, c := range []struct {
		method string
		arg    any
	}{
		// Before there is a server: it is not to be asked for anything else meanwhile.
		{"SetLinkDefaultRoute", false},
		{"SetLinkDomains", domains},
		// The cluster's names are signed by nobody, and are told to nobody else.
		{"SetLinkDNSSEC", "no"}, {"SetLinkDNSOverTLS", "no"}, {"SetLinkLLMNR", "no"}, {"SetLinkMulticastDNS", "no"},
		{"SetLinkDNS", []address{{family, server.AsSlice()}}},
	} {
		if err := r.call(c.method, int32(link.Index), c.arg); err != nil && !unknown(err) {
			return nil, fmt.Errorf("have systemd-resolved ask the VIF (%s): %w", c.method, err)
		}
	}
	// What was not found before it was asked for here is found now.
	if err := r.call("FlushCaches"); err != nil {
		return nil, fmt.Errorf("have systemd-resolved forget what it did not find: %w", err)
	}
	return search, nil
}

// unknown: an older service has no such method, and nothing to switch off.
func unknown(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == "org.freedesktop.DBus.Error.UnknownMethod"
}

func (r *Resolver) call(method string, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	return r.conn.Object(service, object).CallWithContext(ctx, manager+method, 0, args...).Err
}

// Restore takes the link's configuration back.
func (r *Resolver) Restore() error {
	r.mu.Lock()
	link := r.link
	r.link, r.server = 0, netip.Addr{}
	r.mu.Unlock()
	if link == 0 {
		return nil
	}
	if err := r.call("RevertLink", link); err != nil {
		return fmt.Errorf("have systemd-resolved forget the VIF: %w", err)
	}
	return r.call("FlushCaches")
}

// Close ends the connection to the service.
func (r *Resolver) Close() { _ = r.conn.Close() }

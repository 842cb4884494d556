package route

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Table is the routes of one interface. They vanish with the interface.
type Table struct {
	name string

	mu    sync.Mutex
	index int
	have  map[netip.Prefix]bool
}

// NewTable is the table of an interface without routes.
func NewTable(name string) (*Table, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return &Table{name: name, index: link.Attrs().Index, have: map[netip.Prefix]bool{}}, nil
}

// Sync makes the routes be those to want, and returns those that stand. What
// is already there is left alone, so that repeating it is harmless. Prefixes of
// a family that the namespace has switched off are left out.
func (t *Table) Sync(want []netip.Prefix) ([]netip.Prefix, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	wanted := map[netip.Prefix]bool{}
	var stand []netip.Prefix
	// First what is new: between the two no address is without its route.
	for _, p := range want {
		wanted[p] = true
		if !t.have[p] {
			err := netlink.RouteAdd(t.route(p))
			if p.Addr().Is6() && familyOff(err) {
				continue
			}
			if errors.Is(err, fs.ErrExist) {
				return nil, fmt.Errorf("route %s into the cluster: the container has another route there", p)
			}
			if err != nil {
				return nil, fmt.Errorf("route %s by %s: %w", p, t.name, err)
			}
			t.have[p] = true
		}
		stand = append(stand, p)
	}
	for p := range t.have {
		if wanted[p] {
			continue
		}
		if err := netlink.RouteDel(t.route(p)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return nil, fmt.Errorf("remove the route %s by %s: %w", p, t.name, err)
		}
		delete(t.have, p)
	}
	return stand, nil
}

func (t *Table) route(p netip.Prefix) *netlink.Route {
	r := &netlink.Route{LinkIndex: t.index, Dst: ipNet(p), Protocol: syscall.RTPROT_STATIC}
	if p.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// familyOff are the errors of a namespace in which IPv6 is disabled.
func familyOff(err error) bool {
	return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) ||
		errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENETUNREACH)
}

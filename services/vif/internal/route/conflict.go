package route

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network is one that the container is attached to.
type Network struct {
	Interface string
	Prefix    netip.Prefix // masked
	// Needed are addresses in it that must stay reachable whatever happens: the
	// container's own and the gateways.
	Needed []netip.Addr
}

// Networks are those of the namespace, loopback and the interface named skip
// left aside.
func Networks(skip string) ([]Network, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []Network
	for _, l := range links {
		name := l.Attrs().Name
		if name == skip || name == "lo" {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			ones, _ := a.Mask.Size()
			ip = ip.Unmap()
			if !ok || ip.IsLinkLocalUnicast() {
				continue
			}
			n := Network{Interface: name, Prefix: netip.PrefixFrom(ip, ones).Masked(), Needed: []netip.Addr{ip}}
			for _, r := range routes {
				if gw, ok := netip.AddrFromSlice(r.Gw); ok && n.Prefix.Contains(gw.Unmap()) && !slices.Contains(n.Needed, gw.Unmap()) {
					n.Needed = append(n.Needed, gw.Unmap())
				}
			}
			out = append(out, n)
		}
	}
	return out, nil
}

// ConflictError says that addresses are the cluster's and another network's at
// once.
type ConflictError struct {
	Subnet  netip.Prefix
	Network Network
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("the cluster's subnet %s overlaps the network %s on %s", e.Subnet, e.Network.Prefix, e.Network.Interface)
}

// Check returns a *ConflictError where a subnet of the cluster cannot be routed
// beside the networks that the container is attached to.
//
// A subnet inside such a network is fine as long as what the container needs of
// the network lies outside of it: the kernel prefers the more specific route.
// (Nodes that are containers themselves are such a case.) One that covers the
// network would have a hole in it: whoever can do without those addresses says
// so by a never-proxy that covers either.
func Check(subnets []netip.Prefix, networks []Network, never []netip.Prefix) error {
	for _, s := range subnets {
		for _, n := range networks {
			if !s.Overlaps(n.Prefix) || covered(s, never) || covered(n.Prefix, never) {
				continue
			}
			if s.Bits() > n.Prefix.Bits() && !slices.ContainsFunc(n.Needed, s.Contains) {
				continue
			}
			return &ConflictError{Subnet: s.Masked(), Network: n}
		}
	}
	return nil
}

// Route is one that leads somewhere else than into the cluster.
type Route struct {
	Interface string
	Prefix    netip.Prefix
}

// Existing are the routes of all tables, as policy routing may choose any; left
// aside are the interface named skip, defaults (halves of everything too, by
// which VPNs stand in for the default), and the networks themselves.
func Existing(skip string, networks []Network) ([]Route, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []Route
	for _, r := range list {
		name := names[r.LinkIndex]
		if r.Dst == nil || r.Type != unix.RTN_UNICAST || name == "" || name == skip || name == "lo" {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		p := netip.PrefixFrom(ip.Unmap(), ones)
		if !ok || ones <= 1 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
			continue
		}
		if !slices.ContainsFunc(networks, func(n Network) bool { return n.Interface == name && n.Prefix == p }) {
			out = append(out, Route{name, p})
		}
	}
	return out, nil
}

// RouteConflictError says that addresses are the cluster's, and are those of a
// route that is there already.
type RouteConflictError struct {
	Subnet netip.Prefix
	Route  Route
}

func (e *RouteConflictError) Error() string {
	return fmt.Sprintf("the cluster's subnet %s overlaps the route %s by %s", e.Subnet, e.Route.Prefix, e.Route.Interface)
}

// CheckRoutes returns a *RouteConflictError where a subnet of the cluster
// overlaps a route. settled are prefixes about which the user has decided.
func CheckRoutes(subnets []netip.Prefix, existing []Route, settled []netip.Prefix) error {
	for _, s := range subnets {
		for _, r := range existing {
			if s.Overlaps(r.Prefix) && !covered(s, settled) && !covered(r.Prefix, settled) {
				return &RouteConflictError{s.Masked(), r}
			}
		}
	}
	return nil
}

func covered(p netip.Prefix, by []netip.Prefix) bool {
	return slices.ContainsFunc(by, func(b netip.Prefix) bool { return b.Bits() <= p.Bits() && b.Overlaps(p) })
}

// Addresses are those of the VIF: Near is the kernel's, Server that of the DNS
// server inside netstack.
type Addresses struct {
	Near, Server   netip.Addr
	Near6, Server6 netip.Addr
}

// Pick chooses addresses of the VIF that are neither the cluster's nor a
// network's: the range for benchmarks (RFC 2544), which no one routes, or
// others where somebody does.
func Pick(taken []netip.Prefix) Addresses {
	a := Addresses{Near6: netip.MustParseAddr("fd57:6272:7468::1"), Server6: netip.MustParseAddr("fd57:6272:7468::2")}
	for _, s := range []string{"198.18.0.0/30", "198.19.255.0/30", "192.0.2.0/30", "100.127.255.0/30", "169.254.181.0/30"} {
		p := netip.MustParsePrefix(s)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			a.Near = p.Addr().Next()
			a.Server = a.Near.Next()
			return a
		}
	}
	// Somebody has routed all of them. Single addresses are more specific.
	a.Near, a.Server = netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	return a
}

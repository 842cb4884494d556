package route

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Up gives the interface its addresses, each alone in its subnet, and brings it
// up. The addresses of a family that the namespace has switched off are left
// out, as Docker does with IPv6 by default; what was set is returned.
func Up(name string, addrs ...netip.Addr) ([]netip.Addr, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	var set []netip.Addr
	for _, a := range addrs {
		ipn := ipNet(netip.PrefixFrom(a, a.BitLen()))
		// An IPv6 address would be tentative for a second: nobody else is there.
		err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipn, Flags: noDAD(a)})
		switch {
		case err == nil, errors.Is(err, fs.ErrExist):
			set = append(set, a)
		case a.Is6() && familyOff(err):
		default:
			return nil, fmt.Errorf("give interface %s the address %s: %w", name, a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up interface %s: %w", name, err)
	}
	for _, a := range set {
		awaitLocal(a)
	}
	return set, nil
}

// localWithin is how long an address may take to become one that packets reach.
const localWithin = 5 * time.Second

// awaitLocal waits until packets to an address come here. The kernel makes the route
// of an IPv6 address later, in a thread of its own: on a busy machine that is after
// the first answers have been lost. Who has none after localWithin does without.
func awaitLocal(a netip.Addr) {
	for end := time.Now().Add(localWithin); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if routes, err := netlink.RouteGet(a.AsSlice()); err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

func noDAD(a netip.Addr) int {
	if a.Is6() {
		return syscall.IFA_F_NODAD
	}
	return 0
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

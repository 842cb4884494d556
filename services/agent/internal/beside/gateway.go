package beside

import (
	"bufio"
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// gateways are the pod's default gateways: with most CNI plugins an address of
// the node, and the one from which its kubelet probes.
func gateways() []netip.Addr {
	var out []netip.Addr
	for file, parse := range map[string]func([]string) (netip.Addr, bool){"/proc/net/route": gateway4, "/proc/net/ipv6_route": gateway6} {
		f, err := os.Open(file)
		if err != nil {
			continue // without IPv6 there is no such file
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			if a, ok := parse(strings.Fields(s.Text())); ok {
				out = append(out, a)
			}
		}
		_ = f.Close()
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// gateway4 reads a line of /proc/net/route: interface, destination, gateway, …,
// mask in the eighth place; addresses in the machine's byte order, which is
// little on all that Kubernetes nodes run on but s390x.
func gateway4(f []string) (netip.Addr, bool) {
	if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
		return netip.Addr{}, false
	}
	b, err := hex.DecodeString(f[2])
	if err != nil || len(b) != 4 {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]})
	return a, !a.IsUnspecified()
}

// gateway6 reads a line of /proc/net/ipv6_route: destination, its length, source,
// its length, next hop, ….
func gateway6(f []string) (netip.Addr, bool) {
	if len(f) < 5 || f[1] != "00" || strings.Trim(f[0], "0") != "" {
		return netip.Addr{}, false
	}
	b, err := hex.DecodeString(f[4])
	if err != nil || len(b) != 16 {
		return netip.Addr{}, false
	}
	a := netip.AddrFrom16([16]byte(b))
	return a, !a.IsUnspecified()
}

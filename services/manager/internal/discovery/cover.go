package discovery

import (
	"net/netip"
	"slices"
)

// cover returns few prefixes that contain all addresses: within each /16 (IPv6:
// /64) the smallest one, widened to /24 (IPv6: /112) since the next pod's
// address will be a neighbour.
func cover(addrs []netip.Addr) []netip.Prefix {
	groups := map[netip.Prefix]netip.Prefix{}
	for _, a := range addrs {
		a = a.Unmap()
		wide, narrow := 16, 24
		if a.Is6() {
			wide, narrow = 64, 112
		}
		g, err := a.Prefix(wide)
		if err != nil {
			continue
		}
		p, ok := groups[g]
		if !ok {
			p, _ = a.Prefix(narrow)
		}
		for !p.Contains(a) {
			p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
		}
		groups[g] = p
	}
	var out []netip.Prefix
	for _, p := range groups {
		out = append(out, p)
	}
	return merge(out)
}

// merge sorts prefixes and drops those that another one contains.
func merge(in []netip.Prefix) []netip.Prefix {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b netip.Prefix) int {
		if c := a.Bits() - b.Bits(); c != 0 {
			return c
		}
		return a.Addr().Compare(b.Addr())
	})
	var out []netip.Prefix
	for _, p := range in {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) }) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

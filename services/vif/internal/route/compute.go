// Package route decides what is routed into the cluster, and keeps the kernel's
// routes so.
//
// The rules are prefixes that are to go through the tunnel and prefixes that
// are not; for each address the most specific one decides, and at the same
// length "not" does. What is left out is cut out of the routes rather than
// routed elsewhere: it goes on by whatever route it had before, also where
// that changes later because the container joins another network.
package route

import "net/netip"

// Rules say what goes through the tunnel.
type Rules struct {
	Include []netip.Prefix
	Exclude []netip.Prefix
}

// Compute returns the smallest set of prefixes that the rules send through the
// tunnel, in ascending order, IPv4 first. Invalid prefixes are ignored.
func Compute(r Rules) []netip.Prefix {
	var out []netip.Prefix
	for _, all := range []netip.Prefix{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0),
		netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	} {
		var rules []rule
		for _, p := range r.Include {
			rules = appendRule(rules, all, p, true)
		}
		for _, p := range r.Exclude {
			rules = appendRule(rules, all, p, false)
		}
		got, whole := cover(all, false, rules)
		if whole {
			// Half each: a default route of our own would clash with the other.
			low, high := halves(all)
			got = []netip.Prefix{low, high}
		}
		out = append(out, got...)
	}
	return out
}

type rule struct {
	prefix  netip.Prefix
	include bool
}

func appendRule(rules []rule, all, p netip.Prefix, include bool) []rule {
	if !p.IsValid() || p.Addr().Is4() != all.Addr().Is4() {
		return rules
	}
	return append(rules, rule{p.Masked(), include})
}

// cover walks down the tree of prefixes from p, under which all rules lie, with
// the decision inherited from above.
func cover(p netip.Prefix, include bool, rules []rule) (out []netip.Prefix, whole bool) {
	var inner []rule
	exact, excluded := false, false
	for _, r := range rules {
		if r.prefix != p {
			inner = append(inner, r)
			continue
		}
		exact, excluded = true, excluded || !r.include
	}
	if exact {
		include = !excluded
	}
	if len(inner) == 0 {
		if include {
			return []netip.Prefix{p}, true
		}
		return nil, false
	}
	low, high := halves(p)
	var lowRules, highRules []rule
	for _, r := range inner {
		if low.Overlaps(r.prefix) {
			lowRules = append(lowRules, r)
		} else {
			highRules = append(highRules, r)
		}
	}
	a, wholeLow := cover(low, include, lowRules)
	b, wholeHigh := cover(high, include, highRules)
	if wholeLow && wholeHigh {
		return []netip.Prefix{p}, true
	}
	return append(a, b...), false
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits() + 1
	low = netip.PrefixFrom(p.Addr(), bits)
	b := p.Addr().AsSlice()
	b[(bits-1)/8] |= 1 << (7 - (bits-1)%8)
	top, _ := netip.AddrFromSlice(b)
	return low, netip.PrefixFrom(top, bits)
}

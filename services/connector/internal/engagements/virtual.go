package engagements

import (
	"bytes"
	"net/netip"

	"berth.dev/bus/event"
	"berth.dev/bus/renumber"
)

// translateEnv puts the addresses by which the cluster is reached here into the values
// of an environment: KUBERNETES_SERVICE_HOST and its like are the cluster's own,
// and those are somebody else's where virtual ones stand for them.
func translateEnv(env [][]byte, virtual []event.VirtualSubnet) [][]byte {
	type pair struct{ cluster, here netip.Prefix }
	var pairs []pair
	for _, v := range virtual {
		c, cerr := netip.ParsePrefix(v.Cluster)
		h, herr := netip.ParsePrefix(v.Here)
		if cerr == nil && herr == nil && c.Bits() == h.Bits() {
			pairs = append(pairs, pair{c, h})
		}
	}
	if len(pairs) == 0 {
		return env
	}
	here := func(a netip.Addr) (netip.Addr, bool) {
		for _, p := range pairs {
			if p.cluster.Contains(a) {
				return renumber.Into(a, p.here), true
			}
		}
		return a, false
	}
	out := make([][]byte, len(env))
	for i, e := range env {
		name, value, _ := bytes.Cut(e, []byte("="))
		out[i] = append(append(bytes.Clone(name), '='), translate(value, here)...)
	}
	return out
}

// translate replaces the addresses in a value: alone, before a port, in a URL or a
// list. Digits and dots that go on, as those of a version do, are no address.
func translate(value []byte, here func(netip.Addr) (netip.Addr, bool)) []byte {
	var out []byte
	for len(value) > 0 {
		n := bytes.IndexFunc(value, func(r rune) bool { return !ofAddress(r) })
		switch {
		case n < 0:
			n = len(value)
		case n == 0:
			out, value = append(out, value[0]), value[1:]
			continue
		}
		word := string(value[:n])
		if a, err := netip.ParseAddr(word); err == nil {
			if h, ok := here(a); ok {
				word = h.String()
			}
		} else if a, err := netip.ParseAddrPort(word); err == nil {
			if h, ok := here(a.Addr()); ok {
				word = netip.AddrPortFrom(h, a.Port()).String()
			}
		}
		out, value = append(out, word...), value[n:]
	}
	return out
}

// ofAddress reports whether an address may go on with r. Letters beyond the
// hexadecimal digits are among them, so that no part of a name is taken for one.
func ofAddress(r rune) bool {
	switch {
	case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == ':', r == '_', r == '-':
		return true
	}
	return false
}

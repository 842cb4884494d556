// Package renumber is how an event.VirtualSubnet is to be read: an address of the
// one subnet is the address of the other with the same last bits.
package renumber

import "net/netip"

// Into puts a's last bits behind the first ones of p.
func Into(a netip.Addr, p netip.Prefix) netip.Addr {
	out, from := p.Addr().AsSlice(), a.AsSlice()
	for i := range out {
		keep := byte(0xff) // bits of a
		if fixed := p.Bits() - 8*i; fixed >= 8 {
			keep = 0
		} else if fixed > 0 {
			keep >>= fixed
		}
		out[i] = out[i]&^keep | from[i]&keep
	}
	b, _ := netip.AddrFromSlice(out)
	return b
}

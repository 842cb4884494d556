package dns

import (
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Virtual translates addresses between the cluster and here, and gives those back
// that are the same in both.
type Virtual interface {
	Here(netip.Addr) netip.Addr
	Cluster(netip.Addr) netip.Addr
}

// asked is the name to ask the cluster for: the reverse of an address that is
// virtual is there that of the cluster's own.
func (z Zones) asked(name string) string {
	a, ok := reverse(strings.TrimSuffix(name, "."))
	if !ok || z.Virtual == nil {
		return name
	}
	c := z.Virtual.Cluster(a)
	if c == a {
		return name
	}
	if arpa, err := dns.ReverseAddr(c.String()); err == nil {
		return arpa
	}
	return name
}

// answered puts the addresses that are valid here into what the cluster answered.
func (z Zones) answered(r *dns.Msg) {
	if z.Virtual == nil {
		return
	}
	here := func(ip net.IP) net.IP {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			return ip
		}
		return z.Virtual.Here(a.Unmap()).AsSlice()
	}
	for _, rrs := range [][]dns.RR{r.Answer, r.Extra} {
		for _, rr := range rrs {
			switch rr := rr.(type) {
			case *dns.A:
				rr.A = here(rr.A)
			case *dns.AAAA:
				rr.AAAA = here(rr.AAAA)
			}
		}
	}
}

// Package virtual gives subnets of the cluster other addresses here, where their
// own are somebody else's: a VPN's, say.
//
// A subnet stands for another one of the same size, whose addresses differ in
// their first bits only, so that nothing has to be remembered of single addresses:
// 10.96.0.10 is 240.96.0.10. IPv4 takes the range 240.0.0.0/4, which nobody routes
// and Linux does; IPv6 takes a part of the unique local addresses.
//
// Only who comes from here knows virtual addresses: the TUN and its routes, and
// what DNS answers. In the tunnel and behind it there are the cluster's own.
//
//	t := virtual.Table{}
//	err := t.Stand(netip.MustParsePrefix("10.96.0.0/16"), taken)
//	t.Here(netip.MustParseAddr("10.96.0.10"))     // 240.96.0.10
//	t.Cluster(netip.MustParseAddr("240.96.0.10")) // 10.96.0.10
//
// A Table may be used concurrently. What stands stays: programs keep addresses.
package virtual

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"berth.dev/bus/renumber"
)

// Pair is a subnet of the cluster and what it is here.
type Pair struct{ Cluster, Here netip.Prefix }

// Table holds the pairs. The zero value has none.
type Table struct {
	mu    sync.RWMutex
	pairs []Pair
}

// Stand lets another subnet stand for one of the cluster's. It is none of taken,
// nor one that stands already. A subnet that has one keeps it.
func (t *Table) Stand(cluster netip.Prefix, taken []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	cluster = cluster.Masked()
	if slices.ContainsFunc(t.pairs, func(p Pair) bool { return covers(p.Cluster, cluster) }) {
		return nil
	}
	free := func(p netip.Prefix) bool {
		return !slices.ContainsFunc(taken, p.Overlaps) && !slices.ContainsFunc(t.pairs, func(o Pair) bool { return p.Overlaps(o.Here) })
	}
	for i := range candidates {
		here, err := candidate(cluster, i)
		if err != nil {
			return err
		}
		if free(here) {
			t.pairs = append(t.pairs, Pair{cluster, here})
			return nil
		}
	}
	return fmt.Errorf("no virtual addresses are left for the cluster's subnet %s", cluster)
}

// candidates are as many as there are first bytes in 240.0.0.0/4, the last of
// which has the broadcast address.
const candidates = 15

// candidate is the i-th subnet that may stand for another.
func candidate(p netip.Prefix, i int) (netip.Prefix, error) {
	least := 8
	a := p.Addr().AsSlice()
	if p.Addr().Is6() {
		least = 48
		copy(a, []byte{0xfd, 0x57, 0x62, 0x72, 0x76, byte(i)})
	} else {
		a[0] = byte(240 + i)
	}
	if p.Bits() < least {
		return p, fmt.Errorf("the subnet %s is too large for virtual addresses to stand for it: /%d at most", p, least)
	}
	here, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(here, p.Bits()), nil
}

// Here is the address by which one of the cluster's is known here: itself, where
// nothing stands for it.
func (t *Table) Here(a netip.Addr) netip.Addr {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.pairs {
		if p.Cluster.Contains(a) {
			return renumber.Into(a, p.Here)
		}
	}
	return a
}

// Cluster undoes Here.
func (t *Table) Cluster(a netip.Addr) netip.Addr {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.pairs {
		if p.Here.Contains(a) {
			return renumber.Into(a, p.Cluster)
		}
	}
	return a
}

// Subnets are those of the cluster as they are here.
func (t *Table) Subnets(cluster []netip.Prefix) []netip.Prefix {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []netip.Prefix
	for _, s := range cluster {
		here := s.Masked()
		for _, p := range t.pairs {
			switch {
			case covers(p.Cluster, s):
				here = netip.PrefixFrom(renumber.Into(here.Addr(), p.Here), s.Bits())
			case covers(s, p.Cluster): // the cluster's subnet has grown since
				out = append(out, p.Here)
			}
		}
		out = append(out, here)
	}
	return out
}

// Pairs are what stands.
func (t *Table) Pairs() []Pair {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Clone(t.pairs)
}

func covers(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Overlaps(q) }

package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Zones are what names mean on this connection.
type Zones struct {
	Domain    string // of the cluster: cluster.local
	Namespace string // connected
	// Namespaces are the others, as far as they are known.
	Namespaces []string
	Subnets    []netip.Prefix // whose addresses the cluster names (PTR)
	Search     []string       // the original search list
	// Short, on a machine, is the one domain in whose search list short names are
	// the cluster's: x.tel2-search is x in the connected namespace. Empty, in a
	// daemon container: the search list is a pod's.
	Short string
	// Virtual knows the addresses of the cluster's that are others here; nil: none.
	Virtual Virtual
}

// search is the search list that makes short names work as in a pod of the namespace.
func (z Zones) search() []string {
	if z.Short != "" {
		return []string{z.Short}
	}
	return []string{z.Namespace + ".svc." + z.Domain, "svc." + z.Domain, z.Domain}
}

// routes are the domains of the cluster's names, for who asks whom by the domain:
// all names but the bare ones.
func (z Zones) routes() []string {
	all := append([]string{z.Domain, "svc", z.Namespace}, z.Namespaces...)
	slices.Sort(all)
	return slices.Compact(all)
}

// Plan says whom to ask for a name.
type Plan struct {
	// Cluster is the name to ask the cluster for; empty: do not.
	Cluster string
	// Upstream: ask the original name servers if the cluster does not know it.
	Upstream bool
	// Loopback: the name is localhost (RFC 6761, 6.3).
	Loopback bool
	// None: the name cannot exist, and nobody is asked.
	None bool
}

// Plan decides on a fully qualified name in lower case, as a client sends it:
// with or without the search list.
//
//	x.shop.svc.cluster.local   the cluster, and nobody else: cluster names never leave
//	x.shop.svc                 likewise; no such top-level domain exists
//	x.shop, x                  the cluster (as x.shop.svc…, x.<namespace>.svc…), then upstream
//	10.0.96.10.in-addr.arpa    the cluster if the address is routed there
//	www.example.com            upstream
//	x.tel2-search, x.shop.tel2-search       the cluster, as x and x.shop; nobody else knows that domain
//	x.shop.svc.cluster.local.corp.example   nobody: a resolver walks the search list
func (z Zones) Plan(name string) Plan {
	n := strings.TrimSuffix(name, ".")
	if n == "localhost" || strings.HasSuffix(n, ".localhost") {
		return Plan{Loopback: true}
	}
	if z.Short != "" && below(n, z.Short) {
		return z.short(strings.TrimSuffix(strings.TrimSuffix(n, z.Short), "."))
	}
	if z.inCluster(n) {
		return Plan{Cluster: n + "."}
	}
	if below(n, "svc") {
		return Plan{Cluster: n + "." + z.Domain + "."}
	}
	if a, ok := reverse(n); ok {
		if slices.ContainsFunc(z.Subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return Plan{Cluster: n + "."}
		}
		return Plan{Upstream: true}
	}
	for _, s := range z.Search {
		s = strings.ToLower(s)
		if rest, ok := strings.CutSuffix(n, "."+s); ok && (z.inCluster(rest) || strings.HasSuffix(rest, ".svc")) {
			return Plan{None: true}
		}
	}
	if n == "" {
		return Plan{Upstream: true}
	}
	switch labels(n) {
	case 1:
		return Plan{Cluster: n + "." + z.Namespace + ".svc." + z.Domain + ".", Upstream: true}
	case 2:
		return Plan{Cluster: n + ".svc." + z.Domain + ".", Upstream: true}
	}
	return Plan{Upstream: true}
}

// short is the plan of a name that was found by the search domain.
func (z Zones) short(n string) Plan {
	switch {
	case n == "":
		return Plan{None: true}
	case labels(n) == 1:
		return Plan{Cluster: n + "." + z.Namespace + ".svc." + z.Domain + "."}
	case labels(n) == 2:
		return Plan{Cluster: n + ".svc." + z.Domain + "."}
	case below(n, "svc"):
		return Plan{Cluster: n + "." + z.Domain + "."}
	}
	return Plan{None: true}
}

func (z Zones) inCluster(n string) bool { return below(n, z.Domain) }

func below(n, domain string) bool { return n == domain || strings.HasSuffix(n, "."+domain) }

// labels counts those of the name proper: _http._tcp before it ask for a
// service's port (RFC 2782).
func labels(n string) int {
	count := 0
	for l := range strings.SplitSeq(n, ".") {
		if count > 0 || !strings.HasPrefix(l, "_") {
			count++
		}
	}
	return count
}

// reverse is the address that a name under in-addr.arpa or ip6.arpa stands for.
func reverse(n string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(n, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		slices.Reverse(parts)
		a, err := netip.ParseAddr(strings.Join(parts, "."))
		return a, err == nil
	}
	rest, ok := strings.CutSuffix(n, ".ip6.arpa")
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 32 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 16, 4)
		if err != nil || len(p) != 1 {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(v) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}

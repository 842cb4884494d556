package dns

import (
	"net/netip"
	"slices"
	"testing"
)

var testZones = Zones{
	Domain: "cluster.local", Namespace: "shop", Search: []string{"corp.example", "lan"},
	Subnets: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/64")},
}

// On a machine, short names are found by one search domain, which is nobody else's.
func TestPlanOfShortNames(t *testing.T) {
	z := testZones
	z.Short = "tel2-search"
	for name, want := range map[string]Plan{
		"backend.tel2-search.":                        {Cluster: "backend.shop.svc.cluster.local."},
		"_http._tcp.backend.tel2-search.":             {Cluster: "_http._tcp.backend.shop.svc.cluster.local."},
		"backend.other.tel2-search.":                  {Cluster: "backend.other.svc.cluster.local."},
		"backend.other.svc.tel2-search.":              {Cluster: "backend.other.svc.cluster.local."},
		"www.example.com.tel2-search.":                {None: true},
		"backend.shop.svc.cluster.local.tel2-search.": {None: true},
		"tel2-search.":                                {None: true},
		"backend.other.":                              {Cluster: "backend.other.svc.cluster.local.", Upstream: true},
		"backend.other.svc.cluster.local.":            {Cluster: "backend.other.svc.cluster.local."},
		"www.example.com.":                            {Upstream: true},
	} {
		if got := z.Plan(name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if s := z.search(); !slices.Equal(s, []string{"tel2-search"}) {
		t.Error(s)
	}
}

func TestPlan(t *testing.T) {
	only := func(n string) Plan { return Plan{Cluster: n} }
	first := func(n string) Plan { return Plan{Cluster: n, Upstream: true} }
	up := Plan{Upstream: true}
	for name, want := range map[string]Plan{
		"backend.":                                    first("backend.shop.svc.cluster.local."),
		"backend.other.":                              first("backend.other.svc.cluster.local."),
		"backend.other.svc.":                          only("backend.other.svc.cluster.local."),
		"pod-0.backend.other.svc.":                    only("pod-0.backend.other.svc.cluster.local."),
		"backend.other.svc.cluster.local.":            only("backend.other.svc.cluster.local."),
		"backend.shop.svc.cluster.local.":             only("backend.shop.svc.cluster.local."),
		"www.example.com.shop.svc.cluster.local.":     only("www.example.com.shop.svc.cluster.local."),
		"cluster.local.":                              only("cluster.local."),
		"notcluster.local.":                           first("notcluster.local.svc.cluster.local."),
		"_http._tcp.backend.":                         first("_http._tcp.backend.shop.svc.cluster.local."),
		"_http._tcp.backend.other.":                   first("_http._tcp.backend.other.svc.cluster.local."),
		"_http._tcp.backend.other.svc.cluster.local.": only("_http._tcp.backend.other.svc.cluster.local."),
		"10.0.96.10.in-addr.arpa.":                    only("10.0.96.10.in-addr.arpa."),
		"10.0.97.10.in-addr.arpa.":                    up,
		"96.10.in-addr.arpa.":                         up,
		"0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa.": only("0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa."),
		"0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.9.0.0.0.0.d.f.ip6.arpa.": up,
		"www.example.com.":   up,
		"example.com.":       first("example.com.svc.cluster.local."),
		".":                  up,
		"localhost.":         {Loopback: true},
		"app.localhost.":     {Loopback: true},
		"host.corp.example.": up,
		"backend.shop.svc.cluster.local.corp.example.": {None: true},
		"backend.shop.svc.lan.":                        {None: true},
		"www.svc.example.com.":                         up,
	} {
		if got := testZones.Plan(name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

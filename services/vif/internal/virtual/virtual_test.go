package virtual

import (
	"net/netip"
	"strings"
	"testing"
)

var p = netip.MustParsePrefix

func TestAddresses(t *testing.T) {
	var table Table
	for _, s := range []string{"10.96.0.0/12", "11.96.0.0/16", "10.244.0.0/20", "fd00:10:96::/112"} {
		if err := table.Stand(p(s), []netip.Prefix{p("240.244.0.0/24")}); err != nil {
			t.Fatal(err)
		}
	}
	for cluster, here := range map[string]string{
		"10.96.0.10":      "240.96.0.10",
		"10.111.255.255":  "240.111.255.255",
		"11.96.3.4":       "241.96.3.4",   // not the addresses of 10.96.3.4
		"10.244.15.1":     "241.244.15.1", // the first choice is taken
		"fd00:10:96::1f":  "fd57:6272:7600:0:0:0:0:1f",
		"10.244.16.1":     "10.244.16.1", // nothing stands for these
		"fd00:10:96:1::1": "fd00:10:96:1::1",
	} {
		c, h := netip.MustParseAddr(cluster), netip.MustParseAddr(here)
		if got := table.Here(c); got != h {
			t.Errorf("%s is %s here, want %s", c, got, h)
		}
		if got := table.Cluster(h); got != c {
			t.Errorf("%s is %s in the cluster, want %s", h, got, c)
		}
	}
	got := table.Subnets([]netip.Prefix{p("10.96.0.0/12"), p("10.96.4.0/24"), p("192.168.0.0/16")})
	for i, want := range []string{"240.96.0.0/12", "240.96.4.0/24", "192.168.0.0/16"} {
		if got[i] != p(want) {
			t.Errorf("subnet %d is %s here, want %s", i, got[i], want)
		}
	}
}

// What stands stays, and a part of it is not stood for twice.
func TestStandTwice(t *testing.T) {
	var table Table
	for range 2 {
		if err := table.Stand(p("10.96.0.0/16"), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Stand(p("10.96.1.0/24"), nil); err != nil {
		t.Fatal(err)
	}
	if got := table.Pairs(); len(got) != 1 || got[0].Here != p("240.96.0.0/16") {
		t.Errorf("%v", got)
	}
}

func TestNoneLeft(t *testing.T) {
	var table Table
	for s, want := range map[string]string{"8.0.0.0/7": "too large", "fd00::/40": "too large", "10.96.0.0/16": "no virtual addresses are left"} {
		if err := table.Stand(p(s), []netip.Prefix{p("240.0.0.0/4")}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
	}
}

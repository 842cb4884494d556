package connection

import (
	"net/netip"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/services/vif/internal/nstest"
	"berth.dev/services/vif/internal/route"
	"berth.dev/services/vif/internal/tun"
	"berth.dev/services/vif/internal/virtual"
	"berth.dev/tunnel"
)

// The second VIF of a machine is told of the first.
func TestInterfaceTaken(t *testing.T) {
	nstest.Require(t)
	first, err := tun.Create("berth-taken", 1500)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, err = tun.Create("berth-taken", 1500)
	if f := fault.From(explainTUN(err)); err == nil || f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, "another connection") || f.Hint == "" {
		t.Errorf("%v: %+v", err, f)
	}
}

// What is in a machine's way is named, with what a user of the machine can do.
func TestConflictsOnHost(t *testing.T) {
	c := New(Config{OnHost: true, Interface: "berth0"})
	lan := netip.MustParsePrefix("10.96.1.0/24")
	subnets := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	for name, tc := range map[string]struct {
		plane *plane
		says  []string
	}{
		"a network": {&plane{networks: []route.Network{{Interface: "eth0", Prefix: lan}}}, []string{"10.96.1.0/24 on eth0", "--vnat 10.96.0.0/16", "--never-proxy 10.96.1.0/24", "--docker"}},
		"a route":   {&plane{existing: []route.Route{{Interface: "tun0", Prefix: netip.MustParsePrefix("10.0.0.0/8")}}}, []string{"10.0.0.0/8 by tun0", "--vnat 10.96.0.0/16", "--never-proxy 10.96.0.0/16", "--also-proxy 10.96.0.0/16", "--docker"}},
	} {
		tc.plane.virtual = &virtual.Table{}
		err := c.check(tc.plane, subnets, &order{})
		f := fault.From(err)
		if err == nil || f.Hint != "ctl connect --vnat auto" || strings.Contains(f.Message, "Docker network") {
			t.Fatalf("%s: %+v", name, f)
		}
		for _, want := range tc.says {
			if !strings.Contains(f.Message, want) {
				t.Errorf("%s: %q does not say %q", name, f.Message, want)
			}
		}
		if err := c.check(tc.plane, subnets, &order{never: subnets}); err != nil {
			t.Errorf("%s: given up, and refused all the same: %v", name, err)
		}
		w := &tunnel.Welcome{Subnets: subnets}
		if err := c.stand(tc.plane, w, &order{virtualAuto: true}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.check(tc.plane, tc.plane.virtual.Subnets(subnets), &order{}); err != nil {
			t.Errorf("%s: virtual, and refused all the same: %v", name, err)
		}
		err = c.stand(tc.plane, w, &order{virtual: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
		if f := fault.From(err); err == nil || f.Code != fault.InvalidArgument || !strings.Contains(f.Message, "10.96.0.0/16") {
			t.Errorf("%s: a subnet that is not the cluster's: %v", name, err)
		}
	}
}

package connection

import (
	"net/netip"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/services/vif/internal/nstest"
	"berth.dev/services/vif/internal/route"
	"berth.dev/services/vif/internal/tun"
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
	lan := []route.Network{{Interface: "eth0", Prefix: netip.MustParsePrefix("10.96.1.0/24")}}
	w := &tunnel.Welcome{Subnets: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}
	f := fault.From(c.check(w, lan, &order{}))
	if f == nil || f.Hint != "ctl connect --never-proxy 10.96.1.0/24" || strings.Contains(f.Message, "Docker network") || !strings.Contains(f.Message, "eth0") {
		t.Errorf("%+v", f)
	}
	if err := c.check(w, lan, &order{never: []netip.Prefix{lan[0].Prefix}}); err != nil {
		t.Error("given up, and refused all the same:", err)
	}
}

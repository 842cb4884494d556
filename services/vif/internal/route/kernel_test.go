package route

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"berth.dev/services/vif/internal/nstest"
	"berth.dev/services/vif/internal/tun"

	"github.com/vishvananda/netlink"
)

func TestCheck(t *testing.T) {
	eth0 := Network{Interface: "eth0", Prefix: netip.MustParsePrefix("172.18.0.0/16"), Needed: []netip.Addr{netip.MustParseAddr("172.18.0.3"), netip.MustParseAddr("172.18.0.1")}}
	for _, tt := range []struct{ name, subnets, never, conflict string }{
		{"apart", "10.96.0.0/12 10.244.0.0/16", "", ""},
		{"equal", "10.96.0.0/12 172.18.0.0/16", "", "172.18.0.0/16"},
		{"around", "172.16.0.0/12", "", "172.16.0.0/12"},
		{"inside, without what is needed", "172.18.5.0/24", "", ""},
		{"a node that is a container", "172.18.0.2/32", "", ""},
		{"inside, with the gateway", "172.18.0.0/24", "", "172.18.0.0/24"},
		{"around, given up", "172.16.0.0/12", "172.18.0.0/16", ""},
		{"equal, given up", "172.18.0.0/16", "172.16.0.0/12", ""},
		{"other family", "fd00::/8", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(prefixes(tt.subnets), []Network{eth0}, prefixes(tt.never))
			var c *ConflictError
			if !errors.As(err, &c) {
				if tt.conflict != "" {
					t.Fatal("no conflict")
				}
				return
			}
			if c.Subnet.String() != tt.conflict || !strings.Contains(err.Error(), "eth0") || !strings.Contains(err.Error(), "172.18.0.0/16") {
				t.Errorf("%v, want one about %q", err, tt.conflict)
			}
		})
	}
}

func TestCheckRoutes(t *testing.T) {
	vpn := []Route{{"tun0", netip.MustParsePrefix("10.0.0.0/8")}, {"wg0", netip.MustParsePrefix("172.30.1.0/24")}}
	for _, tt := range []struct{ name, subnets, settled, conflict string }{
		{"apart", "192.168.0.0/16 fd00::/8", "", ""},
		{"inside", "10.96.0.0/12", "", "10.96.0.0/12 overlaps the route 10.0.0.0/8 by tun0"},
		{"around", "172.16.0.0/12", "", "172.16.0.0/12 overlaps the route 172.30.1.0/24 by wg0"},
		{"without the cluster's", "10.96.0.0/12", "10.96.0.0/12", ""},
		{"without the other's", "172.16.0.0/12", "172.30.0.0/16", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckRoutes(prefixes(tt.subnets), vpn, prefixes(tt.settled))
			var c *RouteConflictError
			if errors.As(err, &c) != (tt.conflict != "") || err != nil && !strings.Contains(err.Error(), tt.conflict) {
				t.Errorf("%v, want %q", err, tt.conflict)
			}
		})
	}
}

// A route of a table that policy routing chooses counts too; defaults, and what
// stands in for them, do not.
func TestExisting(t *testing.T) {
	nstest.Require(t)
	dev, err := tun.Create("berth-vpn", 1500)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if _, err := Up(dev.Name(), netip.MustParseAddr("198.18.9.1")); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	for prefix, table := range map[string]int{"10.0.0.0/8": 0, "172.30.0.0/16": 51820, "0.0.0.0/1": 0, "128.0.0.0/1": 0} {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(prefix)), Scope: netlink.SCOPE_LINK, Table: table}
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(prefix, err)
		}
	}
	nets, err := Networks("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Existing("", nets)
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b Route) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	want := []Route{{dev.Name(), netip.MustParsePrefix("10.0.0.0/8")}, {dev.Name(), netip.MustParsePrefix("172.30.0.0/16")}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, _ = Existing(dev.Name(), nets); len(got) != 0 {
		t.Errorf("our own: %v", got)
	}
}

func TestPick(t *testing.T) {
	if a := Pick(nil); a.Near.String() != "198.18.0.1" || a.Server.String() != "198.18.0.2" {
		t.Error(a)
	}
	if a := Pick(prefixes("10.0.0.0/8 198.18.0.0/16")); a.Near.String() != "198.19.255.1" {
		t.Error(a)
	}
}

func routes(t *testing.T, name string) (out []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.RouteList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		out = append(out, r.Dst.String())
	}
	slices.Sort(out)
	return out
}

func TestTable(t *testing.T) {
	nstest.Require(t)
	dev, err := tun.Create("berth-route", 1500)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if _, err := Up(dev.Name(), netip.MustParseAddr("198.18.0.1")); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(dev.Name(), netip.MustParseAddr("198.18.0.1")); err != nil {
		t.Fatal("a second time:", err)
	}
	table, err := NewTable(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.96.0.0/12 10.244.0.0/16", "10.244.0.0/16 10.9.0.0/24", "10.244.0.0/16 10.9.0.0/24", ""} {
		stand, err := table.Sync(prefixes(want))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(stand, prefixes(want)) {
			t.Errorf("%v stand, want %s", stand, want)
		}
		sorted := strings.Fields(want)
		slices.Sort(sorted)
		if got := routes(t, dev.Name()); !slices.Equal(got, sorted) {
			t.Errorf("the kernel has %v, want %v", got, sorted)
		}
	}
	nets, err := Networks("no-such")
	if err != nil || len(nets) != 1 || nets[0].Interface != dev.Name() {
		t.Errorf("networks %+v, %v", nets, err)
	}
	if nets, _ = Networks(dev.Name()); len(nets) != 0 {
		t.Errorf("networks %+v", nets)
	}
}

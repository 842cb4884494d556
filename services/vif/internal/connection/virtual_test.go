package connection

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/tunnel"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
)

// A subnet of the cluster's that is a network here is reached by addresses that
// stand for its own: DNS answers them, connections to them arrive at the cluster's,
// and the network here stays what it is.
func TestVirtualAddresses(t *testing.T) {
	r := newRig(t)
	lan := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}
	if err := netlink.LinkAdd(lan); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(lan) })
	if err := netlink.LinkSetUp(lan); err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("10.96.0.200/24")
	if err := netlink.AddrAdd(lan, a); err != nil {
		t.Fatal(err)
	}
	seen := make(chan tunnel.Header, 100)
	translate := r.far.Translate
	r.far.Translate = func(h tunnel.Header) (netip.AddrPort, tunnel.Code) {
		seen <- h
		return translate(h)
	}

	r.open()
	next[event.TunnelOpened](r)
	if f := next[event.VIFFailed](r).Error; !strings.Contains(f.Message, "10.96.0.0/24 on lan0") || f.Hint != "ctl connect --docker --vnat auto" {
		t.Errorf("%+v", f)
	}
	o := order1
	o.Virtual = []string{command.VirtualAuto}
	if _, err := bus.Call(t.Context(), r.conn, command.TunnelOpen, id, o); err != nil {
		t.Fatal(err)
	}
	next[event.TunnelOpened](r)
	ready, names := next[event.InterfaceReady](r), next[event.DNSReady](r)
	if want := []event.VirtualSubnet{{Cluster: "10.96.0.0/24", Here: "240.96.0.0/24"}}; !slices.Equal(ready.Virtual, want) {
		t.Errorf("%+v, want %+v", ready.Virtual, want)
	}
	if !slices.Contains(ready.Subnets, "240.96.0.0/24") || !slices.Contains(ready.Subnets, "10.244.0.0/17") || slices.ContainsFunc(ready.Subnets, func(s string) bool { return strings.HasPrefix(s, "10.96.") }) {
		t.Errorf("subnets %v", ready.Subnets)
	}

	ask := func(name string, kind uint16) *dns.Msg {
		m := new(dns.Msg)
		m.SetQuestion(name, kind)
		ans, _, err := new(dns.Client).Exchange(m, net.JoinHostPort(names.Server, "53"))
		if err != nil || len(ans.Answer) == 0 {
			t.Fatalf("%s: %v, %v", name, ans, err)
		}
		return ans
	}
	for range 2 { // asked, and remembered
		ans := ask("backend.", dns.TypeA).Answer
		if rr, ok := ans[len(ans)-1].(*dns.A); !ok || rr.A.String() != "240.96.0.7" {
			t.Errorf("%v", ans)
		}
	}
	ans := ask("7.0.96.240.in-addr.arpa.", dns.TypePTR).Answer
	if rr, ok := ans[len(ans)-1].(*dns.PTR); !ok || rr.Ptr != "backend.shop.svc.cluster.local." {
		t.Errorf("%v", ans)
	}

	service := netip.AddrPortFrom(netip.MustParseAddr("240.96.0.7"), echo(t))
	talk(t, service.String())
	var dialled []tunnel.Header
	for len(seen) > 0 {
		dialled = append(dialled, <-seen)
	}
	want := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.7"), service.Port())
	if !slices.ContainsFunc(dialled, func(h tunnel.Header) bool { return h.Dst == want && h.Kind == tunnel.KindTCP }) {
		t.Errorf("the cluster was asked for %v, want %v among them", dialled, want)
	}
	routes, err := netlink.RouteGet(net.ParseIP("10.96.0.7"))
	if err != nil || len(routes) == 0 || routes[0].LinkIndex != lan.Attrs().Index {
		t.Errorf("the network's own address goes by %v, %v", routes, err)
	}
}

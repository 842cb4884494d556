package listening

import (
	"net"
	"net/netip"
	"testing"

	"berth.dev/services/forwarder/internal/port"
)

// The kernel's own tables, with sockets of this test.
func TestTarget(t *testing.T) {
	for _, c := range []struct{ network, addr, want string }{
		{"tcp4", "127.0.0.1:0", "127.0.0.1"},
		{"tcp4", "0.0.0.0:0", "127.0.0.1"},
		{"tcp4", "127.1.2.3:0", "127.1.2.3"},
		{"tcp6", "[::1]:0", "::1"},
		{"tcp", "[::]:0", "::1"},
		{"udp4", "127.0.0.1:0", "127.0.0.1"},
		{"udp4", "0.0.0.0:0", "127.0.0.1"},
		{"udp6", "[::1]:0", "::1"},
	} {
		t.Run(c.network+" "+c.addr, func(t *testing.T) {
			p := port.Port{Protocol: c.network[:3]}
			var local net.Addr
			if p.Protocol == "tcp" {
				l, err := net.Listen(c.network, c.addr)
				if err != nil {
					t.Skipf("%s: %v", t.Name(), err)
				}
				defer l.Close()
				local = l.Addr()
			} else {
				l, err := net.ListenPacket(c.network, c.addr)
				if err != nil {
					t.Skipf("%s: %v", t.Name(), err)
				}
				defer l.Close()
				local = l.LocalAddr()
			}
			at := netip.MustParseAddrPort(local.String())
			p.Number = at.Port()
			all, err := Default.At(p)
			if err != nil || len(all) != 1 || all[0] != at.Addr() {
				t.Errorf("listened on at %v, %v, want %v", all, err, at)
			}
			if to, err := Default.Target(p); err != nil || to.Addr().String() != c.want || to.Port() != p.Number {
				t.Errorf("target %v, %v, want %s", to, err, c.want)
			}
		})
	}
}

// A connection is not a listener.
func TestConnected(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := port.Port{Number: netip.MustParseAddrPort(c.LocalAddr().String()).Port(), Protocol: "tcp"}
	if all, err := Default.At(p); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if to, err := Default.Target(p); err != nil || to.Addr().String() != "127.0.0.1" {
		t.Errorf("%v, %v", to, err)
	}
}

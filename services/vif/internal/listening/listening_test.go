package listening

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
)

func bound(t *testing.T, network, address string) uint16 {
	t.Helper()
	if network[0] == 'u' {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Skipf("cannot listen on %s %s here: %v", network, address, err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("cannot listen on %s %s here: %v", network, address, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

func TestMissing(t *testing.T) {
	for _, c := range []struct {
		name, network, bind, ask string
		there                    bool
	}{
		{"the same address", "tcp4", "127.0.0.1:0", "127.0.0.1", true},
		{"every address", "tcp4", "0.0.0.0:0", "127.0.0.1", true},
		{"every address of both kinds", "tcp", ":0", "127.0.0.1", true},
		{"another address", "tcp4", "127.0.0.2:0", "127.0.0.1", false},
		{"IPv6", "tcp6", "[::1]:0", "::1", true},
		{"IPv6 and asked for IPv4", "tcp6", "[::1]:0", "127.0.0.1", false},
		{"UDP", "udp4", "127.0.0.1:0", "127.0.0.1", true},
		{"UDP everywhere", "udp", ":0", "127.0.0.1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Port{Number: bound(t, c.network, c.bind), UDP: c.network[0] == 'u'}
			missing, err := Missing(t.Context(), netip.MustParseAddr(c.ask), []Port{p})
			if err != nil || (len(missing) == 0) != c.there {
				t.Errorf("missing %v, %v", missing, err)
			}
			other := Port{Number: p.Number, UDP: !p.UDP}
			if missing, err := Missing(t.Context(), netip.MustParseAddr(c.ask), []Port{other}); err != nil || !slices.Contains(missing, other) {
				t.Errorf("the other protocol: missing %v, %v", missing, err)
			}
		})
	}
	t.Run("a connection is no listener", func(t *testing.T) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = l.Close()
		local := netip.MustParseAddrPort(c.LocalAddr().String())
		if missing, err := Missing(t.Context(), local.Addr(), []Port{{Number: local.Port()}}); err != nil || len(missing) != 1 {
			t.Errorf("missing %v, %v", missing, err)
		}
	})
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ line, want, state string }{
		{"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000", "127.0.0.1:8080", "0A"},
		{"   1: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 07", "[::1]:80", "07"},
		{"  sl  local_address rem_address   st tx_queue", "", ""},
		{"", "", ""},
	} {
		at, state, ok := parse(c.line)
		if ok != (c.want != "") || ok && (at.String() != c.want || state != c.state) {
			t.Errorf("%q: %v %s %v", c.line, at, state, ok)
		}
	}
}

// Behind a forwarder somebody listens only if a connection stays.
func TestForwarded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var stay atomic.Bool
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if !stay.Load() {
				_ = c.Close()
				continue
			}
			defer c.Close()
		}
	}()
	port := Port{Number: uint16(l.Addr().(*net.TCPAddr).Port), Forwarded: true}
	here := netip.MustParseAddr("127.0.0.1")
	if missing, err := Missing(t.Context(), here, []Port{port}); err != nil || len(missing) != 1 {
		t.Errorf("the forwarder alone: %v, %v", missing, err)
	}
	stay.Store(true)
	if missing, err := Missing(t.Context(), here, []Port{port}); err != nil || len(missing) != 0 {
		t.Errorf("a handler behind it: %v, %v", missing, err)
	}
}

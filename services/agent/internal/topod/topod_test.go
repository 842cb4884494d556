package topod

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"berth.dev/tunnel"
	"berth.dev/tunnel/freeport"
)

// serve takes flows until the test ends, and returns the manager's end.
func serve(t *testing.T) *tunnel.Session {
	t.Helper()
	a, b := net.Pipe()
	manager, agent := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	t.Cleanup(func() { agent.Close(); manager.Close() })
	var ports Ports
	go func() {
		for {
			r, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			go ports.Take(context.Background(), r)()
		}
	}()
	return manager
}

func TestServe(t *testing.T) {
	manager := serve(t)
	l, u := freeport.Both(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "app")
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte("app by udp"), from)
		}
	}()
	open := func(kind tunnel.Kind, port uint16) (*tunnel.Stream, error) {
		return manager.Open(t.Context(), tunnel.Header{Kind: kind, Engagement: "e", Dst: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)})
	}
	s, err := open(tunnel.KindTCP, port)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || string(got) != "app" {
		t.Errorf("%q, %v", got, err)
	}
	d, err := open(tunnel.KindUDP, port)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.WritePacket([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = d.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 100)
	if n, err := d.ReadPacket(buf); err != nil || string(buf[:n]) != "app by udp" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	l.Close()
	if _, err := open(tunnel.KindTCP, port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port where nobody listens: %v", err)
	}
}

// Flows come to the app in the order in which they were opened.
func TestOrder(t *testing.T) {
	manager := serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var all []tunnel.Opening
	for range 20 { // none of which waits for longer than a turn is worth, on a loaded machine either
		o, err := manager.Begin(tunnel.Header{Kind: tunnel.KindTCP, Engagement: "e", Dst: l.Addr().(*net.TCPAddr).AddrPort()})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
	for i, o := range all {
		s, err := o.Wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, _ = s.Write([]byte{byte(i)})
	}
	for i := range all {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		said := make([]byte, 1)
		if _, err := io.ReadFull(c, said); err != nil || said[0] != byte(i) {
			t.Errorf("flow %d is the app's number %d: %v", said[0], i, err)
		}
	}
}

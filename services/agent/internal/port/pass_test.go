package port

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"testing"
)

// Until the handler runs connections go on to the app in those pods that are
// reached on every port; then to the handler, without the listener having gone.
func TestPass(t *testing.T) {
	ctx := context.Background()
	p := free(t, 1)[0]
	answers := func(addr string) netip.Addr {
		l, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), p).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
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
		return netip.MustParseAddr(addr)
	}
	app, none := answers("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	s := NewSet("e", handler(t, 0, 0), slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	l, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p).String())
	if err != nil {
		t.Fatal(err)
	}
	s.keep(l)
	s.accepting.Go(func() { s.accept(l.(*net.TCPListener), p, nil) })
	ask := func() string {
		c := dial(t, "tcp", p)
		_, _ = io.WriteString(c, "hello")
		_ = c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		return string(b)
	}
	ports := []Port{{p, TCP}}
	if got := s.Pass(ctx, append(ports, Port{free(t, 1)[0], TCP}), []netip.Addr{app, none}); len(got) > 0 {
		t.Errorf("%v is passed on to, though nobody answers on one of the ports", got)
	}
	if got := ask(); got != "HELLO" {
		t.Errorf("%q, want the handler's answer", got)
	}
	if got := s.Pass(ctx, ports, []netip.Addr{none, app}); !reflect.DeepEqual(got, []netip.Addr{app}) {
		t.Errorf("%v is passed on to, want %v", got, app)
	}
	for range 5 {
		if got := ask(); got != "app" {
			t.Errorf("%q, want the app's answer", got)
		}
	}
	if got := s.Pass(ctx, ports, nil); len(got) > 0 {
		t.Errorf("%v is passed on to", got)
	}
	if got := ask(); got != "HELLO" {
		t.Errorf("%q, want the handler's answer", got)
	}
}

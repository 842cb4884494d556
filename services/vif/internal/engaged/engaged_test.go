package engaged

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/services/vif/internal/farside"
	"berth.dev/tunnel"
	"berth.dev/tunnel/freeport"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var localhost = netip.MustParseAddr("127.0.0.1")

// newTable is a table that serves a session, of which far is the manager's end.
func newTable(t *testing.T) (table *Table, far *tunnel.Session) {
	near, far, err := farside.Pair(tunnel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	table = New(slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	wg.Go(func() { table.Serve(context.Background(), near) })
	t.Cleanup(func() { _ = near.Close(); _ = far.Close(); wg.Wait() })
	return table, far
}

func header(kind tunnel.Kind, engagement string, port uint16) tunnel.Header {
	return tunnel.Header{Kind: kind, Engagement: engagement, Dst: netip.AddrPortFrom(netip.Addr{}, port)}
}

// echo answers by TCP; what it returns is at the same port by UDP.
func echo(t *testing.T) (uint16, net.PacketConn) {
	l, pc := freeport.Both(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return netip.MustParseAddrPort(l.Addr().String()).Port(), pc
}

func TestServe(t *testing.T) {
	table, far := newTable(t)
	port, pc := echo(t)
	table.Set("e1", localhost, []Port{{Container: 8080, Handler: port}, {Container: 8080, Handler: port, UDP: true}, {Container: 81, Handler: 1}})

	t.Run("TCP", func(t *testing.T) {
		st, err := far.Open(t.Context(), header(tunnel.KindTCP, "e1", 8080))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = st.Write([]byte("hello"))
		_ = st.CloseWrite()
		if b, err := io.ReadAll(st); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
	})
	t.Run("UDP on the same number", func(t *testing.T) {
		st, err := far.Open(t.Context(), header(tunnel.KindUDP, "e1", 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if err := st.WritePacket([]byte("x")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 16)
		_ = pc.SetDeadline(time.Now().Add(time.Minute))
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = pc.WriteTo(append(buf[:n], 'y'), from)
		_ = st.SetDeadline(time.Now().Add(time.Minute))
		if n, err := st.ReadPacket(buf); err != nil || string(buf[:n]) != "xy" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	})
	for _, tt := range []struct {
		name string
		h    tunnel.Header
		want tunnel.Code
	}{
		{"nobody listens", header(tunnel.KindTCP, "e1", 81), tunnel.CodeRefused},
		{"port not engaged", header(tunnel.KindTCP, "e1", 82), tunnel.CodeRefused},
		{"UDP not engaged", header(tunnel.KindUDP, "e1", 81), tunnel.CodeRefused},
		{"unknown engagement", header(tunnel.KindTCP, "e2", 8080), tunnel.CodeNotFound},
		{"no engagement", tunnel.Header{Kind: tunnel.KindTCP, Dst: netip.AddrPortFrom(localhost, port)}, tunnel.CodeDenied},
		{"a call", tunnel.Header{Kind: tunnel.KindRPC, Method: "x"}, tunnel.CodeDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := far.Open(t.Context(), tt.h)
			var r *tunnel.RefusedError
			if !errors.As(err, &r) || r.Code != tt.want {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}

func TestSetAndRemove(t *testing.T) {
	table, far := newTable(t)
	port, _ := echo(t)
	ports := []Port{{Container: 8080, Handler: port}}
	if table.Set("e1", localhost, ports) {
		t.Error("new, and was there already")
	}
	if !table.Set("e1", localhost, ports) {
		t.Error("said twice, and not known")
	}
	st, err := far.Open(t.Context(), header(tunnel.KindTCP, "e1", 8080))
	if err != nil {
		t.Fatal(err)
	}
	if !table.Remove("e1") || table.Remove("e1") {
		t.Error("remove")
	}
	_ = st.SetDeadline(time.Now().Add(time.Minute))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("an open connection of a removed engagement: %v", err)
	}
	if _, err := far.Open(t.Context(), header(tunnel.KindTCP, "e1", 8080)); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("after its removal: %v", err)
	}
}

// Connections come to the handler in the order in which they were opened, those
// that had to wait for another handler too. Of another client's, or to another port,
// none is waited for.
func TestOrder(t *testing.T) {
	table, far := newTable(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	table.Set("e1", localhost, []Port{{Container: 8080, Handler: port}})
	for _, paused := range []bool{false, true} {
		if paused {
			table.Pause("e1", time.Hour)
		}
		var all []tunnel.Opening
		for i := range 20 { // none of which waits for longer than a turn is worth, on a loaded machine either
			h := header(tunnel.KindTCP, "e1", 8080)
			h.Src = netip.AddrPortFrom(localhost, uint16(1000+i))
			o, err := far.Begin(h)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, o)
		}
		var streams []*tunnel.Stream
		for i, o := range all {
			st, err := o.Wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, st)
			_, _ = st.Write([]byte{byte(i)})
		}
		table.Resume("e1")
		for i := range all {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			said := make([]byte, 1)
			if _, err := io.ReadFull(c, said); err != nil || said[0] != byte(i) {
				t.Errorf("paused %v: connection %d is the handler's number %d: %v", paused, said[0], i, err)
			}
			c.Close()
		}
		for _, st := range streams {
			_ = st.Close()
		}
	}
}

package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 10 * time.Second

// nowhere is a port of loopback at which nobody listens.
func nowhere(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// tcp relays a new listener to where target says, with nobody at 127.0.0.1.
func tcp(t *testing.T, target netip.AddrPort) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- TCP(ctx, l, nowhere(t).Port(), func() (netip.AddrPort, error) { return target, nil })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("relay: %v", err)
		}
	})
	return l.Addr().String()
}

// server accepts one connection and hands it to f.
func server(t *testing.T, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			f(c.(*net.TCPConn))
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func dialTo(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func TestHalfClose(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	addr := tcp(t, server(t, func(c *net.TCPConn) {
		// Answers only when it has seen the end of what was sent.
		all, err := io.ReadAll(c)
		if err == nil {
			_, _ = c.Write(all)
		}
	}))
	c := dialTo(t, addr)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back, %v; sent %d", len(got), err, len(sent))
	}
}

func TestReset(t *testing.T) {
	t.Run("by the server", func(t *testing.T) {
		addr := tcp(t, server(t, func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 1))
			_ = c.SetLinger(0)
		}))
		c := dialTo(t, addr)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the reset arrived as %v", err)
		}
	})
	t.Run("by the client", func(t *testing.T) {
		got := make(chan error, 1)
		addr := tcp(t, server(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("x"))
			_, err := c.Read(make([]byte, 1))
			got <- err
		}))
		c := dialTo(t, addr)
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetLinger(0)
		c.Close()
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the reset arrived as %v", err)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		// The reset may come before or after the dial has looked.
		c, err := net.Dial("tcp", tcp(t, nowhere(t)))
		if err == nil {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("nobody listens arrived as %v", err)
		}
	})
}

// 127.0.0.1 is tried first, and target is not asked then.
func TestLoopbackFirst(t *testing.T) {
	at := server(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("here")) })
	c, err := dial(t.Context(), at.Port(), func() (netip.AddrPort, error) { panic("asked") })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); string(got) != "here" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// An end of the relay ends its connections too.
func TestEnd(t *testing.T) {
	at := server(t, func(c *net.TCPConn) { _, _ = c.Read(make([]byte, 1)) })
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- TCP(ctx, l, at.Port(), nil) }()
	c := dialTo(t, l.Addr().String())
	cancel()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection outlived the relay: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func udpEcho(t *testing.T) (at netip.AddrPort, clients func() int) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[netip.AddrPort]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			seen[from] = true
			mu.Unlock()
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort(), func() int { mu.Lock(); defer mu.Unlock(); return len(seen) }
}

func TestUDP(t *testing.T) {
	at, clients := udpEcho(t)
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	const idle = 300 * time.Millisecond
	go func() { done <- UDP(ctx, front, idle, func() (netip.AddrPort, error) { return at, nil }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	one, two := udpClient(t, front), udpClient(t, front)
	for _, size := range []int{0, 1, 1400, 60000} {
		for _, c := range []*net.UDPConn{one, two} {
			echoed(t, c, bytes.Repeat([]byte{byte(size)}, size))
		}
	}
	if n := clients(); n != 2 {
		t.Errorf("two clients arrived as %d", n)
	}
	// A flow that carries something lives on; one that does not is forgotten, and
	// the next datagram makes a new one.
	for deadline := time.Now().Add(2 * idle); time.Now().Before(deadline); time.Sleep(idle / 10) {
		echoed(t, one, []byte("still there"))
	}
	if n := clients(); n != 2 {
		t.Errorf("a flow in use was forgotten: %d", n)
	}
	echoed(t, two, []byte("again"))
	if n := clients(); n != 3 {
		t.Errorf("an idle flow was kept: %d", n)
	}
}

func udpClient(t *testing.T, front *net.UDPConn) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, front.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func echoed(t *testing.T, c *net.UDPConn, what []byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(what); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(buf)
	if err != nil || !bytes.Equal(buf[:n], what) {
		t.Fatalf("%d bytes came back as %d, %v", len(what), n, err)
	}
}

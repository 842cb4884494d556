package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth.dev/services/vif/internal/farside"
	"berth.dev/services/vif/internal/nstest"
	"berth.dev/services/vif/internal/route"
	"berth.dev/services/vif/internal/tun"
	"berth.dev/tunnel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if !play() {
		nstest.Main(m)
	}
}

// What the test cluster's addresses stand for: the port is kept, the address
// becomes loopback.
const (
	service     = "10.96.0.10"
	service6    = "fd00:96::10"
	unreach     = "10.96.0.66"
	denied      = "10.96.0.67"
	silent      = "10.96.0.68"
	dead        = "10.96.0.69" // does not answer echo requests
	mirror      = "10.96.0.70" // the far side's own echo server
	clusterCIDR = "10.96.0.0/16"
	clusterV6   = "fd00:96::/64"
)

// patience is how long is waited for what should come at once: it passes only in a
// test that fails.
const patience = time.Minute

var local = netip.MustParseAddr("198.18.0.2")

// world is a TUN, a netstack and a far side.
type world struct {
	stack     *Stack
	near, far *tunnel.Session
}

func newWorld(t testing.TB, mtu int) *world {
	nstest.Require(t)
	near, far, err := farside.Pair(tunnel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	f := &farside.Far{
		Translate: func(h tunnel.Header) (netip.AddrPort, tunnel.Code) {
			switch h.Dst.Addr().String() {
			case unreach:
				return netip.AddrPort{}, tunnel.CodeUnreachable
			case denied:
				return netip.AddrPort{}, tunnel.CodeDenied
			case service6:
				return netip.AddrPortFrom(netip.IPv6Loopback(), h.Dst.Port()), 0
			}
			return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.Dst.Port()), 0
		},
		Alive:  func(a netip.Addr) bool { return a.String() != dead },
		Silent: func(h tunnel.Header) bool { return h.Dst.Addr().String() == silent },
		Itself: func(h tunnel.Header) bool { return h.Dst.Addr().String() == mirror },
	}
	s := newStack(t, mtu, near)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.Serve(ctx, far) })
	t.Cleanup(func() {
		cancel()
		_ = near.Close()
		_ = far.Close()
		wg.Wait()
	})
	return &world{stack: s, near: near, far: far}
}

// newStack is a netstack on a TUN, with routes to it, that opens streams on near.
func newStack(t testing.TB, mtu int, near *tunnel.Session) *Stack {
	dev, err := tun.Create("berth-test", mtu)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := route.Up(dev.Name(), netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd57:6272:7468::1")); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{clusterCIDR, clusterV6, "198.18.0.2/32"} {
		dst, err := netlink.ParseIPNet(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			t.Fatalf("route %s: %v", p, err)
		}
	}
	s, err := New(Config{Device: dev, Opener: near, Local: []netip.Addr{local}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = near.Close() // what waits for the far side
		wg.Wait()
	})
	return s
}

// serve runs a TCP server on loopback and returns its port.
func serve(t testing.TB, address string, handle func(*net.TCPConn)) string {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { handle(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func dial(t testing.TB, host, port string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func echoServer(c *net.TCPConn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

func TestTCP(t *testing.T) {
	w := newWorld(t, 65520)

	for _, target := range []struct{ name, host, loopback string }{{"IPv4", service, "127.0.0.1"}, {"IPv6", service6, "::1"}} {
		t.Run("echo "+target.name, func(t *testing.T) {
			c := dial(t, target.host, serve(t, target.loopback, echoServer))
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
				t.Fatalf("got %q, %v", got, err)
			}
		})
	}

	t.Run("refused is ECONNREFUSED", func(t *testing.T) {
		for _, host := range []string{service, service6} {
			_, err := net.DialTimeout("tcp", net.JoinHostPort(host, "1"), patience)
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("%s: %v", host, err)
			}
		}
	})

	t.Run("unreachable is EHOSTUNREACH", func(t *testing.T) {
		for _, host := range []string{unreach, denied} {
			_, err := net.DialTimeout("tcp", net.JoinHostPort(host, "80"), patience)
			if !errors.Is(err, syscall.EHOSTUNREACH) {
				t.Fatalf("%s: %v", host, err)
			}
		}
	})

	t.Run("the SYN is not answered before the far side has", func(t *testing.T) {
		_, err := net.DialTimeout("tcp", net.JoinHostPort(silent, "80"), 500*time.Millisecond)
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Fatalf("got %v, want a timeout", err)
		}
	})

	t.Run("what is the stack's own is refused", func(t *testing.T) {
		_, err := net.DialTimeout("tcp", net.JoinHostPort(local.String(), "81"), patience)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	})

	t.Run("half-close by the server", func(t *testing.T) {
		got := make(chan string, 1)
		c := dial(t, service, serve(t, "127.0.0.1", func(c *net.TCPConn) {
			defer c.Close()
			_, _ = c.Write([]byte("bye"))
			_ = c.CloseWrite()
			b, _ := io.ReadAll(c)
			got <- string(b)
		}))
		if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
			t.Fatalf("got %q, %v", b, err)
		}
		if _, err := c.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if s := <-got; s != "still here" {
			t.Fatalf("server got %q", s)
		}
	})

	t.Run("reset by the server", func(t *testing.T) {
		c := dial(t, service, serve(t, "127.0.0.1", func(c *net.TCPConn) {
			_, _ = c.Read(make([]byte, 1))
			_ = c.SetLinger(0)
			_ = c.Close()
		}))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v, want ECONNRESET", err)
		}
	})

	t.Run("reset by the client", func(t *testing.T) {
		got := make(chan error, 1)
		c := dial(t, service, serve(t, "127.0.0.1", func(c *net.TCPConn) {
			defer c.Close()
			_, _ = c.Write([]byte("x"))
			_, err := io.ReadAll(c)
			got <- err
		}))
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
		_ = c.Close()
		select {
		case err := <-got:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("server got %v, want ECONNRESET", err)
			}
		case <-time.After(patience):
			t.Fatal("the reset did not arrive")
		}
	})

	t.Run("no flow is left", func(t *testing.T) {
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if w.stack.Flows() == 0 && w.near.NumStreams() <= 1 { // that to the silent one
				return
			}
		}
		t.Fatalf("%d flows, %d streams", w.stack.Flows(), w.near.NumStreams())
	})
}

func TestBulkIsIntact(t *testing.T) {
	for _, mtu := range []int{1500, 65520} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			newWorld(t, mtu)
			data := make([]byte, 64<<20)
			r := rand.NewChaCha8([32]byte{1})
			_, _ = r.Read(data)
			want := sha256.Sum256(data)
			got := make(chan [32]byte, 1)
			c := dial(t, service, serve(t, "127.0.0.1", func(c *net.TCPConn) {
				defer c.Close()
				h := sha256.New()
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = io.Copy(h, c) })
				_, _ = c.Write(data)
				_ = c.CloseWrite()
				wg.Wait()
				got <- [32]byte(h.Sum(nil))
			}))
			h := sha256.New()
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := io.Copy(h, c); err != nil {
					t.Error("down:", err)
				}
			})
			if _, err := c.Write(data); err != nil {
				t.Fatal("up:", err)
			}
			_ = c.CloseWrite()
			wg.Wait()
			if !bytes.Equal(h.Sum(nil), want[:]) {
				t.Error("what came down is not what was sent")
			}
			if up := <-got; up != want {
				t.Error("what went up is not what was sent")
			}
		})
	}
}

func TestTunnelLost(t *testing.T) {
	w := newWorld(t, 65520)
	c := dial(t, service, serve(t, "127.0.0.1", echoServer))
	_, _ = c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = w.far.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("got %v, want ECONNRESET", err)
	}
}

func udpServer(t testing.TB, loopback string) string {
	pc, err := net.ListenPacket("udp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, a, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], a)
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	return port
}

func TestUDP(t *testing.T) {
	for _, mtu := range []int{1500, 65520} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			newWorld(t, mtu)
			buf := make([]byte, 64<<10)
			for host, loopback := range map[string]string{service: "127.0.0.1", service6: "::1"} {
				c, err := net.Dial("udp", net.JoinHostPort(host, udpServer(t, loopback)))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for _, size := range []int{0, 1, 512, 1232, 1400, 1472, 1473, 4096, 8972, 20000, 60000, 65507} {
					p := bytes.Repeat([]byte{byte(size), 7}, size/2+1)[:size]
					if _, err := c.Write(p); err != nil {
						t.Fatalf("%s: %d bytes: %v", host, size, err)
					}
					_ = c.SetReadDeadline(time.Now().Add(patience))
					n, err := c.Read(buf)
					if err != nil || !bytes.Equal(buf[:n], p) {
						t.Fatalf("%s: sent %d bytes, got %d back, %v", host, size, n, err)
					}
				}
			}
			t.Run("closed port is ECONNREFUSED", func(t *testing.T) {
				c, err := net.Dial("udp", net.JoinHostPort(service, "1"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, _ = c.Write([]byte("x"))
				_ = c.SetReadDeadline(time.Now().Add(patience))
				if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatalf("got %v, want ECONNREFUSED", err)
				}
			})
		})
	}
}

// ping sends n echo requests, waits for the answer to each for so long, and counts
// them.
func ping(t *testing.T, host string, size, n int, wait time.Duration) (int, error) {
	a := netip.MustParseAddr(host)
	family, proto, dst := unix.AF_INET, unix.IPPROTO_ICMP, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(a.AsSlice()[:4])})
	request, reply, skip := byte(8), byte(0), 20
	if a.Is6() {
		family, proto, request, reply, skip = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129, 0
		dst = &unix.SockaddrInet6{Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(wait.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	if err := unix.Connect(fd, dst); err != nil {
		t.Fatal(err)
	}
	answers := 0
	for i := range n {
		p := make([]byte, 8+size)
		p[0], p[5], p[7] = request, 42, byte(i)
		for j := range size {
			p[8+j] = byte(j)
		}
		if family == unix.AF_INET { // the kernel sums ICMPv6 itself
			sum := uint32(0)
			for j := 0; j < len(p); j += 2 {
				w := uint32(p[j]) << 8
				if j+1 < len(p) {
					w |= uint32(p[j+1])
				}
				sum += w
			}
			for sum > 0xffff {
				sum = sum>>16 + sum&0xffff
			}
			p[2], p[3] = byte(^sum>>8), byte(^sum)
		}
		if err := unix.Sendto(fd, p, 0, nil); err != nil {
			return answers, err
		}
		buf := make([]byte, 64<<10)
		answered := false
		for !answered {
			m, err := unix.Read(fd, buf)
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				return answers, err
			}
			got := buf[skip:m] // of what else comes by this protocol too
			answered = got[0] == reply && bytes.Equal(got[8:], p[8:]) && got[7] == byte(i)
		}
		if answered {
			answers++
		}
	}
	return answers, nil
}

func TestEcho(t *testing.T) {
	newWorld(t, 65520)
	for _, tt := range []struct {
		name, host string
		size, want int
	}{
		{"alive", service, 56, 3},
		{"alive, large", service, 20000, 3},
		{"alive, IPv6", service6, 56, 3},
		{"dead", dead, 56, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wait := patience
			if tt.want == 0 {
				wait = 300 * time.Millisecond
			}
			got, err := ping(t, tt.host, tt.size, 3, wait)
			if err != nil || got != tt.want {
				t.Fatalf("%d answers, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func TestServerInside(t *testing.T) {
	w := newWorld(t, 65520)
	l, err := w.stack.ListenTCP(netip.AddrPortFrom(local, 53))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	})
	c := dial(t, local.String(), "53")
	_, _ = c.Write([]byte("dns"))
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "dns" {
		t.Fatalf("%q, %v", b, err)
	}
	_ = l.Close()
	wg.Wait()
}

func TestManyConnections(t *testing.T) {
	w := newWorld(t, 65520)
	port := serve(t, "127.0.0.1", echoServer)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(service, port), patience)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			msg := fmt.Sprint("connection ", i)
			_, _ = c.Write([]byte(msg))
			_ = c.(*net.TCPConn).CloseWrite()
			if b, err := io.ReadAll(c); err != nil || string(b) != msg {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(patience)
	for w.stack.Flows() != 0 || w.near.NumStreams() != 0 || runtime.NumGoroutine() > before+5 {
		if time.Now().After(deadline) {
			t.Fatalf("%d flows, %d streams, %d goroutines (before: %d)", w.stack.Flows(), w.near.NumStreams(), runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The application gives up while its SYN waits: nothing may stay behind.
func TestGivenUp(t *testing.T) {
	w := newWorld(t, 65520)
	_, _ = net.DialTimeout("tcp", net.JoinHostPort(silent, "80"), 100*time.Millisecond)
	if w.stack.Flows() != 0 {
		t.Errorf("%d flows", w.stack.Flows())
	}
} // and the leak check of TestMain has the last word

// BenchmarkPath measures what the README states. Run it with -run ^$.
func BenchmarkPath(b *testing.B) {
	for _, mtu := range []int{1500, 65520} {
		for _, dir := range []string{"up", "down"} {
			b.Run(fmt.Sprintf("mtu=%d/bulk-%s", mtu, dir), func(b *testing.B) {
				newWorld(b, mtu)
				block := make([]byte, 256<<10)
				var received atomic.Int64
				done := make(chan struct{})
				total := int64(b.N) * int64(len(block))
				port := serve(b, "127.0.0.1", func(c *net.TCPConn) {
					defer c.Close()
					if dir == "up" {
						n, _ := io.Copy(io.Discard, c)
						received.Store(n)
						close(done)
						return
					}
					for range b.N {
						if _, err := c.Write(block); err != nil {
							return
						}
					}
				})
				c := dial(b, service, port)
				_ = c.SetDeadline(time.Time{})
				b.SetBytes(int64(len(block)))
				before := cpu()
				b.ResetTimer()
				if dir == "up" {
					for range b.N {
						if _, err := c.Write(block); err != nil {
							b.Fatal(err)
						}
					}
					_ = c.CloseWrite()
					<-done
				} else {
					n, _ := io.Copy(struct{ io.Writer }{io.Discard}, c)
					received.Store(n)
				}
				b.StopTimer()
				if received.Load() != total {
					b.Fatalf("%d of %d bytes", received.Load(), total)
				}
				gbit := float64(total) * 8 / 1e9
				b.ReportMetric(gbit/b.Elapsed().Seconds(), "Gbit/s")
				b.ReportMetric((cpu()-before).Seconds()*100/gbit, "cs/Gbit")
			})
		}
		b.Run(fmt.Sprintf("mtu=%d/request-response", mtu), func(b *testing.B) {
			newWorld(b, mtu)
			c := dial(b, service, serve(b, "127.0.0.1", echoServer))
			_ = c.SetDeadline(time.Time{})
			buf := make([]byte, 64)
			for b.Loop() {
				_, _ = c.Write(buf)
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("mtu=%d/datagram-to-server-inside", mtu), func(b *testing.B) {
			w := newWorld(b, mtu)
			pc, err := w.stack.ListenUDP(netip.AddrPortFrom(local, 53))
			if err != nil {
				b.Fatal(err)
			}
			defer pc.Close()
			go func() {
				buf := make([]byte, 2048)
				for {
					n, a, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = pc.WriteTo(buf[:n], a)
				}
			}()
			c, err := net.Dial("udp", netip.AddrPortFrom(local, 53).String())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 64)
			for b.Loop() {
				_, _ = c.Write(buf)
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("mtu=%d/connect", mtu), func(b *testing.B) {
			newWorld(b, mtu)
			port := serve(b, "127.0.0.1", echoServer)
			for b.Loop() {
				c, err := net.Dial("tcp", net.JoinHostPort(service, port))
				if err != nil {
					b.Fatal(err)
				}
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
		})
	}
}

func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Last words and a reset: what was sent before it arrives before it.
func TestBytesBeforeReset(t *testing.T) {
	newWorld(t, 65520)
	type end struct {
		n   int64
		err error
	}
	ends := make(chan end, 1)
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("ready"))
		n, err := io.Copy(io.Discard, c)
		ends <- end{n, err}
	})
	for i := range 200 {
		c := dial(t, service, port)
		if _, err := io.ReadFull(c, make([]byte, len("ready"))); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetLinger(0)
		_ = c.Close()
		select {
		case e := <-ends:
			if e.n != 100 || !errors.Is(e.err, syscall.ECONNRESET) {
				t.Fatalf("connection %d: %d bytes, then %v", i, e.n, e.err)
			}
		case <-time.After(patience):
			t.Fatalf("connection %d: nothing arrived", i)
		}
	}
}

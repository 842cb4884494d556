package port

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/tunnel"
)

// handler is the far end of a real session: it echoes in capitals on any port
// but refused, which it refuses, and slow, on which it says nothing.
func handler(t *testing.T, refused, slow uint16) *tunnel.Session {
	t.Helper()
	a, b := net.Pipe()
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	t.Cleanup(func() { near.Close(); far.Close() })
	go func() {
		for {
			r, err := far.Accept(context.Background())
			if err != nil {
				return
			}
			if r.Header.Dst.Port() == refused || r.Header.Engagement != "e" || !r.Header.Src.IsValid() {
				r.Refuse(tunnel.CodeRefused, "")
				continue
			}
			s, err := r.Accept()
			if err != nil {
				continue
			}
			go func() {
				buf := make([]byte, 64<<10)
				for r.Header.Dst.Port() != slow {
					n, err := s.Read(buf)
					if err != nil {
						_ = s.CloseWrite()
						return
					}
					_, _ = s.Write([]byte(strings.ToUpper(string(buf[:n]))))
				}
			}()
		}
	}()
	return near
}

type down struct{}

func (down) Open(context.Context, tunnel.Header) (*tunnel.Stream, error) {
	return nil, errors.New("down")
}

func (down) Begin(tunnel.Header) (tunnel.Opening, error) {
	return tunnel.Opening{}, errors.New("down")
}

// free are ports that nobody listens on, for TCP.
func free(t *testing.T, n int) []uint16 {
	t.Helper()
	var out []uint16
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	return out
}

func dial(t *testing.T, network string, port uint16) net.Conn {
	t.Helper()
	c, err := net.Dial(network, "127.0.0.1:"+strconv.Itoa(int(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

func listening(t *testing.T, o Opener, ports ...Port) *Set {
	t.Helper()
	s := NewSet("e", o, slog.New(slog.DiscardHandler))
	if err := s.Listen(ports); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestTCPHalfClose(t *testing.T) {
	p := free(t, 1)[0]
	listening(t, handler(t, 0, 0), Port{p, TCP})
	c := dial(t, "tcp", p)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "HELLO" {
		t.Errorf("%q, %v", b, err)
	}
}

// A refusal is a reset: the caller must never take it for an orderly, empty answer.
func TestRefusalIsAReset(t *testing.T) {
	p := free(t, 2)
	listening(t, handler(t, p[0], 0), Port{p[0], TCP})
	listening(t, down{}, Port{p[1], TCP})
	for _, port := range p {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(port)))
		if err == nil { // the reset may even be quicker than Dial
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, err = io.ReadAll(c)
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("port %d: %v", port, err)
		}
	}
}

func TestUDPFlowsAreApart(t *testing.T) {
	p := free(t, 1)[0]
	s := listening(t, handler(t, 0, 0), Port{p, UDP}, Port{p, TCP}) // both on one number
	a, b := dial(t, "udp", p), dial(t, "udp", p)
	for _, m := range []string{"one", "two", strings.Repeat("x", 8000)} {
		for i, c := range []net.Conn{a, b} {
			msg := m + strconv.Itoa(i)
			if _, err := io.WriteString(c, msg); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 10000)
			n, err := c.Read(buf)
			if err != nil || string(buf[:n]) != strings.ToUpper(msg) {
				t.Fatalf("%q: %q, %v", msg, buf[:n], err)
			}
		}
	}
	if n := s.Open(); n != 2 {
		t.Errorf("%d flows, want one for each peer", n)
	}
}

// On SIGTERM open flows may end, new ones are refused, and the grace period is
// kept whatever they do.
func TestDrain(t *testing.T) {
	p := free(t, 2)
	s := listening(t, handler(t, 0, p[1]), Port{p[0], TCP}, Port{p[1], TCP})
	open, stuck := dial(t, "tcp", p[0]), dial(t, "tcp", p[1])
	if _, err := io.WriteString(open, "a"); err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(open, one); err != nil {
		t.Fatal(err)
	}
	for s.Open() < 2 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { s.Drain(ctx); close(done) }()
	for {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(p[0])))
		if err != nil {
			break // no longer listening
		}
		c.Close()
		time.Sleep(time.Millisecond)
	}
	if _, err := io.WriteString(open, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(open, one); err != nil || one[0] != 'B' {
		t.Errorf("an open flow while draining: %q, %v", one, err)
	}
	open.Close()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("draining outlives the grace period")
	}
	if _, err := io.ReadAll(stuck); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what would not end: %v, want a reset", err)
	}
	if s.Open() != 0 {
		t.Errorf("%d flows left", s.Open())
	}
}

func TestBusyPortIsNamed(t *testing.T) {
	p := free(t, 1)[0]
	listening(t, down{}, Port{p, TCP})
	s := NewSet("e", down{}, slog.New(slog.DiscardHandler))
	if err := s.Listen([]Port{{p, TCP}}); err == nil || !strings.Contains(err.Error(), strconv.Itoa(int(p))) {
		t.Errorf("%v", err)
	}
}

// Connections that are there already when the agent comes to take them go on in the
// order in which they were opened.
func TestOrder(t *testing.T) {
	a, b := net.Pipe()
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	defer near.Close()
	defer far.Close()
	s := NewSet("e", near, slog.New(slog.DiscardHandler))
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := uint16(l.Addr().(*net.TCPAddr).Port)
	var all []net.Addr
	for range 20 { // none of which waits for longer than a turn is worth, on a loaded machine either
		all = append(all, dial(t, "tcp", at).LocalAddr())
	}
	s.keep(l)
	s.accepting.Go(func() { s.accept(l.(*net.TCPListener), at, nil) })
	for i, a := range all {
		r, err := far.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r.Header.Src.String() != a.String() {
			t.Errorf("number %d is %v, want %v", i, r.Header.Src, a)
		}
		r.Refuse(tunnel.CodeRefused, "")
	}
}

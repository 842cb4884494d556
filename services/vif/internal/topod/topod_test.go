package topod

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"berth.dev/tunnel"
)

// pod is the far end of a real session: it shouts, and refuses port refused.
func pod(t *testing.T, refused uint16) *tunnel.Session {
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
			if r.Header.Dst.Port() == refused || r.Header.Engagement != "e" || !r.Header.Dst.Addr().IsLoopback() {
				r.Refuse(tunnel.CodeRefused, "")
				continue
			}
			s, err := r.Accept()
			if err != nil {
				continue
			}
			go func() {
				buf := make([]byte, 1000)
				for {
					n, err := s.Read(buf)
					if err != nil {
						_ = s.CloseWrite()
						return
					}
					_, _ = s.Write(bytes.ToUpper(buf[:n]))
				}
			}()
		}
	}()
	return near
}

func free(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func say(t *testing.T, network string, port uint16) (string, error) {
	t.Helper()
	c, err := net.Dial(network, "127.0.0.1:"+strconv.Itoa(int(port)))
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func TestToPod(t *testing.T) {
	refused, p := free(t), free(t)
	tab := New(pod(t, refused), slog.New(slog.DiscardHandler))
	defer tab.Close()
	ports := []Port{{Number: p}, {Number: p, UDP: true}, {Number: refused}}
	for range 2 { // the second changes nothing
		if err := tab.Set("e", ports); err != nil {
			t.Fatal(err)
		}
	}
	for _, network := range []string{"tcp", "udp", "udp"} {
		if got, err := say(t, network, p); err != nil || got != "HELLO" {
			t.Errorf("%s: %q, %v", network, got, err)
		}
	}
	if _, err := say(t, "tcp", refused); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what the pod refuses: %v, want a reset", err)
	}
	if err := tab.Set("other", []Port{{Number: free(t)}, {Number: p}}); err == nil {
		t.Error("a port is had twice")
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(p)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tab.Remove("e")
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(c); errors.Is(err, context.DeadlineExceeded) {
		t.Error("an open flow outlives its engagement")
	}
	if _, err := say(t, "tcp", p); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end: %v", err)
	}
}

// Connections go to the manager in the order in which they were opened.
func TestOrder(t *testing.T) {
	a, b := net.Pipe()
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	defer near.Close()
	defer far.Close()
	tab := New(near, slog.New(slog.DiscardHandler))
	defer tab.Close()
	p := free(t)
	if err := tab.Set("e", []Port{{Number: p}}); err != nil {
		t.Fatal(err)
	}
	const n = 200
	for i := range n {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(int(p)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte{byte(i)})
	}
	for i := range n {
		r, err := far.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		said := make([]byte, 1)
		if _, err := io.ReadFull(s, said); err != nil || said[0] != byte(i) {
			t.Errorf("connection %d is the manager's number %d: %v", said[0], i, err)
		}
	}
}

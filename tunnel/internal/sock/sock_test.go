//go:build linux

package sock

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// pair is the two ends of a TCP connection.
func pair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

func TestOf(t *testing.T) {
	a, _ := net.Pipe()
	if Of(a) != nil {
		t.Error("a pipe is no socket")
	}
	c, _ := pair(t)
	if Of(struct{ *net.TCPConn }{c}) != nil {
		t.Error("what has a socket inside may read and write otherwise")
	}
}

// Small and large pieces arrive whole, whether the other end reads at once or not.
func TestReadWrite(t *testing.T) {
	a, b := pair(t)
	sent := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(sent)
	wrote := make(chan error, 1)
	go func() {
		s := Of(a)
		for p := sent; len(p) > 0; {
			n := min(len(p), 1+rand.IntN(100_000))
			if m, err := s.Write(p[:n]); err != nil || m != n {
				wrote <- errors.Join(err, errors.New("short write"))
				return
			}
			p = p[n:]
		}
		wrote <- a.CloseWrite()
	}()
	got, err := io.ReadAll(Of(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes arrived, of %d sent, and not the same", len(got), len(sent))
	}
}

// A socket that is full takes nothing and does not wait; one that has room again does.
func TestTryWrite(t *testing.T) {
	a, b := pair(t)
	s, piece := Of(a), make([]byte, 64<<10)
	total := 0
	for {
		n, err := s.TryWrite(piece)
		if err != nil {
			t.Fatal(err)
		}
		if total += n; n == 0 {
			break
		}
	}
	if _, err := io.CopyN(io.Discard, b, int64(total)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Write(piece[:10]); n != 10 || err != nil {
		t.Errorf("after it was emptied: %d, %v", n, err)
	}
}

func TestErrors(t *testing.T) {
	a, b := pair(t)
	s := Of(a)
	_ = a.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	_ = a.SetReadDeadline(time.Time{})
	_ = b.SetLinger(0)
	_ = b.Close()
	var as *net.OpError
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || !errors.As(err, &as) {
		t.Errorf("after a reset: %v", err)
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after a reset: %v", err)
	}
	read := make(chan error, 1)
	c, _ := pair(t)
	go func() { _, err := Of(c).Read(make([]byte, 1)); read <- err }()
	_ = c.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := Of(a).TryWrite(nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

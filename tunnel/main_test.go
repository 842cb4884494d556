package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tcpPair returns two ends of a loopback TCP connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		c   net.Conn
		err error
	}
	got := make(chan result, 1)
	go func() { c, err := ln.Accept(); got <- result{c, err} }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { c.Close(); r.c.Close() })
	return c.(*net.TCPConn), r.c.(*net.TCPConn)
}

// links are the ways in which the tests connect two sessions.
var links = map[string]func(t testing.TB, cfg Config) (client, server *Session){
	"tcp": func(t testing.TB, cfg Config) (*Session, *Session) {
		a, b := tcpPair(t)
		return NewSession(a, true, cfg), NewSession(b, false, cfg)
	},
	"pipe": func(t testing.TB, cfg Config) (*Session, *Session) {
		a, b := net.Pipe()
		return NewSession(a, true, cfg), NewSession(b, false, cfg)
	},
	"tls": func(t testing.TB, cfg Config) (*Session, *Session) {
		a, b := tcpPair(t)
		return tlsSessions(t, a, b, cfg)
	},
}

func tlsSessions(t testing.TB, a, b net.Conn, cfg Config) (*Session, *Session) {
	t.Helper()
	clientID, serverID := identity(t), identity(t)
	got := make(chan *Session, 1)
	go func() {
		s, _, _, err := Serve(t.Context(), b, serverID, welcomeAll, cfg)
		if err != nil {
			t.Error(err)
		}
		got <- s
	}()
	c, _, err := Dial(t.Context(), a, clientID, serverID.Pin(), Hello{Role: "test"}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, <-got
}

func welcomeAll(context.Context, Hello, Pin) (*Welcome, error) { return &Welcome{}, nil }

func identity(t testing.TB) *Identity {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// link connects two sessions and closes them with the test.
func link(t testing.TB, name string, cfg Config) (client, server *Session) {
	t.Helper()
	client, server = links[name](t, cfg)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// eachLink runs f over every kind of connection.
func eachLink(t *testing.T, cfg Config, f func(t *testing.T, client, server *Session)) {
	for name := range links {
		t.Run(name, func(t *testing.T) {
			client, server := link(t, name, cfg)
			f(t, client, server)
		})
	}
}

// streamPair opens a stream and accepts it.
func streamPair(t testing.TB, client, server *Session, kind Kind) (c, s *Stream) {
	t.Helper()
	got := make(chan *Stream, 1)
	go func() {
		r, err := server.Accept(context.Background())
		if err != nil {
			t.Error(err)
			got <- nil
			return
		}
		st, err := r.Accept()
		if err != nil {
			t.Error(err)
		}
		got <- st
	}()
	c, err := client.Open(t.Context(), header(kind))
	if err != nil {
		t.Fatal(err)
	}
	if s = <-got; s == nil {
		t.FailNow()
	}
	return c, s
}

func header(kind Kind) Header {
	return Header{Kind: kind, Dst: netip.MustParseAddrPort("10.1.2.3:80")}
}

// serve accepts every stream of s and hands it to f, until the session ends.
func serve(s *Session, f func(*Stream)) {
	for {
		r, err := s.Accept(context.Background())
		if err != nil {
			return
		}
		st, err := r.Accept()
		if err != nil {
			continue
		}
		go f(st)
	}
}

func echo(st *Stream) {
	defer st.Close()
	_, _ = io.Copy(st, st)
}

func wantErr(t testing.TB, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: got error %v, want one that matches %v", what, err, target)
	}
}

func mustWrite(t testing.TB, w io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatalf("write %q: %v", s, err)
	}
}

func mustRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("read: got %q, %v; want %q", b, err, want)
	}
}

// eventually waits for a state that no call reports.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 2000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

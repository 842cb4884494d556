package door

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth.dev/files"
	"berth.dev/tunnel"
)

// vif is the far end: it lets key in, has the engagement "e" with the token
// "secret" and echoes its streams unless the agent is away.
type vif struct {
	t        *testing.T
	id       *tunnel.Identity
	key      tunnel.Pin
	addr     string
	away     atomic.Bool
	sessions atomic.Int64 // ever let in
	live     chan *tunnel.Session
	conns    chan net.Conn // of those
	lost     chan files.LostRequest
}

func newVIF(t *testing.T, key tunnel.Pin) *vif {
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &vif{t: t, id: id, key: key, addr: l.Addr().String(), live: make(chan *tunnel.Session, 100), conns: make(chan net.Conn, 100), lost: make(chan files.LostRequest, 10)}
	t.Cleanup(func() {
		l.Close()
		for len(v.live) > 0 {
			(<-v.live).Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go v.serve(c)
		}
	}()
	return v
}

func (v *vif) serve(c net.Conn) {
	s, _, _, err := tunnel.Serve(context.Background(), c, v.id, func(_ context.Context, h tunnel.Hello, p tunnel.Pin) (*tunnel.Welcome, error) {
		if p != v.key || h.Role != files.RoleVolumes {
			return nil, &tunnel.RPCError{Code: "permission_denied", Message: "not for this key"}
		}
		return &tunnel.Welcome{}, nil
	}, tunnel.Config{})
	if err != nil {
		return
	}
	v.sessions.Add(1)
	v.live <- s
	v.conns <- c
	var reg tunnel.Registry
	tunnel.Handle(&reg, files.MethodToken, func(_ context.Context, q files.TokenRequest) (files.TokenAnswer, error) {
		if q.Engagement != "e" {
			return files.TokenAnswer{}, &tunnel.RPCError{Code: "not_found", Message: "no engagement"}
		}
		return files.TokenAnswer{Token: "secret"}, nil
	})
	tunnel.Handle(&reg, files.MethodLost, func(_ context.Context, q files.LostRequest) (files.LostAnswer, error) {
		v.lost <- q
		return files.LostAnswer{}, nil
	})
	for {
		r, err := s.Accept(context.Background())
		switch {
		case err != nil:
			return
		case r.Header.Kind == tunnel.KindRPC:
			go tunnel.ServeRPC(context.Background(), r, &reg)
		case r.Header.Engagement != "e":
			r.Refuse(tunnel.CodeNotFound, "")
		case v.away.Load():
			r.Refuse(tunnel.CodeUnreachable, "no agent")
		default:
			if st, err := r.Accept(); err == nil {
				go func() { _, _ = io.Copy(st, st); st.Close() }()
			}
		}
	}
}

func (v *vif) target() Target { return Target{v.addr, string(v.id.Pin()), "e"} }

func bench(t *testing.T) (*Dialer, *vif) {
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	d := New(id, "test", slog.New(slog.DiscardHandler))
	t.Cleanup(d.Close)
	return d, newVIF(t, id.Pin())
}

func TestOneSessionForAll(t *testing.T) {
	d, v := bench(t)
	if got, err := d.Token(t.Context(), v.target()); got != "secret" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	var conns []net.Conn
	for range 5 {
		c, err := d.Dial(t.Context(), v.target())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	d.Release(v.target()) // others still use it
	b := make([]byte, 1)
	for _, c := range conns {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	s := <-v.live
	for deadline := time.Now().Add(5 * time.Second); ; d.Release(v.target()) { // a stream is over when both ends have ended it
		select {
		case <-s.Done():
		case <-time.After(10 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("the idle session is not closed")
			}
			continue
		}
		break
	}
	if _, err := d.Token(t.Context(), v.target()); err != nil {
		t.Errorf("after the idle session was closed: %v", err)
	}
	if n := v.sessions.Load(); n != 2 {
		t.Errorf("%d sessions, want one, and one after that was closed", n)
	}
}

// What does not mend itself fails at once, with the far side's words.
func TestPermanent(t *testing.T) {
	d, v := bench(t)
	other, _ := tunnel.NewIdentity()
	var pin *tunnel.PinError
	x := v.target()
	x.Pin = string(other.Pin())
	if _, err := d.Dial(t.Context(), x); !errors.As(err, &pin) {
		t.Errorf("another door: %v", err)
	}
	x = v.target()
	x.Engagement = "over"
	if _, err := d.Dial(t.Context(), x); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("an engagement that is over: %v", err)
	}
	var said *tunnel.RPCError
	if _, err := d.Token(t.Context(), x); !errors.As(err, &said) || said.Code != "not_found" {
		t.Errorf("its token: %v", err)
	}
	stranger := New(other, "test", slog.New(slog.DiscardHandler))
	defer stranger.Close()
	if _, err := stranger.Dial(t.Context(), v.target()); !errors.As(err, &said) || said.Code != "permission_denied" {
		t.Errorf("a stranger's key: %v", err)
	}
}

// What may mend itself is waited for, as long as the caller wants.
func TestWaits(t *testing.T) {
	d, v := bench(t)
	v.away.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx, v.target()); !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the agent is away: %v", err)
	}
	time.AfterFunc(200*time.Millisecond, func() { v.away.Store(false) })
	c, err := d.Dial(t.Context(), v.target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	(<-v.conns).Close() // without a goodbye
	if c, err := d.Dial(t.Context(), v.target()); err != nil {
		t.Errorf("after the session was cut: %v", err)
	} else {
		c.Close()
	}
}

// A door that has said goodbye is not waited for: it has ended for good.
func TestGoodbye(t *testing.T) {
	d, v := bench(t)
	c, err := d.Dial(t.Context(), v.target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	(<-v.live).Close()
	if _, err := d.Dial(t.Context(), v.target()); !errors.Is(err, files.ErrGone) {
		t.Errorf("got %v", err)
	}
}

// What is lost is told by a session of its own, where there is none any more.
func TestLost(t *testing.T) {
	d, v := bench(t)
	if err := d.Lost(t.Context(), v.target(), "was killed"); err != nil {
		t.Fatal(err)
	}
	if q := <-v.lost; q != (files.LostRequest{Engagement: "e", Cause: "was killed"}) {
		t.Errorf("%+v", q)
	}
	select {
	case <-(<-v.live).Done():
	case <-time.After(5 * time.Second):
		t.Error("the session stays, though nothing uses it")
	}
}

package door

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"time"

	"berth.dev/files"
	"berth.dev/tunnel"

	"go.uber.org/goleak"
)

// manager is the far end: it echoes the streams of engagement "e".
type manager struct{ s *tunnel.Session }

func (m manager) Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	return m.s.Open(ctx, h)
}

func newManager(t *testing.T) manager {
	a, b := net.Pipe()
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	go func() {
		for {
			r, err := far.Accept(context.Background())
			if err != nil {
				return
			}
			if h := r.Header; h.Kind != tunnel.KindFiles || h.Engagement != "e" || h.Method != "" {
				r.Refuse(tunnel.CodeUnreachable, "no agent")
				continue
			}
			st, err := r.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(st, st)
				_ = st.CloseWrite()
			}()
		}
	}()
	t.Cleanup(func() { near.Close(); far.Close() })
	return manager{near}
}

type bench struct {
	t    *testing.T
	door *Door
	addr string
}

func open(t *testing.T) *bench {
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	d := New(id, newManager(t), slog.New(slog.DiscardHandler))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the door outlives its context")
		}
	})
	return &bench{t, d, l.Addr().String()}
}

func (b *bench) dial(key *tunnel.Identity, role string, pin tunnel.Pin) (*tunnel.Session, error) {
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		b.t.Fatal(err)
	}
	s, _, err := tunnel.Dial(b.t.Context(), c, key, pin, tunnel.Hello{Role: role}, tunnel.Config{})
	if err == nil {
		b.t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func TestWhoComesIn(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("", func(t *testing.T) {
		b := open(t)
		mine, _ := tunnel.NewIdentity()
		other, _ := tunnel.NewIdentity()
		own := tunnel.Pin(b.door.Pin())
		if _, err := b.dial(mine, files.RoleVolumes, own); err == nil {
			t.Error("came in before anything was granted")
		}
		b.door.Grant("e", Grant{"secret", mine.Pin()})
		b.door.Grant("f", Grant{"secret2", other.Pin()})
		stranger, _ := tunnel.NewIdentity()
		if _, err := b.dial(stranger, files.RoleVolumes, own); err == nil {
			t.Error("a stranger came in")
		}
		if _, err := b.dial(mine, "vif", own); err == nil {
			t.Error("came in in another role")
		}
		var wrong *tunnel.PinError
		if _, err := b.dial(mine, files.RoleVolumes, stranger.Pin()); !errors.As(err, &wrong) {
			t.Errorf("the door's own key is not looked at: %v", err)
		}
		s, err := b.dial(mine, files.RoleVolumes, own)
		if err != nil {
			t.Fatal(err)
		}
		token := func(id string) (string, error) {
			a, err := tunnel.Call[files.TokenRequest, files.TokenAnswer](t.Context(), s, files.MethodToken, files.TokenRequest{Engagement: id})
			return a.Token, err
		}
		if got, err := token("e"); got != "secret" || err != nil {
			t.Errorf("token %q, %v", got, err)
		}
		for _, id := range []string{"f", "g"} { // another plugin's, and nobody's
			if got, err := token(id); got != "" || err == nil {
				t.Errorf("engagement %s: token %q, %v", id, got, err)
			}
			if _, err := s.Open(t.Context(), tunnel.Header{Kind: tunnel.KindFiles, Engagement: id}); !errors.Is(err, syscall.ENOENT) {
				t.Errorf("engagement %s: %v", id, err)
			}
		}
		if _, err := s.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Engagement: "e"}); !errors.Is(err, syscall.EACCES) {
			t.Errorf("a TCP flow: %v", err)
		}
	})
}

// A stream ends as the far side ends it, and when the engagement is revoked.
func TestStreams(t *testing.T) {
	b := open(t)
	mine, _ := tunnel.NewIdentity()
	b.door.Grant("e", Grant{"secret", mine.Pin()})
	b.door.Grant("away", Grant{"secret", mine.Pin()})
	s, err := b.dial(mine, files.RoleVolumes, tunnel.Pin(b.door.Pin()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), tunnel.Header{Kind: tunnel.KindFiles, Engagement: "away"}); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("without an agent: %v", err)
	}
	echo := func() *tunnel.Stream {
		t.Helper()
		st, err := s.Open(t.Context(), tunnel.Header{Kind: tunnel.KindFiles, Engagement: "e", Method: "what the caller says does not get further"})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := echo()
	if _, err := st.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	st.CloseWrite()
	if got, err := io.ReadAll(st); string(got) != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	st = echo()
	b.door.Grant("e", Grant{"secret", mine.Pin()}) // repeated: nothing happens
	if _, err := st.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
		t.Errorf("a repeated grant cut the stream: %v", err)
	}
	b.door.Revoke("e")
	_ = st.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the end: %v", err)
	}
}

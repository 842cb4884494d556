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
	lost chan string // engagement and cause
}

func open(t *testing.T) *bench {
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	lost := make(chan string, 10)
	d := New(id, newManager(t), func(_ context.Context, engagement, cause string) { lost <- engagement + " " + cause }, slog.New(slog.DiscardHandler))
	d.within = time.Second
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
	return &bench{t, d, l.Addr().String(), lost}
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

// A handler's volumes are lost when the plugin says so of an engagement of its
// own, or when it is cut off from them and does not come back. They are not when
// it closes them, comes back, or when the engagement has ended.
func TestLost(t *testing.T) {
	mine, _ := tunnel.NewIdentity()
	other, _ := tunnel.NewIdentity()
	begin := func(t *testing.T) (*bench, func() (net.Conn, *tunnel.Session)) {
		b := open(t)
		b.door.Grant("e", Grant{"secret", mine.Pin()})
		b.door.Grant("f", Grant{"secret", other.Pin()})
		return b, func() (net.Conn, *tunnel.Session) {
			t.Helper()
			c, err := net.Dial("tcp", b.addr)
			if err != nil {
				t.Fatal(err)
			}
			s, _, err := tunnel.Dial(t.Context(), c, mine, tunnel.Pin(b.door.Pin()), tunnel.Hello{Role: files.RoleVolumes}, tunnel.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return c, s
		}
	}
	use := func(t *testing.T, s *tunnel.Session) *tunnel.Stream {
		t.Helper()
		st, err := s.Open(t.Context(), tunnel.Header{Kind: tunnel.KindFiles, Engagement: "e"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return st
	}
	for _, x := range []struct {
		name string
		do   func(t *testing.T, b *bench, dial func() (net.Conn, *tunnel.Session))
		want string
	}{
		{"the plugin says so", func(t *testing.T, _ *bench, dial func() (net.Conn, *tunnel.Session)) {
			_, s := dial()
			for id, ok := range map[string]bool{"e": true, "f": false, "g": false} {
				_, err := tunnel.Call[files.LostRequest, files.LostAnswer](t.Context(), s, files.MethodLost, files.LostRequest{Engagement: id, Cause: "was killed"})
				if (err == nil) != ok {
					t.Errorf("engagement %s: %v", id, err)
				}
			}
		}, "e was killed"},
		{"it is killed", func(t *testing.T, _ *bench, dial func() (net.Conn, *tunnel.Session)) {
			c, s := dial()
			use(t, s)
			use(t, s)
			c.Close()
		}, "e is gone"},
		{"it is cut off and comes back", func(t *testing.T, _ *bench, dial func() (net.Conn, *tunnel.Session)) {
			c, s := dial()
			use(t, s)
			use(t, s)
			c.Close()
			_, s = dial()
			use(t, s)
		}, ""},
		{"it comes back before anybody knows that it was away", func(t *testing.T, _ *bench, dial func() (net.Conn, *tunnel.Session)) {
			c, s := dial()
			use(t, s)
			_, s = dial()
			use(t, s)
			c.Close()
		}, ""},
		{"the last volume is unmounted", func(t *testing.T, _ *bench, dial func() (net.Conn, *tunnel.Session)) {
			_, s := dial()
			st := use(t, s)
			st.Close()
			s.Close()
		}, ""},
		{"it uses nothing when it is killed", func(t *testing.T, b *bench, dial func() (net.Conn, *tunnel.Session)) {
			c, s := dial()
			st := use(t, s)
			st.Close()
			open := func() bool {
				b.door.mu.Lock()
				defer b.door.mu.Unlock()
				return b.door.grants["e"].streams > 0
			}
			for open() {
				time.Sleep(time.Millisecond)
			}
			c.Close()
		}, ""},
		{"the engagement ends meanwhile", func(t *testing.T, b *bench, dial func() (net.Conn, *tunnel.Session)) {
			c, s := dial()
			use(t, s)
			c.Close()
			b.door.Revoke("e")
		}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			b, dial := begin(t)
			x.do(t, b, dial)
			var got string
			select {
			case got = <-b.lost:
			case <-time.After(2 * b.door.within):
			}
			if got != x.want || len(b.lost) > 0 {
				t.Errorf("lost: %q and %d more, want %q", got, len(b.lost), x.want)
			}
		})
	}
}

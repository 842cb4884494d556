package link

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"
)

// manager is the far end: real HTTP, TLS and sessions; it takes the token "good".
type manager struct {
	id       *tunnel.Identity
	sessions chan *tunnel.Session
}

func (m *manager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := tunnel.Upgrade(w, r)
	if err != nil {
		return
	}
	s, _, _, err := tunnel.Serve(context.Background(), conn, m.id, func(_ context.Context, h tunnel.Hello, _ tunnel.Pin) (*tunnel.Welcome, error) {
		if h.Role != "agent" || h.Token != "good" {
			return nil, &tunnel.RPCError{Code: "permission_denied", Message: "bad token"}
		}
		return &tunnel.Welcome{}, nil
	}, tunnel.Config{})
	if err == nil {
		m.sessions <- s
	}
}

func TestLinkComesBack(t *testing.T) {
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{id, make(chan *tunnel.Session, 10)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: m}
	go srv.Serve(l)
	defer srv.Close()

	token := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		if err := os.WriteFile(token, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("bad") // kubelet renews it while the agent runs
	own, _ := tunnel.NewIdentity()
	var run, downs atomic.Int32
	k := &Link{Managers: []string{"127.0.0.1:1", l.Addr().String()}, Pin: id.Pin(), Identity: own,
		Hello: func() (tunnel.Hello, error) {
			b, err := os.ReadFile(token)
			return tunnel.Hello{Role: "agent", Token: strings.TrimSpace(string(b))}, err
		},
		Serves: func(e string) bool { return e == "e" },
		Methods: func(reg *tunnel.Registry) {
			tunnel.Handle(reg, lease.MethodAgentRun, func(_ context.Context, q lease.AgentRun) (lease.AgentRun, error) {
				run.Add(1)
				return q, nil
			})
		},
		Down:        func() { downs.Add(1) },
		Environment: func() lease.Environment { return lease.Environment{Env: [][]byte{[]byte("A=1")}} }, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.Run(ctx) }()

	if _, err := k.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP}); !errors.Is(err, ErrDown) {
		t.Errorf("before it is up: %v", err)
	}
	time.AfterFunc(200*time.Millisecond, func() { write("good") })
	for round := range 2 {
		var s *tunnel.Session
		select {
		case s = <-m.sessions:
		case <-time.After(10 * time.Second):
			t.Fatalf("round %d: the agent did not come", round)
		}
		if _, err := tunnel.Call[lease.AgentRun, lease.AgentRun](t.Context(), s, lease.MethodAgentRun, lease.AgentRun{Run: true}); err != nil || run.Load() != int32(round)+1 {
			t.Fatalf("a method of the agent's own: %v", err)
		}
		env, err := tunnel.Call[lease.EnvironmentRequest, lease.Environment](t.Context(), s, lease.MethodAgentEnv, lease.EnvironmentRequest{Engagement: "e"})
		if err != nil || string(env.Env[0]) != "A=1" {
			t.Errorf("environment %q, %v", env.Env, err)
		}
		if _, err := tunnel.Call[lease.EnvironmentRequest, lease.Environment](t.Context(), s, lease.MethodAgentEnv, lease.EnvironmentRequest{Engagement: "x"}); err == nil {
			t.Error("answered for another engagement")
		}
		s.Close() // the manager goes
		for downs.Load() != int32(round)+1 {
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the link outlives its context")
	}
}

func TestAnotherManagerIsNotTrusted(t *testing.T) {
	id, _ := tunnel.NewIdentity()
	other, _ := tunnel.NewIdentity()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: &manager{id, make(chan *tunnel.Session, 1)}}
	go srv.Serve(l)
	defer srv.Close()
	k := &Link{Pin: other.Pin(), Identity: other, Log: slog.New(slog.DiscardHandler)}
	_, err = k.dialOne(t.Context(), l.Addr().String(), tunnel.Hello{Role: "agent", Token: "good"})
	var pin *tunnel.PinError
	if !errors.As(err, &pin) {
		t.Errorf("%v, want a pin error", err)
	}
}

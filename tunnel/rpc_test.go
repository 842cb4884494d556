package tunnel

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
)

type greet struct{ Name string }
type greeting struct{ Text string }

func serveRegistry(s *Session, reg *Registry) {
	for {
		r, err := s.Accept(context.Background())
		if err != nil {
			return
		}
		go ServeRPC(context.Background(), r, reg)
	}
}

func TestRPC(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		reg := &Registry{Translate: func(err error) *RPCError {
			if errors.Is(err, syscall.ENOENT) {
				return &RPCError{Code: "not_found", Message: "translated"}
			}
			return nil
		}}
		Handle(reg, "greet", func(_ context.Context, g greet) (greeting, error) { return greeting{"hello " + g.Name}, nil })
		Handle(reg, "fail", func(context.Context, greet) (greeting, error) {
			return greeting{}, &RPCError{Code: "unavailable", Message: "not now", Hint: "wait"}
		})
		Handle(reg, "enoent", func(context.Context, greet) (struct{}, error) { return struct{}{}, syscall.ENOENT })
		Handle(reg, "plain", func(context.Context, greet) (struct{}, error) { return struct{}{}, errors.New("plain") })
		go serveRegistry(server, reg)

		for _, name := range []string{"Ada", strings.Repeat("x", 100), strings.Repeat("y", 2<<20)} {
			got, err := Call[greet, greeting](t.Context(), client, "greet", greet{name})
			if err != nil || got.Text != "hello "+name {
				t.Errorf("name of %d bytes: %d bytes, %v", len(name), len(got.Text), err)
			}
		}
		for method, want := range map[string]RPCError{
			"fail":   {Code: "unavailable", Message: "not now", Hint: "wait"},
			"enoent": {Code: "not_found", Message: "translated"},
			"plain":  {Code: "internal", Message: "plain"},
		} {
			_, err := Call[greet, greeting](t.Context(), client, method, greet{})
			var e *RPCError
			if !errors.As(err, &e) || *e != want {
				t.Errorf("%s: %v", method, err)
			}
		}
		_, err := Call[greet, greeting](t.Context(), client, "nonesuch", greet{})
		wantErr(t, "unknown method", err, syscall.ENOENT)
		_, err = Call[string, greeting](t.Context(), client, "greet", "not an object")
		var e *RPCError
		if !errors.As(err, &e) || e.Code != "invalid_argument" {
			t.Errorf("bad request: %v", err)
		}
		_, err = Call[greet, greeting](t.Context(), client, "greet", greet{strings.Repeat("z", 5<<20)})
		wantErr(t, "too large", err, syscall.EMSGSIZE)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := Call[greet, greeting](t.Context(), client, "greet", greet{"all"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(t, "streams forgotten", func() bool { return client.NumStreams()+server.NumStreams() == 0 })
	})
}

func TestRPCCancel(t *testing.T) {
	client, server := link(t, "tcp", Config{})
	entered, left := make(chan struct{}), make(chan error, 1)
	reg := &Registry{}
	Handle(reg, "wait", func(ctx context.Context, _ greet) (greeting, error) {
		close(entered)
		<-ctx.Done()
		left <- context.Cause(ctx)
		return greeting{}, ctx.Err()
	})
	go serveRegistry(server, reg)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { _, err := Call[greet, greeting](ctx, client, "wait", greet{}); failed <- err }()
	<-entered
	cancel()
	wantErr(t, "call", <-failed, context.Canceled)
	wantErr(t, "handler", <-left, syscall.ECONNRESET)
}

func TestRPCSessionLost(t *testing.T) {
	client, server := link(t, "tcp", Config{})
	reg := &Registry{}
	Handle(reg, "die", func(context.Context, greet) (greeting, error) {
		go server.Close()
		<-server.Done()
		return greeting{}, nil
	})
	go serveRegistry(server, reg)
	_, err := Call[greet, greeting](t.Context(), client, "die", greet{})
	wantErr(t, "call", err, ErrClosedByPeer)
}

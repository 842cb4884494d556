// Package doortest is a vif and an agent in one, for tests: behind the tunnel's
// handshake, a file server.
package doortest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"berth.dev/files"
	"berth.dev/services/telemount/internal/door"
	"berth.dev/tunnel"
)

// Token is that of the engagement.
const Token = "canary"

// Serve lets in who holds the key of a pin, to the file server of paths.
func Serve(t testing.TB, key tunnel.Pin, paths ...string) door.Target {
	t.Helper()
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	var e files.Export
	for _, p := range paths {
		e.Roots = append(e.Roots, files.Root{Path: p})
	}
	srv := files.NewServer(e, files.TokenIs(Token), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { l.Close(); cancel(); srv.Close(); wg.Wait() })
	var reg tunnel.Registry
	tunnel.Handle(&reg, files.MethodToken, func(context.Context, files.TokenRequest) (files.TokenAnswer, error) {
		return files.TokenAnswer{Token: Token}, nil
	})
	tunnel.Handle(&reg, files.MethodLost, func(context.Context, files.LostRequest) (files.LostAnswer, error) {
		return files.LostAnswer{}, nil
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				s, _, _, err := tunnel.Serve(ctx, c, id, func(_ context.Context, _ tunnel.Hello, p tunnel.Pin) (*tunnel.Welcome, error) {
					if p != key {
						return nil, fmt.Errorf("a stranger")
					}
					return &tunnel.Welcome{}, nil
				}, tunnel.Config{})
				if err != nil {
					return
				}
				defer s.Close()
				for {
					r, err := s.Accept(ctx)
					if err != nil {
						return
					}
					if r.Header.Kind == tunnel.KindRPC {
						wg.Go(func() { _ = tunnel.ServeRPC(ctx, r, &reg) })
					} else if st, err := r.Accept(); err == nil {
						wg.Go(func() { _ = srv.Serve(ctx, st) })
					}
				}
			})
		}
	})
	return door.Target{Door: l.Addr().String(), Pin: string(id.Pin()), Engagement: "e"}
}

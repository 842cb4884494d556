// Package filestest has what tests of the file server's clients share.
package filestest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Listener is loopback TCP that can be cut and kept away.
type Listener struct {
	ln net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	away  bool
	conns map[net.Conn]bool
}

// Listen gives each connection to serve until the test ends, which then waits for
// serve to return: whoever makes it return is to be registered for cleanup later.
func Listen(t testing.TB, serve func(net.Conn)) *Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Listener{ln: ln, conns: map[net.Conn]bool{}}
	l.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.mu.Lock()
			if l.away {
				_ = c.Close()
				l.mu.Unlock()
				continue
			}
			l.conns[c] = true
			l.mu.Unlock()
			l.wg.Go(func() {
				defer func() {
					l.mu.Lock()
					delete(l.conns, c)
					l.mu.Unlock()
				}()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); l.Cut(); l.wg.Wait() })
	return l
}

// Dial connects to it.
func (l *Listener) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", l.ln.Addr().String())
}

// Cut closes all connections.
func (l *Listener) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Close()
		delete(l.conns, c)
	}
}

// SetAway makes it close whatever it accepts.
func (l *Listener) SetAway(away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away = away
}

// Connected tells whether anyone is.
func (l *Listener) Connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns) > 0
}

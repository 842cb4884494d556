// Package link is the agent's tunnel to the manager: dialled, and dialled again
// for as long as the agent lives, whatever ends it.
//
// The agent knows the manager by the pin in its configuration; the manager
// knows the agent by what Hello says, which is asked anew for every dial since
// kubelet renews tokens. Nothing outlives a session: after each arrival the
// manager says again what the agent is to do, and Down is called when a session
// has ended.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"
)

const (
	dialTimeout  = 3 * time.Second // of one address
	firstBackoff = 50 * time.Millisecond
	mostBackoff  = 2 * time.Second
)

// ErrDown: there is no session at the moment.
var ErrDown = errors.New("the manager is not connected")

// Link keeps a session up. Its methods may be called concurrently.
type Link struct {
	Managers    []string // host:port, in order of preference
	Pin         tunnel.Pin
	Identity    *tunnel.Identity
	Hello       func() (tunnel.Hello, error)
	Serves      func(engagement string) bool // who may ask for the environment
	Environment func() lease.Environment
	// Files serves a stream of files to its end; nil refuses them.
	Files func(context.Context, *tunnel.Request)
	// ToPod takes a flow to a port of the pod, and returns what serves it to its end;
	// nil refuses them.
	ToPod   func(context.Context, *tunnel.Request) (serve func())
	Methods func(*tunnel.Registry) // what else the manager may call
	Up      func()                 // a session is there; may be nil
	Down    func()                 // it has ended
	Log     *slog.Logger

	mu      sync.Mutex
	session *tunnel.Session
}

// Open opens a flow to the handler.
func (l *Link) Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return nil, ErrDown
	}
	return s.Open(ctx, h)
}

// Begin is Open without waiting for the answer.
func (l *Link) Begin(h tunnel.Header) (tunnel.Opening, error) {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return tunnel.Opening{}, ErrDown
	}
	return s.Begin(h)
}

// Run keeps the link up until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	backoff := firstBackoff
	said := ""
	for ctx.Err() == nil {
		began := time.Now()
		s, err := l.dial(ctx)
		if err == nil {
			l.Log.Info("arrived at the manager")
			said = ""
			l.serve(ctx, s)
			err = s.Err()
		}
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > mostBackoff {
			backoff = firstBackoff
		}
		if msg := fmt.Sprint(err); msg != said { // once, not at every attempt
			l.Log.Warn("no link to the manager; dialling again", "err", msg)
			said = msg
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff)): // a restarted manager is not met by all agents at once
		}
		backoff = min(2*backoff, mostBackoff)
	}
	return nil
}

func (l *Link) dial(ctx context.Context) (*tunnel.Session, error) {
	hello, err := l.Hello()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range l.Managers {
		s, err := l.dialOne(ctx, addr, hello)
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("dial %s: %w", addr, err))
	}
	return nil, errors.Join(errs...)
}

func (l *Link) dialOne(ctx context.Context, addr string, hello tunnel.Hello) (*tunnel.Session, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	uctx, cancel := context.WithTimeout(ctx, dialTimeout)
	up, err := tunnel.RequestUpgrade(uctx, conn, addr, tunnel.Path, nil)
	cancel()
	if err != nil {
		return nil, err
	}
	s, _, err := tunnel.Dial(ctx, up, l.Identity, l.Pin, hello, tunnel.Config{Logger: l.Log})
	return s, err
}

// serve holds the session until it ends, and answers the manager's calls.
func (l *Link) serve(ctx context.Context, s *tunnel.Session) {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	l.set(s)
	if l.Up != nil {
		l.Up()
	}
	defer l.Down()
	defer l.set(nil)
	var reg tunnel.Registry
	tunnel.Handle(&reg, lease.MethodAgentEnv, func(_ context.Context, q lease.EnvironmentRequest) (lease.Environment, error) {
		if !l.Serves(q.Engagement) {
			return lease.Environment{}, &tunnel.RPCError{Code: "not_found", Message: "this agent is not of engagement " + q.Engagement}
		}
		return l.Environment(), nil
	})
	tunnel.Handle(&reg, lease.MethodFigures, func(context.Context, struct{}) ([]lease.Figures, error) {
		return []lease.Figures{lease.FiguresOf("agent", s.NumStreams())}, nil
	})
	l.Methods(&reg)
	var calls sync.WaitGroup
	for {
		r, err := s.Accept(ctx)
		if err != nil {
			break
		}
		if r.Header.Kind == tunnel.KindFiles && l.Serves(r.Header.Engagement) && l.Files != nil {
			calls.Go(func() { l.Files(ctx, r) })
			continue
		}
		if k := r.Header.Kind; (k == tunnel.KindTCP || k == tunnel.KindUDP) && l.Serves(r.Header.Engagement) && l.ToPod != nil {
			calls.Go(l.ToPod(ctx, r))
			continue
		}
		if r.Header.Kind != tunnel.KindRPC {
			r.Refuse(tunnel.CodeDenied, "an agent takes no flows")
			continue
		}
		calls.Go(func() {
			if err := tunnel.ServeRPC(ctx, r, &reg); err != nil {
				l.Log.Debug("call failed", "method", r.Header.Method, "err", err)
			}
		})
	}
	s.Close()
	calls.Wait()
}

func (l *Link) set(s *tunnel.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session = s
}

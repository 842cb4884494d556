// Package door is where the volume plugin comes in: a TCP listener on the daemon
// container's address in the workspace's network, behind the tunnel's own
// handshake, in which both ends are known by their pins.
//
// telemount runs once per engine and outside of every Docker network's name
// service, so it dials; it keeps one session for each daemon container, and each
// volume is a stream in it. A stream goes on to the manager, and from there to
// the agent; vif reads nothing of it. Telemount gets the engagement's token by a
// call on that session, so that no volume's options hold a secret.
//
// Who comes in: whoever holds the key of a pin for which there is a grant. What
// he gets: the token and the streams of those engagements, and nothing else.
//
// When does an engagement's handler lose its volumes? Either the plugin says so,
// one that was killed when it has been started again, or it is cut off from
// volumes that it uses (no goodbye) and does not come back: see [Lost].
//
// A [Door] may be used concurrently. Streams of an engagement are reset when it
// is revoked.
package door

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"berth.dev/files"
	"berth.dev/tunnel"
)

// Opener opens a stream to the manager.
type Opener interface {
	Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
}

// Grant says who may use the volumes of an engagement.
type Grant struct {
	Token string     // of the engagement; a secret
	Pin   tunnel.Pin // of the volume plugin
}

// Lost is told that what the plugin had mounted for an engagement is lost for
// good, and of the plugin's fate. It may be told so twice.
type Lost func(ctx context.Context, engagement, cause string)

// backWithin is how long a plugin may be away that was cut off from volumes in
// use: it dials again within a second, one that was killed within some more.
const backWithin = 10 * time.Second

type entry struct {
	Grant
	ctx    context.Context
	cancel context.CancelFunc

	// Guarded by Door.mu:
	streams int           // those that are open, in whatever session
	came    chan struct{} // closed when one more is
}

// Door lets the volume plugin in.
type Door struct {
	id     *tunnel.Identity
	open   Opener
	lost   Lost
	log    *slog.Logger
	within time.Duration // backWithin

	mu     sync.Mutex
	grants map[string]*entry // by engagement
}

// New returns a door that nobody may pass.
func New(id *tunnel.Identity, open Opener, lost Lost, log *slog.Logger) *Door {
	return &Door{id: id, open: open, lost: lost, log: log, within: backWithin, grants: map[string]*entry{}}
}

// Pin is what a volume plugin must demand of the door.
func (d *Door) Pin() string { return string(d.id.Pin()) }

// Grant lets g's holder use the volumes of an engagement. The same again changes
// nothing.
func (d *Door) Grant(engagement string, g Grant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.grants[engagement]
	if old != nil && old.Grant == g {
		return
	}
	if old != nil {
		old.cancel()
	}
	e := &entry{Grant: g, came: make(chan struct{})}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	d.grants[engagement] = e
}

// Revoke ends what was granted.
func (d *Door) Revoke(engagement string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.grants[engagement]; e != nil {
		e.cancel()
		delete(d.grants, engagement)
	}
}

// granted finds the grant of an engagement for the holder of pin.
func (d *Door) granted(engagement string, pin tunnel.Pin) *entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.grants[engagement]; e != nil && e.Pin == pin {
		return e
	}
	return nil
}

func (d *Door) knows(pin tunnel.Pin) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.grants {
		if e.Pin == pin {
			return true
		}
	}
	return false
}

// Run takes connections until ctx ends, and returns when all have ended.
func (d *Door) Run(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("take a volume plugin's connection: %w", err)
		}
		wg.Go(func() { d.serve(ctx, c) })
	}
}

func (d *Door) serve(ctx context.Context, c net.Conn) {
	auth := func(_ context.Context, h tunnel.Hello, pin tunnel.Pin) (*tunnel.Welcome, error) {
		if h.Role != files.RoleVolumes || !d.knows(pin) {
			return nil, &tunnel.RPCError{Code: "permission_denied", Message: "no engagement's volumes are for this key"}
		}
		return &tunnel.Welcome{}, nil
	}
	s, hello, pin, err := tunnel.Serve(ctx, c, d.id, auth, tunnel.Config{Logger: d.log})
	if err != nil {
		d.log.Warn("a volume plugin was not let in", "from", c.RemoteAddr().String(), "err", err)
		return
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	d.log.Info("the volume plugin is connected", "client", hello.Client)
	var reg tunnel.Registry
	tunnel.Handle(&reg, files.MethodToken, func(_ context.Context, q files.TokenRequest) (files.TokenAnswer, error) {
		e := d.granted(q.Engagement, pin)
		if e == nil {
			return files.TokenAnswer{}, &tunnel.RPCError{Code: "not_found", Message: "no engagement " + q.Engagement + " of this connection has volumes for this plugin"}
		}
		return files.TokenAnswer{Token: e.Token}, nil
	})
	tunnel.Handle(&reg, files.MethodLost, func(ctx context.Context, q files.LostRequest) (files.LostAnswer, error) {
		if d.granted(q.Engagement, pin) == nil {
			return files.LostAnswer{}, &tunnel.RPCError{Code: "not_found", Message: "no engagement " + q.Engagement + " of this connection has volumes for this plugin"}
		}
		d.lost(ctx, q.Engagement, q.Cause)
		return files.LostAnswer{}, nil
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		r, err := s.Accept(ctx)
		if err != nil {
			return
		}
		switch r.Header.Kind {
		case tunnel.KindFiles:
			wg.Go(func() { d.files(ctx, s, r, pin) })
		case tunnel.KindRPC:
			wg.Go(func() {
				if err := tunnel.ServeRPC(ctx, r, &reg); err != nil {
					d.log.Info("call failed", "method", r.Header.Method, "err", err)
				}
			})
		default:
			r.Refuse(tunnel.CodeDenied, "only volumes come this way")
		}
	}
}

// files carries one volume's stream to the manager, and waits for the plugin if it
// was cut off in the middle.
func (d *Door) files(ctx context.Context, s *tunnel.Session, r *tunnel.Request, pin tunnel.Pin) {
	id := r.Header.Engagement
	e := d.granted(id, pin)
	if e == nil {
		r.Refuse(tunnel.CodeNotFound, "no engagement "+id+" of this connection has volumes for this plugin")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	if !d.relay(ctx, e, r) {
		return
	}
	last, came := d.closed(e)
	if err := s.Err(); !last || err == nil || errors.Is(err, tunnel.ErrClosedByPeer) {
		return
	}
	d.log.Warn("the volume plugin is cut off from volumes in use", "engagement", id, "err", s.Err())
	select {
	case <-came:
	case <-ctx.Done():
	case <-time.After(d.within):
		d.lost(ctx, id, "is gone")
	}
}

// relay carries the stream, and reports whether it was one of e's.
func (d *Door) relay(ctx context.Context, e *entry, r *tunnel.Request) bool {
	id := r.Header.Engagement
	octx, release := r.Context(ctx)
	far, err := d.open.Open(octx, tunnel.Header{Kind: tunnel.KindFiles, Engagement: id})
	release()
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return false
	}
	near, err := r.Accept()
	if err != nil {
		far.Reset(tunnel.CodeCanceled)
		return false
	}
	d.opened(e)
	defer context.AfterFunc(ctx, func() {
		near.Reset(tunnel.CodeReset)
		far.Reset(tunnel.CodeReset)
	})()
	n, m, err := tunnel.Relay(near, far)
	d.log.Debug("a volume's connection ended", "engagement", id, "sent", n, "received", m, "err", err)
	return true
}

func (d *Door) opened(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.streams++
	close(e.came)
	e.came = make(chan struct{})
}

// closed reports whether it was the last; came is closed when there is one again.
func (d *Door) closed(e *entry) (last bool, came <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.streams--
	return e.streams == 0, e.came
}

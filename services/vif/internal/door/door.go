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

type entry struct {
	Grant
	ctx    context.Context
	cancel context.CancelFunc
}

// Door lets the volume plugin in.
type Door struct {
	id   *tunnel.Identity
	open Opener
	log  *slog.Logger

	mu     sync.Mutex
	grants map[string]*entry // by engagement
}

// New returns a door that nobody may pass.
func New(id *tunnel.Identity, open Opener, log *slog.Logger) *Door {
	return &Door{id: id, open: open, log: log, grants: map[string]*entry{}}
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
	e := &entry{Grant: g}
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
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		r, err := s.Accept(ctx)
		if err != nil {
			return
		}
		switch r.Header.Kind {
		case tunnel.KindFiles:
			wg.Go(func() { d.files(ctx, r, pin) })
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

// files carries one volume's stream to the manager.
func (d *Door) files(ctx context.Context, r *tunnel.Request, pin tunnel.Pin) {
	id := r.Header.Engagement
	e := d.granted(id, pin)
	if e == nil {
		r.Refuse(tunnel.CodeNotFound, "no engagement "+id+" of this connection has volumes for this plugin")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	octx, release := r.Context(ctx)
	far, err := d.open.Open(octx, tunnel.Header{Kind: tunnel.KindFiles, Engagement: id})
	release()
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	near, err := r.Accept()
	if err != nil {
		far.Reset(tunnel.CodeCanceled)
		return
	}
	defer context.AfterFunc(ctx, func() {
		near.Reset(tunnel.CodeReset)
		far.Reset(tunnel.CodeReset)
	})()
	n, m, err := tunnel.Relay(near, far)
	d.log.Debug("a volume's connection ended", "engagement", id, "sent", n, "received", m, "err", err)
}

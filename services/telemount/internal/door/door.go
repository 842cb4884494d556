// Package door reaches the volumes of engaged containers: it dials the door of
// a connection (vif, in the daemon container), with telemount's own key, and
// demands the key that the volume's options name. One session for each door
// carries all of its volumes, each as a stream; it is opened when it is needed,
// opened again after it broke, and closed when nothing uses it.
//
// What may mend itself (nobody listens, the pod is away) is tried again until
// the caller's context ends; what does not (another key, an engagement that is
// over) fails at once. So does a door that has said goodbye: vif has ended, and the
// next one has another key.
//
// A [Dialer] may be used concurrently: one opens the session while the others
// wait.
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

const (
	keepAlive = 5 * time.Second // a dead door is noticed after three
	// dialWithin bounds one attempt: the daemon container's address may be gone
	// without anybody who says so.
	dialWithin = 3 * time.Second
	pauseFrom  = 50 * time.Millisecond
	pauseTo    = time.Second
)

// Target is where an engagement's volumes are.
type Target struct {
	Door       string // IP:port
	Pin        string // the door's
	Engagement string
}

// Dialer keeps the sessions.
type Dialer struct {
	id     *tunnel.Identity
	client string
	log    *slog.Logger

	mu       sync.Mutex
	sessions map[key]*shared
}

type key struct{ door, pin string }

// shared is the session with one door; opening is held while it is opened.
type shared struct {
	opening chan struct{}

	// Guarded by Dialer.mu:
	session *tunnel.Session
	gone    bool // the door has said goodbye
	// uses are calls under way, and streams that have not been closed here. What
	// the session counts is no measure: its streams end some time after that.
	uses int
}

// stream is one that counts as a use until it is closed.
type stream struct {
	*tunnel.Stream
	end func()
}

func (s *stream) Close() error {
	defer s.end()
	return s.Stream.Close()
}

// New returns a dialer that proves itself with id. client is for logs.
func New(id *tunnel.Identity, client string, log *slog.Logger) *Dialer {
	return &Dialer{id: id, client: client, log: log, sessions: map[key]*shared{}}
}

// Dial opens a stream to the file server of t's engagement.
func (d *Dialer) Dial(ctx context.Context, t Target) (net.Conn, error) {
	end := d.use(t)
	c, err := retry(ctx, func(ctx context.Context) (net.Conn, error) {
		s, err := d.session(ctx, t)
		if err != nil {
			return nil, err
		}
		o, err := s.Open(ctx, tunnel.Header{Kind: tunnel.KindFiles, Engagement: t.Engagement})
		if err != nil {
			return nil, err
		}
		return &stream{o, end}, nil
	})
	if err != nil {
		end()
	}
	return c, err
}

// Token asks for the token of t's engagement.
func (d *Dialer) Token(ctx context.Context, t Target) (string, error) {
	defer d.use(t)()
	return retry(ctx, func(ctx context.Context) (string, error) {
		s, err := d.session(ctx, t)
		if err != nil {
			return "", err
		}
		a, err := tunnel.Call[files.TokenRequest, files.TokenAnswer](ctx, s, files.MethodToken, files.TokenRequest{Engagement: t.Engagement})
		return a.Token, err
	})
}

// Lost says that what was mounted for t's engagement is lost for who uses it.
func (d *Dialer) Lost(ctx context.Context, t Target, cause string) error {
	defer d.Release(t)
	defer d.use(t)()
	_, err := retry(ctx, func(ctx context.Context) (files.LostAnswer, error) {
		s, err := d.session(ctx, t)
		if err != nil {
			return files.LostAnswer{}, err
		}
		return tunnel.Call[files.LostRequest, files.LostAnswer](ctx, s, files.MethodLost, files.LostRequest{Engagement: t.Engagement, Cause: cause})
	})
	return err
}

// Release closes the session with t's door if nothing uses it.
func (d *Dialer) Release(t Target) {
	d.mu.Lock()
	x := d.sessions[key{t.Door, t.Pin}]
	var idle *tunnel.Session
	if x != nil && x.session != nil && x.uses == 0 {
		idle, x.session = x.session, nil
	}
	d.mu.Unlock()
	if idle != nil {
		_ = idle.Close()
	}
}

// Close closes all sessions.
func (d *Dialer) Close() {
	d.mu.Lock()
	var all []*tunnel.Session
	for _, x := range d.sessions {
		if x.session != nil {
			all = append(all, x.session)
			x.session = nil
		}
	}
	d.mu.Unlock()
	for _, s := range all {
		_ = s.Close()
	}
}

// use notes a use of t's door; the function that it returns ends it, once.
func (d *Dialer) use(t Target) (end func()) {
	x := d.shared(t)
	d.mu.Lock()
	x.uses++
	d.mu.Unlock()
	return sync.OnceFunc(func() {
		d.mu.Lock()
		x.uses--
		d.mu.Unlock()
	})
}

func (d *Dialer) shared(t Target) *shared {
	k := key{t.Door, t.Pin}
	d.mu.Lock()
	defer d.mu.Unlock()
	x := d.sessions[k]
	if x == nil {
		x = &shared{opening: make(chan struct{}, 1)}
		d.sessions[k] = x
	}
	return x
}

func (d *Dialer) session(ctx context.Context, t Target) (*tunnel.Session, error) {
	x := d.shared(t)
	select {
	case x.opening <- struct{}{}:
		defer func() { <-x.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	s := x.session
	x.gone = x.gone || s != nil && errors.Is(s.Err(), tunnel.ErrClosedByPeer)
	gone := x.gone
	d.mu.Unlock()
	if gone {
		return nil, fmt.Errorf("the daemon container has ended: %w", files.ErrGone)
	}
	if s != nil && s.Err() == nil {
		return s, nil
	}
	actx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(actx, "tcp", t.Door)
	if err != nil {
		return nil, fmt.Errorf("dial the daemon container: %w", err)
	}
	s, _, err = tunnel.Dial(actx, c, d.id, tunnel.Pin(t.Pin), tunnel.Hello{Role: files.RoleVolumes, Client: d.client}, tunnel.Config{KeepAlive: keepAlive, Logger: d.log})
	if err != nil {
		return nil, fmt.Errorf("greet the daemon container: %w", err)
	}
	d.mu.Lock()
	x.session = s
	d.mu.Unlock()
	return s, nil
}

// retry repeats f while what fails may mend itself and ctx lasts.
func retry[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	for pause := pauseFrom; ; pause = min(2*pause, pauseTo) {
		v, err := f(ctx)
		if err == nil || permanent(err) || ctx.Err() != nil {
			return v, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return v, err
		}
	}
}

// permanent: another attempt would get the same answer.
func permanent(err error) bool {
	var pin *tunnel.PinError
	var version *tunnel.VersionError
	var said *tunnel.RPCError
	var refused *tunnel.RefusedError
	switch {
	case errors.Is(err, files.ErrGone):
		return true
	case errors.As(err, &pin), errors.As(err, &version), errors.As(err, &said):
		return true
	case errors.As(err, &refused):
		return refused.Code == tunnel.CodeNotFound || refused.Code == tunnel.CodeDenied
	}
	return false
}

// Package link is the connector's own tunnel to the manager of a connection:
// over it the environment of an engaged container is asked for, which passes
// through no fact and no object, and the manager is probed, which proves that
// the way through the API server works.
//
// The tunnel opens when it is first needed and again after it broke; its key is
// the connection's second pin. A Link may be used concurrently: calls share the
// tunnel, one of them opens it while the others wait.
package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/files"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/tunnel"
	"berth.dev/tunnel/apidial"
)

// Options say where the tunnel leads.
type Options struct {
	Connection string // id
	Namespace  string // the manager's
	Version    string // of the connector
	Logger     *slog.Logger
}

// Link is the tunnel.
type Link struct {
	o        Options
	identity *tunnel.Identity

	// opening is held while the tunnel is opened; mu, which is taken after it,
	// guards the rest and is never held over a call.
	opening chan struct{}
	mu      sync.Mutex
	access  command.Access
	pin     tunnel.Pin // the manager's
	session *tunnel.Session
	closed  bool
}

// New makes a link with a key of its own. It does not open the tunnel.
func New(o Options) (*Link, error) {
	id, err := tunnel.NewIdentity()
	if err != nil {
		return nil, fmt.Errorf("make the tunnel's key: %w", err)
	}
	return &Link{o: o, identity: id, opening: make(chan struct{}, 1)}, nil
}

// Pin is what the connection's Lease must name for the tunnel to be let in.
func (l *Link) Pin() string { return string(l.identity.Pin()) }

// Use sets the means with which the tunnel is opened the next time, and the pin
// that is demanded of the manager.
func (l *Link) Use(a command.Access, managerPin string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.access, l.pin = a, tunnel.Pin(managerPin)
}

// Close closes the tunnel for good.
func (l *Link) Close() {
	l.mu.Lock()
	s := l.session
	l.session, l.closed = nil, true
	l.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
}

// Environment asks for what the engaged container of an engagement would have.
func (l *Link) Environment(ctx context.Context, engagement string) (lease.Environment, error) {
	env, err := call[lease.EnvironmentRequest, lease.Environment](ctx, l, lease.MethodEnvironment, lease.EnvironmentRequest{Engagement: engagement})
	return env, asFault("read the container's environment", err)
}

// maxFile bounds a volume that is a single file, in bytes: it rides in a command.
const maxFile = 1 << 20

// File reads a volume of the engaged container that is a single file, as it is.
func (l *Link) File(ctx context.Context, engagement, token, path string) (command.File, error) {
	var none command.File
	c, err := files.Connect(ctx, files.Options{Token: token, Root: path, ReadOnly: true, Timeout: 5 * time.Second, Dial: func(ctx context.Context) (net.Conn, error) {
		s, err := l.open(ctx)
		if err != nil {
			return nil, err
		}
		return s.Open(ctx, tunnel.Header{Kind: tunnel.KindFiles, Engagement: engagement})
	}})
	if err != nil {
		return none, asFault("read the file "+path, err)
	}
	defer c.Close()
	a := c.Info().Root
	if !a.IsRegular() || a.Size > maxFile {
		return none, fault.New(fault.FailedPrecondition, "--mount false", "the volume at %s is a single file of %d bytes (mode %o), and only plain files of up to %d can be copied into the handler: mount one of your own there (-v), with --mount false", path, a.Size, a.Mode, maxFile)
	}
	f, err := c.Open(ctx, func() (string, bool) { return "", true }, syscall.O_RDONLY, 0, files.Owner{})
	if err != nil {
		return none, asFault("read the file "+path, err)
	}
	b, err := f.ReadAsync(0, maxFile).Data(ctx)
	if err != nil {
		return none, asFault("read the file "+path, err)
	}
	return command.File{Path: path, Mode: a.Mode & 0o7777, UID: int(a.UID), GID: int(a.GID), Content: b}, nil
}

// Ping proves that the manager answers. It fails with an Unavailable fault.
func (l *Link) Ping(ctx context.Context) error {
	_, err := call[struct{}, struct{}](ctx, l, lease.MethodPing, struct{}{})
	var refused *tunnel.RefusedError
	var answer *tunnel.RPCError
	if errors.As(err, &refused) || errors.As(err, &answer) {
		return nil // an older manager does not know the method, but it answers
	}
	if err != nil {
		return fault.New(fault.Unavailable, "ctl doctor", "the manager does not answer: %v", err)
	}
	return nil
}

// call calls a method; a tunnel that was found to be dead is opened anew, once.
func call[Req, Resp any](ctx context.Context, l *Link, method string, req Req) (Resp, error) {
	for attempt := 0; ; attempt++ {
		s, err := l.open(ctx)
		if err != nil {
			var none Resp
			return none, err
		}
		resp, err := tunnel.Call[Req, Resp](ctx, s, method, req)
		var refused *tunnel.RefusedError
		var answer *tunnel.RPCError
		switch {
		case err == nil, errors.As(err, &answer), errors.As(err, &refused):
			return resp, err // answered, one way or the other
		}
		l.drop(s)
		if attempt > 0 || ctx.Err() != nil {
			return resp, err
		}
	}
}

// asFault keeps the far side's words, and says of anything else what failed.
func asFault(what string, err error) error {
	var known *fault.Error
	var answer *tunnel.RPCError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.As(err, &answer):
		return fault.New(codeOf(answer.Code), answer.Hint, "%s: %s", what, answer.Message)
	}
	return fault.New(fault.Unavailable, "ctl doctor", "%s: %v", what, err)
}

func codeOf(c string) fault.Code {
	switch f := fault.Code(c); f {
	case fault.InvalidArgument, fault.NotFound, fault.AlreadyExists, fault.FailedPrecondition, fault.PermissionDenied, fault.Unavailable:
		return f
	}
	return fault.Internal
}

// open returns the tunnel, opened if it is not.
func (l *Link) open(ctx context.Context) (*tunnel.Session, error) {
	select {
	case l.opening <- struct{}{}:
		defer func() { <-l.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	s, access, pin, closed := l.session, l.access, l.pin, l.closed
	l.mu.Unlock()
	if closed {
		return nil, fault.New(fault.Unavailable, "", "the connection is closed")
	}
	if s != nil {
		select {
		case <-s.Done():
		default:
			return s, nil
		}
	}
	s, err := l.dial(ctx, access, pin)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = s.Close()
		return nil, fault.New(fault.Unavailable, "", "the connection is closed")
	}
	l.session = s
	return s, nil
}

func (l *Link) dial(ctx context.Context, access command.Access, pin tunnel.Pin) (*tunnel.Session, error) {
	c, err := cluster.Open(access.Kubeconfig, "", "berth-connector/"+l.o.Version)
	if err != nil {
		return nil, err
	}
	d := &apidial.Dialer{Config: c.Config, Namespace: l.o.Namespace, Selector: lease.ManagerSelector, Port: lease.ManagerPort, Logger: l.o.Logger}
	conn, _, err := d.Dial(ctx)
	if err != nil {
		var denied *apidial.PermissionError
		if errors.As(err, &denied) {
			return nil, fault.New(fault.PermissionDenied, "ctl doctor", "you may not %s %s in the namespace %s", denied.Verb, denied.Resource, denied.Namespace)
		}
		return nil, cluster.Explain(err, c.Server, "", cluster.Right{Verb: "reach", Resource: "the manager", Namespace: l.o.Namespace})
	}
	host, _ := os.Hostname()
	s, _, err := tunnel.Dial(ctx, conn, l.identity, pin, tunnel.Hello{
		Role: "connector", ID: l.o.Connection, Client: "connector/" + l.o.Version + " " + host,
	}, tunnel.Config{Logger: l.o.Logger})
	if err != nil {
		var wrong *tunnel.PinError
		if errors.As(err, &wrong) {
			return nil, fault.New(fault.FailedPrecondition, "ctl quit && ctl connect --docker", "the manager shows another key than it did: the cluster side was installed anew")
		}
		return nil, asFault("open the tunnel to the manager", err)
	}
	return s, nil
}

// drop forgets a tunnel that failed.
func (l *Link) drop(s *tunnel.Session) {
	l.mu.Lock()
	if l.session == s {
		l.session = nil
	}
	l.mu.Unlock()
	_ = s.Close()
}

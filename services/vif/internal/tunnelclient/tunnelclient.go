// Package tunnelclient opens the tunnel: from a kubeconfig to a session with
// the manager. It is the only part of vif that knows of Kubernetes.
package tunnelclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/tunnel"
	"berth.dev/tunnel/apidial"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// keepAlive finds a dead path in some 15 s: after three pings without a sign of life.
const keepAlive = 5 * time.Second

// Target is the manager to reach, and how.
type Target struct {
	Connection string // id
	Namespace  string // the manager's
	Pin        string // the manager's
	Kubeconfig []byte // minified, certificates inlined; a secret
	// Direct are addresses (host:port) to try beside the way through the API server.
	Direct []string
}

// Result is an open tunnel.
type Result struct {
	Session   *tunnel.Session
	Welcome   *tunnel.Welcome
	Transport string
}

// Client opens tunnels. It may be used concurrently.
type Client struct {
	id      *tunnel.Identity
	names   *resolvconf.Dialer
	version string
	log     *slog.Logger

	mu     sync.Mutex
	key    string // kubeconfig and namespace that dialer is for
	dialer *apidial.Dialer
	// When the direct path was last opened, and until when it is left alone.
	directAt, shunUntil time.Time
}

// New returns a client that proves itself with id and resolves the API server's
// name with names.
func New(id *tunnel.Identity, names *resolvconf.Dialer, version string, log *slog.Logger) *Client {
	return &Client{id: id, names: names, version: version, log: log}
}

// Dial opens the tunnel, by the direct path where there is one, else through the
// API server. Both are tried at once; that one of them fails is no error, and the
// direct one's failure is nobody's business. Its errors are *fault.Error with a
// remedy.
func (c *Client) Dial(ctx context.Context, t Target) (Result, error) {
	d, err := c.dialerFor(t)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type way struct {
		conn      net.Conn
		transport string
		err       error
	}
	api, direct := make(chan way, 1), make(chan way, 1)
	go func() {
		conn, transport, err := d.Dial(ctx)
		api <- way{conn, string(transport), err}
	}()
	go func() {
		conn, err := c.dialDirect(ctx, c.directAddresses(t))
		direct <- way{conn, Direct, err}
	}()
	// Whoever is not waited for closes what comes late.
	late := func(ways chan way) {
		go func() {
			if w := <-ways; w.conn != nil {
				_ = w.conn.Close()
			}
		}()
	}
	var through *way // the API server
	var grace <-chan time.Time
	wait := api
	for ways := direct; ways != nil; {
		select {
		case w := <-ways:
			ways = nil
			if w.err != nil {
				c.log.Debug("no direct path", "err", w.err)
				break
			}
			res, err := c.shake(ctx, w.conn, w.transport, t)
			if err != nil {
				// Some other installation's manager, or nobody's: the way through the
				// API server knows better.
				c.log.Info("the direct path leads elsewhere", "err", err)
				break
			}
			c.directOpened()
			if through == nil {
				late(api)
			} else if through.conn != nil {
				_ = through.conn.Close()
			}
			return res, nil
		case w := <-wait:
			through, wait = &w, nil
			grace = time.After(directGrace)
			if w.err != nil {
				grace = nil // the direct path is all there is
			}
		case <-grace:
			late(ways)
			ways = nil
		}
	}
	if through == nil {
		w := <-api
		through = &w
	}
	if through.err != nil {
		return Result{}, explain(through.err, t)
	}
	res, err := c.shake(ctx, through.conn, through.transport, t)
	if err != nil {
		return Result{}, explain(err, t)
	}
	return res, nil
}

// shake proves both ends to each other, and owns conn.
func (c *Client) shake(ctx context.Context, conn net.Conn, transport string, t Target) (Result, error) {
	hello := tunnel.Hello{Role: "vif", ID: t.Connection, Client: "vif " + c.version}
	session, welcome, err := tunnel.Dial(ctx, conn, c.id, tunnel.Pin(t.Pin), hello, tunnel.Config{KeepAlive: keepAlive, Logger: c.log})
	if err != nil {
		return Result{}, err
	}
	return Result{session, welcome, transport}, nil
}

// dialerFor keeps the dialer, which remembers what worked, while the access
// stays the same.
func (c *Client) dialerFor(t Target) (*apidial.Dialer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := t.Namespace + "\x00" + string(t.Kubeconfig)
	if c.dialer != nil && c.key == key {
		return c.dialer, nil
	}
	cfg, err := restConfig(t.Kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.Dial = c.names.DialContext
	c.key, c.dialer = key, &apidial.Dialer{
		Config: cfg, Namespace: t.Namespace, Selector: lease.ManagerSelector, Port: lease.ManagerPort, Logger: c.log,
	}
	return c.dialer, nil
}

// Addresses are those that the API server, or the proxy before it, is reached
// at, and those of the direct path: they must never be routed into the tunnel
// that they carry.
func (c *Client) Addresses(ctx context.Context, t Target) ([]netip.Addr, error) {
	cfg, err := restConfig(t.Kubeconfig)
	if err != nil {
		return nil, err
	}
	u, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "", "the API server's URL %q: %v", cfg.Host, err)
	}
	hosts := []*url.URL{u}
	if cfg.Proxy != nil {
		if p, err := cfg.Proxy(nil); err == nil && p != nil {
			hosts = append(hosts, p)
		}
	}
	var all []netip.Addr
	for _, h := range hosts {
		addrs, err := c.names.Lookup(ctx, h.Hostname())
		if err != nil {
			return nil, fault.New(fault.Unavailable, "ctl doctor", "the API server's name does not resolve in the daemon container: %v", err)
		}
		all = append(all, addrs...)
	}
	for _, d := range t.Direct {
		host, _, err := net.SplitHostPort(d)
		if err != nil {
			continue
		}
		// One that does not resolve here is one that is not dialled either.
		if addrs, err := c.names.Lookup(ctx, host); err == nil {
			all = append(all, addrs...)
		}
	}
	return all, nil
}

// Validate says whether a kubeconfig can be used here.
func Validate(kubeconfig []byte) error {
	_, err := restConfig(kubeconfig)
	return err
}

func restConfig(kubeconfig []byte) (*rest.Config, error) {
	cfg, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		// Not err itself: it may quote what it could not parse.
		return nil, fault.New(fault.InvalidArgument, "ctl doctor", "the kubeconfig cannot be used in the daemon container: it is not complete, or no kubeconfig")
	}
	if cfg.ExecProvider != nil || cfg.AuthProvider != nil {
		return nil, fault.New(fault.InvalidArgument, "", "the kubeconfig asks for a credential plugin, and those run on the host only")
	}
	return cfg, nil
}

// explain makes what went wrong something to act on.
func explain(err error, t Target) error {
	var permission *apidial.PermissionError
	var pin *tunnel.PinError
	var version *tunnel.VersionError
	var refused *tunnel.RPCError
	switch {
	case errors.As(err, &permission):
		return fault.New(fault.PermissionDenied, "ctl doctor", "the cluster user may not %s %s in namespace %s, which reaching the manager needs", permission.Verb, permission.Resource, permission.Namespace)
	case errors.As(err, &pin):
		return fault.New(fault.FailedPrecondition, "ctl quit && ctl connect", "the manager in namespace %s is another one than at the time of connecting, or someone stands between: %v", t.Namespace, pin)
	case errors.As(err, &version):
		return fault.New(fault.FailedPrecondition, "ctl install", "the manager in namespace %s does not fit this version: %v", t.Namespace, version)
	case errors.As(err, &refused):
		return fault.New(fault.Unavailable, refused.Hint, "the manager in namespace %s refused the tunnel: %s", t.Namespace, refused.Message)
	case errors.Is(err, apidial.ErrNoPod):
		return fault.New(fault.Unavailable, "ctl install", "the manager does not run: %v", err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("open the tunnel: %w", err)
	}
	return fault.New(fault.Unavailable, "ctl doctor", "%v", err)
}

// Permanent says that trying again would not help.
func Permanent(err error) bool {
	switch fault.CodeOf(err) {
	case fault.PermissionDenied, fault.FailedPrecondition, fault.InvalidArgument:
		return true
	}
	return false
}

// Package apidial reaches the manager's tunnel endpoint through the API
// server, with nothing but the user's kubeconfig.
//
//	d := &apidial.Dialer{Config: config, Namespace: "berth", Selector: "app=berth-manager", Port: 8443}
//	conn, transport, err := d.Dial(ctx)
//	session, welcome, err := tunnel.Dial(ctx, conn, identity, pin, hello, tunnel.Config{})
//
// There are three ways, tried in this order:
//
//   - PodsProxy: HTTP Upgrade through pods/<name>:<port>/proxy. After its 101
//     the API server copies bytes between our TLS connection and the pod's
//     socket: by far the fastest.
//   - PortForwardWebSocket, PortForwardSPDY: port-forward with one data stream,
//     and the same HTTP Upgrade inside. They need another permission, and a
//     path by way of the kubelet where the API server cannot reach pods.
//
// None of them carries who we are to the manager, and all of them tear down
// both directions when one ends. So the connection is only good for
// tunnel.Dial, which proves both ends and has FIN and RST in band.
//
// The credentials of rest.Config (certificates, tokens, exec plugins,
// impersonation) and its proxy, or the environment's, are honoured.
package apidial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"berth.dev/tunnel"
	"k8s.io/client-go/rest"
)

// Transport names how bytes cross the API server.
type Transport string

const (
	PodsProxy            Transport = "pods-proxy"
	PortForwardWebSocket Transport = "portforward-websocket"
	PortForwardSPDY      Transport = "portforward-spdy"
)

// attemptTimeout bounds one transport while another is left to try: an API
// server that cannot reach the pod's address takes half a minute to say so.
const attemptTimeout = 5 * time.Second

// Dialer opens connections to one manager. Set the fields before the first
// Dial; Dial may then be called concurrently.
type Dialer struct {
	Config    *rest.Config
	Namespace string
	// Selector is the label selector of the manager's pods; a Ready one is
	// picked.
	Selector string
	// Pod names the pod instead; then nothing is listed.
	Pod string
	// Port is the container port of the tunnel endpoint.
	Port int
	// Only forces one transport, for tests and benchmarks.
	Only   Transport
	Logger *slog.Logger // default: discard

	mu     sync.Mutex
	worked Transport
}

// Dial returns a connection on which the manager's endpoint has answered the
// upgrade; the next bytes are tunnel.Dial's. The context bounds the dialling,
// not the connection.
//
// The transport that worked is tried first the next time. When all fail, the
// error says what each did; errors.As finds a *PermissionError if a permission
// is what lacks.
func (d *Dialer) Dial(ctx context.Context) (net.Conn, Transport, error) {
	log := d.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	api, err := newAPI(d.Config)
	if err != nil {
		return nil, "", fmt.Errorf("reach manager: %w", err)
	}
	pod := d.Pod
	if pod == "" {
		if pod, err = api.readyPod(ctx, d.Namespace, d.Selector); err != nil {
			return nil, "", fmt.Errorf("reach manager: %w", err)
		}
	}
	target := target{namespace: d.Namespace, pod: pod, port: d.Port}
	order := d.order()
	var errs []error
	definite := true // nothing that failed before would do better next time
	for i, transport := range order {
		conn, err := d.attempt(ctx, api, target, transport, i == len(order)-1)
		if err == nil {
			if definite {
				d.remember(transport)
			}
			log.Debug("reached manager", "transport", transport, "pod", pod)
			return conn, transport, nil
		}
		err = fmt.Errorf("%s to pod %s/%s: %w", transport, d.Namespace, pod, err)
		if ctx.Err() != nil {
			return nil, "", fmt.Errorf("reach manager: %w", errors.Join(append(errs, err)...))
		}
		log.Debug("transport failed", "transport", transport, "err", err)
		errs = append(errs, err)
		definite = definite && isDefinite(err)
	}
	return nil, "", fmt.Errorf("reach manager: %w", errors.Join(errs...))
}

func (d *Dialer) attempt(ctx context.Context, api *api, t target, transport Transport, last bool) (net.Conn, error) {
	if !last {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, attemptTimeout, errNoAnswer)
		defer cancel()
	}
	var conn net.Conn
	var err error
	switch transport {
	case PodsProxy:
		conn, err = api.podsProxy(ctx, t)
	case PortForwardWebSocket, PortForwardSPDY:
		conn, err = api.portForward(ctx, t, transport)
		if err == nil {
			conn, err = tunnel.RequestUpgrade(ctx, conn, t.pod, tunnel.Path, nil)
		}
	default:
		return nil, fmt.Errorf("unknown transport %q", transport)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return conn, err
}

// order lists what to try: what worked last, then the rest by preference.
func (d *Dialer) order() []Transport {
	if d.Only != "" {
		return []Transport{d.Only}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	all := []Transport{PodsProxy, PortForwardWebSocket, PortForwardSPDY}
	if i := slices.Index(all, d.worked); i > 0 {
		all = slices.Insert(slices.Delete(all, i, i+1), 0, d.worked)
	}
	return all
}

func (d *Dialer) remember(t Transport) {
	d.mu.Lock()
	d.worked = t
	d.mu.Unlock()
}

// target is the endpoint in the cluster.
type target struct {
	namespace, pod string
	port           int
}

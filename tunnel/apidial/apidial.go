// Package apidial reaches the manager through the API server.
package apidial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"k8s.io/client-go/rest"
)

// Transport names how the bytes cross the API server.
type Transport string

const (
	PodsProxy            Transport = "pods-proxy"
	PortForwardWebSocket Transport = "portforward-websocket"
	PortForwardSPDY      Transport = "portforward-spdy"
)

// Dialer opens connections to the manager.
type Dialer struct {
	Config    *rest.Config
	Namespace string
	Selector  string
	Port      int
	Logger    *slog.Logger
	// Only forces one transport; empty means try them in order.
	Only Transport
}

// Dial returns a connection on which the manager's tunnel endpoint has
// answered 101: the next bytes are the inner TLS handshake's.
func (d *Dialer) Dial(ctx context.Context) (net.Conn, Transport, error) {
	return nil, "", errors.New("not implemented yet")
}

// PermissionError says what the user's credentials lack.
type PermissionError struct {
	Verb, Resource, Namespace string
	Err                       error
}

func (e *PermissionError) Error() string {
	return fmt.Sprintf("not allowed to %s %s in namespace %s", e.Verb, e.Resource, e.Namespace)
}
func (e *PermissionError) Unwrap() error { return e.Err }

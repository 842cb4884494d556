// Package health answers kubelet's probes: /livez always, /readyz when the
// agent's handler can be reached.
package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// Health is the endpoint.
type Health struct{ ready func() bool }

// New makes an endpoint that asks ready.
func New(ready func() bool) *Health { return &Health{ready} }

// ServeHTTP implements http.Handler.
func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/livez":
	case "/readyz":
		if !h.ready() {
			http.Error(w, "the handler does not run", http.StatusServiceUnavailable)
		}
	default:
		http.NotFound(w, r)
	}
}

// Serve serves on addr until ctx ends.
func (h *Health) Serve(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for probes: %w", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve probes: %w", err)
	}
	return nil
}

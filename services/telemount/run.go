package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"berth.dev/services/telemount/internal/driver"
	"berth.dev/services/telemount/internal/volume"
)

// run serves the plugin until ctx ends, and unmounts what is mounted.
func run(ctx context.Context, args []string) error {
	c, err := configure(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: c.level})).With("service", "telemount")
	vs, err := volume.Open(c.root, c.state, nil, log)
	if err != nil {
		return err
	}
	defer vs.Close()
	if err := os.MkdirAll(filepath.Dir(c.socket), 0o755); err != nil {
		return fmt.Errorf("make folder of socket: %w", err)
	}
	_ = os.Remove(c.socket) // of one that was killed
	ln, err := net.Listen("unix", c.socket)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", c.socket, err)
	}
	srv := &http.Server{Handler: driver.New(vs, log), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	log.Info("listening", "socket", c.socket, "version", version)
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

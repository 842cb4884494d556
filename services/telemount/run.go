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

	"berth.dev/services/telemount/internal/door"
	"berth.dev/services/telemount/internal/driver"
	"berth.dev/services/telemount/internal/local"
	"berth.dev/services/telemount/internal/volume"
	"berth.dev/tunnel"
)

// run is the plugin, or one of the program's other words.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case mountWord:
			return runLocal(ctx, args[1:])
		case local.GuardWord:
			return local.Guard(args[1:], os.Stdin)
		}
	}
	return runPlugin(ctx, args)
}

// runLocal mounts an engagement's volumes for the program that started us.
func runLocal(ctx context.Context, args []string) error {
	c, err := configureLocal(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: c.level})).With("service", "telemount")
	return local.Run(ctx, c.dir, os.Stdin, os.Stdout, version, log)
}

// runPlugin serves the plugin until ctx ends, and unmounts what is mounted.
func runPlugin(ctx context.Context, args []string) error {
	c, err := configure(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: c.level})).With("service", "telemount")
	dial, err := dialer(c.key, log)
	if err != nil {
		return err
	}
	vs, err := volume.Open(c.root, c.state, dial, log)
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

// dialer proves itself with the key in file. Without a key, as by hand, only
// volumes with the option server can be mounted.
func dialer(file string, log *slog.Logger) (volume.Dialer, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		log.Warn("no key: only volumes with the option server can be mounted", "identity", file)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	id, err := tunnel.ParseIdentity(b)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", file, err)
	}
	log.Info("known by the pin", "pin", id.Pin())
	return door.New(id, "telemount/"+version, log), nil
}

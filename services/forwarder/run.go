package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"berth.dev/services/forwarder/internal/handover"
	"berth.dev/services/forwarder/internal/listening"
	"berth.dev/services/forwarder/internal/port"
	"berth.dev/services/forwarder/internal/relay"

	"golang.org/x/sync/errgroup"
)

// told is the one line that each part writes to stdout, for runner.
type told struct {
	Ready bool     `json:"ready,omitempty"`
	Busy  []string `json:"busy,omitempty"` // ports that are listened on already, with --check
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	tell := func(t told) error { return json.NewEncoder(stdout).Encode(t) }
	if cfg.part == "front" {
		return front(ctx, cfg, tell)
	}
	return back(ctx, cfg, tell)
}

// front opens the sockets of the published ports and keeps them open, whatever
// becomes of back.
func front(ctx context.Context, cfg config, tell func(told) error) error {
	files, err := open(cfg.ports)
	if err != nil {
		return err
	}
	l, err := handover.Listen(cfg.socket)
	if err != nil {
		return fmt.Errorf("listen for back: %w", err)
	}
	defer l.Close()
	if err := tell(told{Ready: true}); err != nil {
		return err
	}
	return handover.Serve(ctx, l, files)
}

// open opens a socket for each port, of both families where there are two.
func open(ports []port.Port) ([]*os.File, error) {
	var files []*os.File
	var config net.ListenConfig
	config.SetMultipathTCP(false) // whose sockets are not spliced
	for _, p := range ports {
		addr := fmt.Sprintf(":%d", p.Number)
		var s interface {
			File() (*os.File, error)
			io.Closer
		}
		if p.Protocol == "tcp" {
			l, err := config.Listen(context.Background(), "tcp", addr)
			if err != nil {
				return files, fmt.Errorf("listen on %v: %w", p, err)
			}
			s = l.(*net.TCPListener)
		} else {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return files, fmt.Errorf("listen on %v: %w", p, err)
			}
			s = c.(*net.UDPConn)
		}
		f, err := s.File()
		if err != nil {
			return files, fmt.Errorf("listen on %v: %w", p, err)
		}
		files = append(files, f)
		s.Close() // the file holds the socket
	}
	return files, nil
}

// frontWithin is how long back waits for front, of which the engine opens the ports
// first. Runner gives up, and removes both, earlier.
const frontWithin = time.Minute

// back serves front's sockets out of its own network namespace until front is
// gone.
func back(ctx context.Context, cfg config, tell func(told) error) error {
	if cfg.check {
		busy, err := inUse(cfg.ports)
		if err != nil {
			return err
		}
		if len(busy) > 0 {
			return errors.Join(tell(told{Busy: busy}), fmt.Errorf("in use: %v", busy))
		}
	}
	wait, cancel := context.WithTimeout(ctx, frontWithin)
	defer cancel()
	files, link, err := handover.Fetch(wait, cfg.socket)
	if err != nil {
		return err
	}
	defer link.Close()
	if len(files) != len(cfg.ports) {
		return fmt.Errorf("front has %d sockets for %d ports", len(files), len(cfg.ports))
	}
	group, ctx := errgroup.WithContext(ctx)
	for i, p := range cfg.ports {
		serve, err := server(p, files[i], cfg.idle)
		if err != nil {
			return err
		}
		group.Go(func() error { return serve(ctx) })
	}
	group.Go(func() error {
		stop := context.AfterFunc(ctx, func() { link.Close() })
		defer stop()
		_, err := link.Read(make([]byte, 1))
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("front is gone: %w", err)
	})
	if err := tell(told{Ready: true}); err != nil {
		return err
	}
	return group.Wait()
}

// server is what serves a port's socket.
func server(p port.Port, f *os.File, idle time.Duration) (func(context.Context) error, error) {
	defer f.Close()
	target := func() (netip.AddrPort, error) { return listening.Default.Target(p) }
	if p.Protocol == "tcp" {
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("take over the socket of %v: %w", p, err)
		}
		return func(ctx context.Context) error { return relay.TCP(ctx, l, p.Number, target) }, nil
	}
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("take over the socket of %v: %w", p, err)
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("take over the socket of %v: it is a %T", p, c)
	}
	return func(ctx context.Context) error { return relay.UDP(ctx, u, idle, target) }, nil
}

// inUse are those of the ports that somebody listens on.
func inUse(ports []port.Port) ([]string, error) {
	var busy []string
	for _, p := range ports {
		at, err := listening.Default.At(p)
		if err != nil {
			return nil, err
		}
		if len(at) > 0 {
			busy = append(busy, p.String())
		}
	}
	return busy, nil
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"

	"berth.dev/bus"
	"berth.dev/services/vif/internal/connection"
	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/services/vif/internal/tunnelclient"
	"berth.dev/tunnel"
)

// defaultMTU is the largest that IPv4 leaves room for: see README.md.
const defaultMTU = 65520

func run(ctx context.Context, args []string) error {
	c, err := parse(args)
	switch {
	case err != nil:
		return err
	case c.restore:
		return restore(c)
	case c.standby != "":
		return detach(c)
	case c.onHost():
		return serveHost(ctx, c)
	}
	return serve(ctx, c)
}

// serve serves the connection until ctx ends or the bus is lost.
func serve(ctx context.Context, c config) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: c.logLevel})).
		With("service", "vif", "connection", c.connection)
	// Before resolv.conf is rewritten, and whatever a vif before us left in it.
	file, err := resolvconf.Open(c.resolvConf)
	if err != nil {
		return err
	}
	if err := recoverFile(file, c); err != nil {
		return err
	}
	var resolver connection.Resolver = resolvconf.Container{File: file}
	if c.onHost() {
		var done func()
		resolver, done = hostResolver(file, c.resolvConf, c.iface, log)
		defer done()
	}
	names := resolvconf.NewDialer(resolver.Original())
	// For those libraries that take no dialer (SPDY).
	net.DefaultResolver = names.Resolver()
	id, err := tunnel.NewIdentity()
	if err != nil {
		return err
	}
	conn, err := bus.Await(ctx, c.bus, bus.Via(names))
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer conn.Close()
	log.Info("started", "version", version, "pin", id.Pin())
	return connection.New(connection.Config{
		ID: c.connection, Version: version, Identity: id, Bus: conn,
		Dialer:   tunnelclient.New(id, names, version, log),
		Resolver: resolver, OnHost: c.onHost(), Interface: c.iface, MTU: c.mtu, Logger: log,
	}).Run(ctx)
}

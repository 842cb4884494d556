package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/embed"
	"berth.dev/bus/proclock"
	"berth.dev/services/connector/internal/service"
)

// run is connector's life: the bus, and the service on it. It ends with ctx
// (SIGTERM), when everything is undone and stated; the bus goes last.
func run(ctx context.Context, args []string) error {
	cfg, err := parse(args)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.logLevel})).With("service", "connector")
	if cfg.lock != "" {
		lock, err := proclock.Take(cfg.lock)
		if err != nil {
			return err
		}
		defer lock.Release()
	}
	// Asked for before any other network is joined: only the workspace's is
	// shared with daemon containers.
	address := cfg.advertise
	if address == "" {
		if address, err = ownAddress(); err != nil {
			return err
		}
	}
	srv, err := embed.Start(ctx, embed.Options{
		StoreDir: cfg.storeDir, Host: cfg.host, Port: cfg.port, Identities: cfg.identities, Patience: introducedWithin, Logger: log,
	})
	if err != nil {
		return err
	}
	defer srv.Shutdown()
	go introductions(cfg.handover, srv, log)
	i := slices.IndexFunc(cfg.identities, func(id bus.Identity) bool { return id.Name == cfg.bus.Identity })
	if i < 0 {
		return fmt.Errorf("the identity %q is not among those that the bus admits", cfg.bus.Identity)
	}
	conn, err := srv.Connect(ctx, cfg.identities[i], cfg.bus.Seed)
	if err != nil {
		return err
	}
	defer conn.Close()
	return service.Run(ctx, service.Options{
		Bus: conn, Admission: srv, BusURL: "nats://" + net.JoinHostPort(address, strconv.Itoa(srv.Port())),
		Version: version, Image: cfg.image, OnHost: cfg.onHost, Log: log,
	})
}

// introducedWithin is how long an introduction may be on its way when who is
// introduced is here already: it goes by the engine, he does not.
const introducedWithin = 300 * time.Millisecond

// introductions admits those who introduce themselves through the engine. It ends
// with the process: nothing interrupts who reads standard input.
func introductions(h *bus.Handover, srv *embed.Server, log *slog.Logger) {
	err := h.Introductions(func(id bus.Identity) {
		if err := srv.AddGuest(id); err != nil {
			log.Warn("an identity that was introduced is not admitted", "err", err)
		}
	})
	if err != nil {
		log.Warn("no more introductions are taken", "err", err)
	}
}

// ownAddress is the first address of this container that is not its loopback:
// the one on the network that it was created on. An address, since daemon
// containers of one connection cannot rely on a name: their DNS becomes vif's.
func ownAddress() (string, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return "", fmt.Errorf("list addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && !p.Addr().IsLinkLocalUnicast() {
				return p.Addr().String(), nil
			}
		}
	}
	return "", errors.New("this container has no address: it must be created on the workspace's network")
}

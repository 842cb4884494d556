package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"berth.dev/bus/standby"
	"berth.dev/services/vif/internal/connection"
	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/services/vif/internal/resolved"
)

// standbyFD is the first descriptor behind the standard ones.
const standbyFD = 3

// detach starts this program once more, in the background and away from the
// terminal, with runner's socket as its standby and its log, and returns: sudo,
// whose child we may be, ends with us, and asks for no password meanwhile.
func detach(c config) error {
	conn, err := net.Dial("unix", c.standby)
	if err != nil {
		return fmt.Errorf("stand by at runner's socket: %w", err)
	}
	defer conn.Close()
	socket, err := conn.(*net.UnixConn).File()
	if err != nil {
		return fmt.Errorf("stand by at runner's socket: %w", err)
	}
	defer socket.Close()
	cmd := exec.Command("/proc/self/exe", "-standby-fd", strconv.Itoa(standbyFD),
		"-resolv-conf", c.resolvConf, "-interface", c.iface, "-mtu", strconv.Itoa(c.mtu), "-log-level", c.logLevel.String())
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Stderr, cmd.ExtraFiles = socket, []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	return cmd.Process.Release()
}

// serveHost stands by for a connection, and serves it until runner lets go.
func serveHost(ctx context.Context, c config) error {
	// Nobody reads the log of one whose runner was killed, and there is still
	// everything to undo.
	signal.Ignore(syscall.SIGPIPE)
	socket := os.NewFile(uintptr(c.standbyFD), "standby")
	if socket == nil {
		return errors.New("stand by: no such descriptor")
	}
	conn, err := net.FileConn(socket)
	_ = socket.Close()
	if err != nil {
		return fmt.Errorf("stand by: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	order, err := standby.Receive(conn, os.Getpid())
	if err != nil {
		return fmt.Errorf("no connection came: %w", err)
	}
	c.connection, c.bus = order.Connection, order.Bus
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		standby.AwaitEnd(conn)
		cancel()
	}()
	return serve(ctx, c)
}

// hostResolver is whom this machine's programs ask for names: systemd-resolved
// where it is, else the servers of its file.
func hostResolver(file *resolvconf.File, resolvConf, iface string, log *slog.Logger) (r connection.Resolver, done func()) {
	d, err := resolved.Open(resolvConf, resolved.Dir, iface)
	if err == nil {
		log.Info("names are resolved by systemd-resolved")
		return d, d.Close
	}
	if !errors.Is(err, resolved.ErrNotUsed) {
		log.Warn("systemd-resolved is passed over", "err", err)
	}
	return resolvconf.NewHost(file, log), func() {}
}

// restore puts the resolver's configuration back.
func restore(c config) error {
	file, err := resolvconf.Open(c.resolvConf)
	if err != nil {
		return err
	}
	return recoverFile(file, c)
}

// recoverFile puts back what a vif that was killed has left. On a machine another
// user's may live: what it wrote is in use.
func recoverFile(file *resolvconf.File, c config) error {
	if c.onHost() || c.restore {
		if _, err := net.InterfaceByName(c.iface); err == nil {
			return nil
		}
	}
	return file.Recover()
}

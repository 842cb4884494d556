package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"berth.dev/bus/bustest"
	"berth.dev/bus/event"
	"berth.dev/bus/standby"
	"berth.dev/services/vif/internal/nstest"
	"berth.dev/services/vif/internal/tun"
)

const leftByKilled = "nameserver 127.0.98.53\n#berth-original# nameserver 192.0.2.53\n"

// What a vif that was killed has left is put back, and what one that lives has
// written is not.
func TestRestore(t *testing.T) {
	nstest.Require(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte(leftByKilled), 0o644); err != nil {
		t.Fatal(err)
	}
	restored := func() string {
		t.Helper()
		if err := run(t.Context(), []string{"-restore", "-resolv-conf", resolv, "-interface", "berth-restore"}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(resolv)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	dev, err := tun.Create("berth-restore", 1500)
	if err != nil {
		t.Fatal(err)
	}
	if got := restored(); got != leftByKilled {
		t.Errorf("beside one that lives: %q", got)
	}
	_ = dev.Close()
	for range 2 {
		if got := restored(); got != "nameserver 192.0.2.53\n" {
			t.Errorf("restored %q", got)
		}
	}
}

// It serves the connection that runner gives it, and ends when runner lets go.
func TestStandby(t *testing.T) {
	b := bustest.Start(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), standby.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	file, err := dialled.(*net.UnixConn).File() // what detach gives to its child
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(file.Fd())) // its own, to close
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	_ = dialled.Close()
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte(leftByKilled), 0o644); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- run(context.Background(), []string{"-standby-fd", strconv.Itoa(fd), "-resolv-conf", resolv, "-interface", "berth-none"})
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w, err := standby.Accept(conn)
	if err != nil || w.PID != os.Getpid() {
		t.Fatal(w, err)
	}
	if err := w.Give(standby.Order{Connection: "c1", Bus: b.VIF("c1")}); err != nil {
		t.Fatal(err)
	}
	bustest.Wait[event.VIFStarted](t, b.Tester(), "c1")
	w.Release()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(bustest.Patience):
		t.Error("runner has let go, and it does not end")
	}
	if b, _ := os.ReadFile(resolv); string(b) != "nameserver 192.0.2.53\n" {
		t.Errorf("the start has not put back what was left: %q", b)
	}
}

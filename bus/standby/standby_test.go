package standby

import (
	"bytes"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus"
)

// pair is a stream over a real socket.
func pair(t *testing.T) (runner, vif net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if vif, err = net.Dial("unix", l.Addr().String()); err == nil {
		runner, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = runner.Close(); _ = vif.Close() })
	return runner, vif
}

// The whole of it: hello, order, log, release, end.
func TestLife(t *testing.T) {
	rc, vc := pair(t)
	order := Order{Connection: "c1", Bus: bus.Config{URL: "nats://127.0.0.1:1", Seed: "S", Identity: "vif-c1"}}
	ended := make(chan error, 1)
	go func() {
		got, err := Receive(vc, 42)
		if err == nil && got != order {
			err = errors.New("another order")
		}
		_, _ = vc.Write([]byte("a line of the log\n"))
		AwaitEnd(vc)
		_, _ = vc.Write([]byte("undone\n"))
		_ = vc.Close()
		ended <- err
	}()
	w, err := Accept(rc)
	if err != nil || w.PID != 42 {
		t.Fatal(w, err)
	}
	if err := w.Give(order); err != nil {
		t.Fatal(err)
	}
	w.Release()
	var log bytes.Buffer
	if err := w.Log(&log); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil || log.String() != "a line of the log\nundone\n" {
		t.Errorf("%v, log %q", err, &log)
	}
}

func TestNoOrder(t *testing.T) {
	rc, vc := pair(t)
	go rc.Close()
	if o, err := Receive(vc, 1); err == nil {
		t.Error("an order from nobody:", o)
	}
}

func TestNonsense(t *testing.T) {
	rc, vc := pair(t)
	go func() { _, _ = vc.Write([]byte("secret\n")) }()
	if _, err := Accept(rc); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	rc, vc = pair(t)
	go func() { _, _ = vc.Write(bytes.Repeat([]byte("x"), 2*maxLine)) }()
	if _, err := Accept(rc); err == nil {
		t.Error("a line without an end is taken")
	}
}

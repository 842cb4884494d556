package hostvif

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/standby"
)

// rig is a set that listens, and the facts that it states.
type rig struct {
	*Set
	socket string
	facts  chan event.Data
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{socket: filepath.Join(t.TempDir(), standby.SocketName), facts: make(chan event.Data, 10)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	r.Set = New(Options{
		Socket: r.socket, Log: slog.New(slog.DiscardHandler), Output: &bytes.Buffer{},
		State: func(_ context.Context, _ string, d event.Data) { r.facts <- d },
		Go:    func(f func(context.Context)) { wg.Go(func() { f(ctx) }) },
	})
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	return r
}

// fact is the next one.
func fact[T event.Data](t *testing.T, r *rig) T {
	t.Helper()
	select {
	case d := <-r.facts:
		f, ok := d.(T)
		if !ok {
			t.Fatalf("%T %+v, want a %T", d, d, f)
		}
		return f
	case <-time.After(20 * time.Second):
		t.Fatalf("no %T", *new(T))
	}
	panic("unreachable")
}

// vif stands by under the number 7, and gives its stream once it has its order.
func (r *rig) vif(t *testing.T) <-chan net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ordered := make(chan net.Conn, 1)
	go func() {
		o, err := standby.Receive(conn, 7)
		if err == nil && o.Connection == "c1" && o.Bus.Seed == "seed" {
			ordered <- conn
		}
	}()
	return ordered
}

func start(t *testing.T, r *rig) command.Accepted {
	t.Helper()
	cfg, err := json.Marshal(bus.Config{Seed: "seed"})
	if err != nil {
		t.Fatal(err)
	}
	a, err := r.Start(t.Context(), command.StartDaemon{Connection: "c1", Name: "dev", Bus: cfg})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestStop(t *testing.T) {
	r := newRig(t)
	ordered := r.vif(t)
	start(t, r)
	if f := fact[event.DaemonStarted](t, r); !strings.Contains(f.Container, "7") {
		t.Error(f)
	}
	if !start(t, r).Already {
		t.Error("the same command again starts another one")
	}
	conn := <-ordered
	go func() { standby.AwaitEnd(conn); _ = conn.Close() }()
	if a, err := r.Stop(t.Context(), command.StopDaemon{Connection: "c1"}); err != nil || a.Already {
		t.Fatal(a, err)
	}
	if f := fact[event.DaemonExited](t, r); f.Error != nil {
		t.Error("asked for, and told as a failure:", f.Error)
	}
	if a, err := r.Stop(t.Context(), command.StopDaemon{Connection: "c1"}); err != nil || !a.Already {
		t.Error("nothing is left:", a, err)
	}
}

// One that dies is told, with the last that it said.
func TestDeath(t *testing.T) {
	r := newRig(t)
	ordered := r.vif(t)
	start(t, r)
	fact[event.DaemonStarted](t, r)
	conn := <-ordered
	if _, err := conn.Write([]byte(`{"level":"ERROR","msg":"the TUN is gone"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if f := fact[event.DaemonExited](t, r); f.Error == nil || !strings.Contains(f.Error.Message, "the TUN is gone") {
		t.Error(f)
	}
}

// A vif that stood by and was killed is not the connection's.
func TestDeadOneIsPassedOver(t *testing.T) {
	r := newRig(t)
	dead, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = standby.Receive(dead, 6) }()
	if _, err := dead.Write(nil); err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	ordered := r.vif(t)
	start(t, r)
	for f := fact[event.DaemonStarted](t, r); !strings.Contains(f.Container, "7"); f = fact[event.DaemonStarted](t, r) {
		fact[event.DaemonExited](t, r) // the kernel had taken the order for it
		start(t, r)
	}
	<-ordered
	r.StopAll(contextOf(t, time.Second))
}

func contextOf(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestRefused(t *testing.T) {
	r := newRig(t)
	for _, req := range []command.StartDaemon{
		{Connection: "no id", Bus: []byte(`{"seed":"x"}`)},
		{Connection: "c1"},
		{Connection: "c1", Bus: []byte(`{"seed":"x"}`), Expose: []string{"80"}},
	} {
		if _, err := r.Start(t.Context(), req); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

// Nobody stands by: that is told within the time in which ctl would wait.
func TestNobody(t *testing.T) {
	r := newRig(t)
	start(t, r)
	if f := fact[event.DaemonExited](t, r); f.Error == nil || f.Error.Hint == "" {
		t.Error(f)
	}
}

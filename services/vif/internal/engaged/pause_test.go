package engaged

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"berth.dev/tunnel"
)

// until waits for what another goroutine brings about.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// A flow that comes while no handler listens waits, and reaches the next one.
func TestPause(t *testing.T) {
	table, far := newTable(t)
	old, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(old.Addr().String()).Port()
	table.Set("e1", localhost, []Port{{Container: 8080, Handler: port}})

	if _, _, ok := table.Pause("e2", time.Minute); ok {
		t.Error("an unknown engagement was paused")
	}
	// One that is under way before: busy until it is answered.
	before, err := far.Open(t.Context(), header(tunnel.KindTCP, "e1", 8080))
	if err != nil {
		t.Fatal(err)
	}
	server, err := old.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = before.Write([]byte("question"))
	if _, err := io.ReadFull(server, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * busyWithin) // not only because it was used a moment ago
	if open, busy, ok := table.Pause("e1", time.Minute); !ok || open != 1 || busy != 1 {
		t.Errorf("paused with a question open: %d open, %d busy, %v", open, busy, ok)
	}
	_, _ = server.Write([]byte("answer"))
	until(t, "the answered one is idle", func() bool { open, busy, _ := table.Pause("e1", time.Minute); return open == 1 && busy == 0 })
	if b := make([]byte, 6); true {
		if _, err := io.ReadFull(before, b); err != nil || string(b) != "answer" {
			t.Errorf("the flow from before the pause: %q, %v", b, err)
		}
	}

	_ = before.CloseWrite()
	_ = server.Close()
	_ = old.Close() // the old handler is gone
	waits, err := far.Open(t.Context(), header(tunnel.KindTCP, "e1", 8080))
	if err != nil {
		t.Fatalf("refused while it should wait: %v", err)
	}
	_, _ = waits.Write([]byte("hello"))
	_ = waits.CloseWrite()
	next, err := net.Listen("tcp", netip.AddrPortFrom(localhost, port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if !table.Resume("e1") || table.Resume("e1") {
		t.Error("resume")
	}
	c, err := next.Accept()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	_ = c.Close()
	if err != nil || string(b) != "hello" {
		t.Errorf("the flow that waited: %q, %v", b, err)
	}
	until(t, "no flow is left", func() bool { open, _, _ := table.Pause("e1", time.Minute); return open == 0 })
}

// A pause ends by itself, by the engagement's end, and by nobody listening after it.
func TestPauseEnds(t *testing.T) {
	table, far := newTable(t)
	open := func() *tunnel.Stream {
		st, err := far.Open(t.Context(), header(tunnel.KindTCP, "e1", 8080))
		if err != nil {
			t.Fatal(err)
		}
		_ = st.SetDeadline(time.Now().Add(time.Minute))
		return st
	}
	refused := func(what string, st *tunnel.Stream, want error) {
		t.Helper()
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	table.Set("e1", localhost, []Port{{Container: 8080, Handler: 1}})
	table.Pause("e1", 50*time.Millisecond)
	refused("after the limit", open(), syscall.ECONNREFUSED)
	table.Pause("e1", time.Minute)
	st := open()
	table.Remove("e1")
	refused("after the engagement", st, syscall.ECONNRESET)
}

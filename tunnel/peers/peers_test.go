package peers

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echoing is a table whose flows answer what they are for and what they hear; of no
// flow while it is for nothing.
type echoing struct {
	Table[string]
	what    atomic.Value
	seen    atomic.Int32 // datagrams
	begun   atomic.Int32
	flows   sync.WaitGroup
	refuse  atomic.Bool
	refused atomic.Int32
}

func newEchoing(t *testing.T) *echoing {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	e := &echoing{}
	e.what.Store("a")
	e.Conn = conn
	e.Where = func() (string, bool) {
		s := e.what.Load().(string)
		e.seen.Add(1)
		return s, s != ""
	}
	e.Begin = func(p *Peer[string]) func() {
		if e.refuse.Load() {
			e.refused.Add(1)
			return nil
		}
		e.flows.Add(1)
		e.begun.Add(1)
		return func() {
			defer e.flows.Done()
			buf := make([]byte, 100)
			for {
				n, err := p.Read(buf)
				if err != nil {
					return
				}
				_, _ = p.Write(append([]byte(p.For+" "), buf[:n]...))
				if string(buf[:n]) == "end" {
					return
				}
			}
		}
	}
	var running sync.WaitGroup
	running.Go(e.Run)
	t.Cleanup(func() {
		conn.Close()
		running.Wait()
		e.mu.Lock()
		for _, p := range e.by {
			p.Close()
		}
		e.mu.Unlock()
		e.flows.Wait()
	})
	return e
}

func (e *echoing) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", e.Conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c
}

func ask(t *testing.T, c net.Conn, what string) string {
	t.Helper()
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return string(buf[:n])
}

// await waits until so many have been counted.
func await(t *testing.T, what string, n *atomic.Int32, want int32) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); n.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d %s, want %d", n.Load(), what, want)
		}
	}
}

func (e *echoing) want(t *testing.T, begun int32) {
	t.Helper()
	if n := e.begun.Load(); n != begun {
		t.Errorf("%d flows were begun, want %d", n, begun)
	}
}

// Each peer has a flow of its own, which stays.
func TestPeersAreApart(t *testing.T) {
	e := newEchoing(t)
	one, two := e.dial(t), e.dial(t)
	for _, what := range []string{"x", "y", ""} {
		if got := ask(t, one, what+"1") + ask(t, two, what+"2"); got != "a "+what+"1a "+what+"2" {
			t.Errorf("%q", got)
		}
	}
	e.want(t, 2)
}

// A flow that is for something else now is another one; for nothing there is none.
func TestWhereChanges(t *testing.T) {
	e := newEchoing(t)
	c := e.dial(t)
	if got := ask(t, c, "x"); got != "a x" {
		t.Errorf("%q", got)
	}
	e.mu.Lock()
	old := e.by[netip.MustParseAddrPort(c.LocalAddr().String())]
	e.mu.Unlock()
	e.what.Store("b")
	if got := ask(t, c, "x"); got != "b x" {
		t.Errorf("%q", got)
	}
	select {
	case <-old.done:
	default:
		t.Error("the flow of before goes on")
	}
	e.what.Store("")
	_, _ = io.WriteString(c, "lost")
	await(t, "datagrams seen", &e.seen, 3)
	e.what.Store("b")
	if got := ask(t, e.dial(t), "y"); got != "b y" {
		t.Errorf("%q", got)
	}
	e.want(t, 3)
}

// What comes after a flow's end begins another one.
func TestEndedFlow(t *testing.T) {
	e := newEchoing(t)
	c := e.dial(t)
	ask(t, c, "end")
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		e.mu.Lock()
		left := len(e.by)
		e.mu.Unlock()
		if left == 0 {
			break
		}
	}
	if got := ask(t, c, "x"); got != "a x" {
		t.Errorf("%q", got)
	}
	e.want(t, 2)
}

// A flow that is not to be leaves nothing, and one that takes nothing holds up no
// other.
func TestRefusedAndFull(t *testing.T) {
	e := newEchoing(t)
	e.refuse.Store(true)
	c := e.dial(t)
	_, _ = io.WriteString(c, "x")
	await(t, "flows refused", &e.refused, 1)
	e.refuse.Store(false)
	full := &Peer[string]{table: &e.Table, For: "a", in: make(chan []byte), done: make(chan struct{})}
	stuck := e.dial(t)
	e.mu.Lock()
	e.by = map[netip.AddrPort]*Peer[string]{netip.MustParseAddrPort(stuck.LocalAddr().String()): full}
	e.mu.Unlock()
	for range 10 {
		_, _ = io.WriteString(stuck, "x")
	}
	if got := ask(t, c, "y"); got != "a y" {
		t.Errorf("%q", got)
	}
}

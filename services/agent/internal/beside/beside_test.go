package beside

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/divert"
	"berth.dev/services/agent/internal/port"
	"berth.dev/tunnel"
)

// kernel remembers the rules instead of a kernel; package divert tests the real one.
type kernel struct {
	mu    sync.Mutex
	rules []divert.Rule
	sets  int
	err   error
}

func (k *kernel) Set(r []divert.Rule) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sets++
	if k.err != nil {
		k.rules = nil
		return k.err
	}
	k.rules = r
	return nil
}

func (k *kernel) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rules = nil
}

// far answers each flow with its engagement and port, and then waits.
func far(t *testing.T) *tunnel.Session {
	t.Helper()
	a, b := net.Pipe()
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	t.Cleanup(func() { near.Close(); far.Close() })
	go func() {
		for {
			r, err := far.Accept(context.Background())
			if err != nil {
				return
			}
			if s, err := r.Accept(); err == nil {
				_, _ = io.WriteString(s, r.Header.Engagement+":"+strconv.Itoa(int(r.Header.Dst.Port()))+"\n")
			}
		}
	}()
	return near
}

func one(id string, p, as uint16, probes ...lease.Probe) lease.Served {
	return lease.Served{ID: id, Divert: []lease.Diverted{{Port: p, Protocol: "TCP", As: as, Probes: probes}}}
}

func TestApply(t *testing.T) {
	k := &kernel{}
	b := New(far(t), k, slog.New(slog.DiscardHandler))
	defer b.Close()
	apply := func(want int, es ...lease.Served) {
		t.Helper()
		if got := b.Apply(lease.AgentServe{Engagements: es, Node: []string{"10.0.0.1"}}); got.Errors != nil {
			t.Fatal(got.Errors)
		}
		if len(k.rules) != want {
			t.Fatalf("%d rules, want %d: %v", len(k.rules), want, k.rules)
		}
	}
	// ask dials where the rule of port brings its traffic.
	ask := func(port uint16) (net.Conn, string) {
		t.Helper()
		for _, r := range k.rules {
			if r.Port == port {
				c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(r.To))))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				buf := make([]byte, 100)
				n, err := c.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				return c, strings.TrimSpace(string(buf[:n]))
			}
		}
		t.Fatalf("port %d is not diverted", port)
		return nil, ""
	}
	apply(0, lease.Served{ID: "ingest"})
	if k.sets != 0 || !b.Serves("ingest") || b.Serves("i") {
		t.Errorf("an ingest diverts, or is not served: %d", k.sets)
	}
	apply(1, lease.Served{ID: "ingest"}, one("i", 8080, 80))
	kept, got := ask(8080)
	if got != "i:80" {
		t.Errorf("flow %q", got)
	}
	apply(2, one("i", 8080, 80), one("j", 9090, 9090))
	if b.Serves("ingest") {
		t.Error("what was left out is still served")
	}
	sets := k.sets
	apply(2, one("j", 9090, 9090), one("i", 8080, 80))
	if k.sets != sets {
		t.Error("the kernel is told what it knows")
	}
	if _, got := ask(9090); got != "j:9090" {
		t.Errorf("flow %q", got)
	}
	if _, err := kept.Write([]byte("x")); err != nil || b.Open() != 2 {
		t.Errorf("a flow ended with another's beginning: %v, %d open", err, b.Open())
	}
	apply(1, one("j", 9090, 9090))
	if _, err := kept.Write([]byte("x")); err != nil || b.Open() != 2 {
		t.Errorf("a flow whose engagement has ended is not left to end: %v, %d open", err, b.Open())
	}
	b.Suspend()
	if _, err := io.ReadAll(kept); err == nil {
		t.Error("the flow goes on, or ended in good order")
	}
	if len(k.rules) != 0 || !b.Serves("j") {
		t.Errorf("suspended: %v", k.rules)
	}
	for b.Open() != 0 { // or the test's own time is over
		time.Sleep(time.Millisecond)
	}
	apply(1, one("j", 9090, 9090))
	k.err = errors.New("no NET_ADMIN")
	if got := b.Apply(lease.AgentServe{Engagements: []lease.Served{one("j", 9090, 9090), one("k", 1, 1)}}); got.Errors["j"] != "no NET_ADMIN" || got.Errors["k"] != "no NET_ADMIN" {
		t.Errorf("errors %v", got.Errors)
	}
	k.err = nil
	apply(1, one("k", 1, 1)) // tried again
	select {
	case <-b.Done():
		t.Error("done")
	default:
	}
	b.Apply(lease.AgentServe{Exit: true})
	b.Apply(lease.AgentServe{Exit: true})
	<-b.Done()
	if len(k.rules) != 0 {
		t.Error("diverts after its end")
	}
}

// What comes by its name goes to the app until it is diverted, and after that.
func TestNamed(t *testing.T) {
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "app\n")
			c.Close()
		}
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().(*net.TCPAddr).AddrPort().Port()
	free.Close()
	k := &kernel{}
	b := New(far(t), k, slog.New(slog.DiscardHandler))
	p := app.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := b.Named(port.Port{Number: p, Protocol: port.TCP}, at); err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(at))))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		return strings.TrimSpace(string(buf[:n]))
	}
	for range 2 {
		if got := ask(); got != "app" {
			t.Errorf("not diverted: %q", got)
		}
		if got := b.Apply(lease.AgentServe{Engagements: []lease.Served{one("e", p, 80)}}); got.Errors != nil {
			t.Fatal(got.Errors)
		}
		if got := ask(); got != "e:80" {
			t.Errorf("diverted: %q", got)
		}
		b.Apply(lease.AgentServe{})
	}
	if k.sets != 0 {
		t.Error("the kernel was asked for what needs no right")
	}
}

// A pod that ends goes on for a while, and then as long as flows are open.
func TestLinger(t *testing.T) {
	k := &kernel{}
	b := New(far(t), k, slog.New(slog.DiscardHandler))
	b.Apply(lease.AgentServe{Engagements: []lease.Served{one("i", 8080, 80)}})
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(k.rules[0].To))))
	if err != nil {
		t.Fatal(err)
	}
	for b.Open() == 0 {
		time.Sleep(time.Millisecond)
	}
	done := make(chan struct{})
	go func() { b.Linger(context.Background(), 10*time.Millisecond); close(done) }()
	select {
	case <-done:
		t.Fatal("ended with a flow open")
	case <-time.After(150 * time.Millisecond):
	}
	if tc, ok := c.(*net.TCPConn); ok {
		_ = tc.SetLinger(0)
	}
	c.Close()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("goes on without flows")
	}
	if len(k.rules) != 0 {
		t.Error("still diverts")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Linger(ctx, time.Hour) // bounded
}

func TestGateway(t *testing.T) {
	a, ok := gateway4(strings.Fields("eth0 00000000 0100F40A 0003 0 0 0 00000000 0 0 0"))
	if !ok || a != netip.MustParseAddr("10.244.0.1") {
		t.Errorf("%v %v", a, ok)
	}
	if _, ok := gateway4(strings.Fields("eth0 0000F40A 0100F40A 0003 0 0 0 00FFFFFF 0 0 0")); ok {
		t.Error("a subnet's route")
	}
	six := "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000010024400000000000000000001 00000400 1 0 3 eth0"
	if a, ok := gateway6(strings.Fields(six)); !ok || a != netip.MustParseAddr("fd00:10:244::1") {
		t.Errorf("%v %v", a, ok)
	}
	if _, ok := gateway6(strings.Fields(strings.Replace(six, " 00 ", " 40 ", 1))); ok {
		t.Error("a subnet's route")
	}
}

// Package engaged brings the traffic of engaged workloads to their handlers.
//
// The agent in each pod sends a stream for every connection to an engaged port,
// by way of the manager; here it is connected to the handler's port in the
// daemon container's network, which is the kernel's and not netstack's. Nobody
// listening there is refused, all the way back to the caller in the cluster.
//
// An engagement may be paused, while its handler gives way to another: new flows
// are accepted and wait, so that nobody is refused in the time in which no
// handler listens; see [Table.Pause].
//
// Connections of one client to one port come to the handler in the order in which
// the client has opened them, unless its port takes none at the moment.
//
// A [Table] may be used concurrently. Streams of an engagement are reset when
// it is removed.
package engaged

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth.dev/tunnel"
	"berth.dev/tunnel/turn"
)

const (
	dialTimeout = 10 * time.Second
	udpIdle     = 60 * time.Second

	// A connection waits that long for its turn, which is behind those that came
	// before it. On the loopback interface they connect at once, or are not taken:
	// by a port that is full, after which the kernel tries again in a second.
	// Elsewhere it takes a way and back, of which that of a near network is waited for.
	turnWait    = 500 * time.Millisecond
	turnWaitFar = 5 * time.Millisecond
)

// line is what connections have in common that keep their order.
type line struct {
	engagement string
	kind       tunnel.Kind
	port       uint16
	client     netip.Addr
}

// Port is a container port and where its traffic goes.
type Port struct {
	Container uint16
	Handler   uint16
	UDP       bool
}

// Table knows where engaged traffic goes.
type Table struct {
	log   *slog.Logger
	flows atomic.Int64
	lines turn.Lines[line]

	mu sync.Mutex
	by map[string]*entry
}

type entry struct {
	gate    chan struct{} // of a pause; nil: none. Closed when it ends
	timer   *time.Timer   // ends it
	pending int           // flows that have passed the gate and are not connected yet
	conns   map[*net.TCPConn]struct{}
	ports   map[Port]netip.AddrPort // Handler is 0 in the key
	address netip.Addr
	list    []Port
	ctx     context.Context
	cancel  context.CancelFunc
}

// New returns an empty table.
func New(log *slog.Logger) *Table { return &Table{log: log, by: map[string]*entry{}} }

// Set says where the traffic of an engagement goes, in the place of what was
// said before. already says that it is what was said before.
func (t *Table) Set(id string, address netip.Addr, ports []Port) (already bool) {
	e := &entry{conns: map[*net.TCPConn]struct{}{}, ports: map[Port]netip.AddrPort{}, address: address, list: ports}
	for _, p := range ports {
		e.ports[Port{Container: p.Container, UDP: p.UDP}] = netip.AddrPortFrom(address, p.Handler)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.by[id]
	if old != nil && old.same(e) {
		return true
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	t.by[id] = e
	if old != nil {
		old.cancel()
		old.open()
	}
	return false
}

func (e *entry) same(o *entry) bool {
	if e.address != o.address || len(e.ports) != len(o.ports) {
		return false
	}
	for k, v := range e.ports {
		if w, ok := o.ports[k]; !ok || w != v {
			return false
		}
	}
	return true
}

// Remove forgets an engagement and resets its streams. It reports whether there
// was one.
func (t *Table) Remove(id string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.by[id]
	if e == nil {
		return false
	}
	e.cancel()
	e.open()
	delete(t.by, id)
	return true
}

// Flows is how many streams are being carried.
func (t *Table) Flows() int { return int(t.flows.Load()) }

// Serve answers the requests of a session until it ends, and returns when all
// of its streams have.
func (t *Table) Serve(ctx context.Context, s *tunnel.Session) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		r, err := s.Accept(ctx)
		if err != nil {
			return
		}
		h := r.Header
		place := t.lines.Join(line{h.Engagement, h.Kind, h.Dst.Port(), h.Src.Addr()})
		wg.Go(func() {
			defer place.Done()
			t.serve(ctx, r, place)
		})
	}
}

func (t *Table) serve(ctx context.Context, r *tunnel.Request, place *turn.Turn[line]) {
	h := r.Header
	if h.Kind != tunnel.KindTCP && h.Kind != tunnel.KindUDP || h.Engagement == "" {
		// The container's own network is nobody's to reach into.
		r.Refuse(tunnel.CodeDenied, "only engaged traffic comes this way")
		return
	}
	udp := h.Kind == tunnel.KindUDP
	t.mu.Lock()
	e := t.by[h.Engagement]
	t.mu.Unlock()
	if e == nil {
		r.Refuse(tunnel.CodeNotFound, "no such engagement here")
		return
	}
	dst, ok := e.ports[Port{Container: h.Dst.Port(), UDP: udp}]
	if !ok {
		r.Refuse(tunnel.CodeRefused, "the port is not engaged")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	stream, passed := t.pass(ctx, e, r)
	if !passed {
		return
	}
	most := turnWait
	if !dst.Addr().IsLoopback() {
		most = turnWaitFar
	}
	place.Wait(ctx, most)
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, strings.ToLower(h.Kind.String()), dst.String())
	place.Done()
	forget := t.connected(e, conn)
	defer forget()
	if err != nil {
		t.log.Debug("handler not reached", "engagement", h.Engagement, "address", dst.String(), "err", err)
		if stream != nil { // it had to wait, and was accepted for that
			stream.Reset(tunnel.CodeOf(err))
			return
		}
		r.Refuse(tunnel.CodeOf(err), "handler at "+dst.String()+" not reached")
		return
	}
	if stream == nil {
		if stream, err = r.Accept(); err != nil {
			_ = conn.Close()
			return
		}
	}
	t.flows.Add(1)
	defer t.flows.Add(-1)
	defer context.AfterFunc(ctx, func() {
		stream.Reset(tunnel.CodeReset)
		_ = conn.Close()
	})()
	if tcp, ok := conn.(*net.TCPConn); ok {
		_, _, err = tunnel.Relay(stream, tcp)
	} else {
		_, _, err = tunnel.RelayPackets(stream, conn, udpIdle)
	}
	if err != nil {
		t.log.Debug("connection to the handler broke", "engagement", h.Engagement, "err", err)
	}
}

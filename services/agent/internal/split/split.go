// Package split divides what comes to a diverted port between the app and the
// engagements that have some of its requests.
//
// An engagement without a filter has connections as a whole: they are carried
// without a look at what is in them. As soon as one with a filter is there each
// new connection is looked at:
//
//   - HTTP/1 and HTTP/2 without TLS (prior knowledge, gRPC) go through a proxy
//     that asks for every request whose it is. The proxy is net/http's, on both
//     sides; each client's connection has connections of its own to the app and
//     to handlers, so that what is kept per connection stays so, and that the
//     one ends with the other.
//   - Everything else (TLS, raw TCP, a server that speaks first) cannot be told
//     apart and goes as a whole to the engagement without a filter, or the app.
//
// Wiretaps have copies of what clients say, of each connection as a whole (tap.go),
// or with a filter of the requests that it matches, which are found in such a copy
// (sift.go); they change nothing of where it goes, and nobody waits for them.
//
// What holds may change at any time (Set): the next request goes by what holds
// then, on connections that are open too. A connection with the app never ends
// because an engagement does.
package split

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/peek"
	"berth.dev/services/agent/internal/port"
	"berth.dev/tunnel"
)

// Port is a diverted port; it is a port.Sorter. Its methods may be called
// concurrently.
type Port struct {
	number uint16
	opener port.Opener
	log    *slog.Logger
	now    atomic.Pointer[table]

	mu      sync.Mutex
	own     map[*far]struct{} // connections to handlers, of requests
	copies  map[going]struct{}
	taps    map[string]*tap      // by engagement
	notHTTP map[port.To]struct{} // that have a filter, and something came that is not HTTP
}

// New is a port of the app all of whose traffic is the app's.
func New(number uint16, o port.Opener, log *slog.Logger) *Port {
	p := &Port{number: number, opener: o, log: log.With("port", number), own: map[*far]struct{}{}, copies: map[going]struct{}{}, taps: map[string]*tap{}, notHTTP: map[port.To]struct{}{}}
	p.Set(nil, nil, nil, nil)
	return p
}

// Set makes routes, which come oldest first, what holds, with copies of new
// connections, or of their requests, for taps. kubelet's probes, which
// come from node's addresses, are the app's in any case. Errors are by engagement.
func (p *Port) Set(routes, taps []Route, probes []lease.Probe, node []netip.Addr) map[string]error {
	t, errs := newTable(p.number, routes, probes, node)
	p.mu.Lock()
	was := p.taps
	p.taps = map[string]*tap{}
	for _, r := range taps {
		k := was[r.To.Engagement] // whose filter stays as it is
		if k == nil {
			k = &tap{to: r.To}
			if r.Filter.Filtered() {
				m, err := r.matcher()
				if err != nil {
					errs[r.To.Engagement] = err
					continue
				}
				k.match = &m
			}
		}
		p.taps[r.To.Engagement] = k
		t.taps = append(t.taps, k)
	}
	holds := slices.Concat(t.filtering(), t.sifted())
	maps.DeleteFunc(p.notHTTP, func(to port.To, _ struct{}) bool { return !slices.Contains(holds, to) })
	p.mu.Unlock()
	p.now.Store(t)
	return errs
}

// Cut resets the requests, and ends the copies, that are with an engagement's handler.
func (p *Port) Cut(engagement string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.own {
		if f.engagement == engagement {
			peek.New(f.End).Reset(tunnel.CodeCanceled)
		}
	}
	for c := range p.copies {
		if c.of().to.Engagement == engagement {
			c.cut()
		}
	}
}

func (p *Port) keep(f *far) {
	if f.engagement == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own[f] = struct{}{}
}

func (p *Port) forget(f *far) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.own, f)
}

// All is whose the connections are that are not looked at.
func (p *Port) All() (port.To, bool) {
	if t := p.now.Load(); t.all != nil {
		return *t.all, true
	}
	return port.To{}, false
}

// App carries a connection to the app, to its end.
func (p *Port) App(ctx context.Context, end peek.End) { p.now.Load().probes.App(ctx, end) }

// Sort is as port.Sorter says.
func (p *Port) Sort(ctx context.Context, c *net.TCPConn) (end peek.End, to port.To, itself func()) {
	t, conn := p.now.Load(), peek.New(c)
	if len(t.taps) > 0 {
		conn = peek.New(p.tapping(ctx, c, t.taps))
	}
	if !t.filtered() {
		return p.whole(ctx, conn)
	}
	switch what, far := p.look(ctx, conn); what {
	case isHTTP:
		return nil, port.To{}, func() { newClient(p, conn).serve(ctx) }
	case isOver:
		return nil, port.To{}, func() { _ = conn.Close() }
	case isServerFirst:
		p.pass(t.filtering())
		return nil, port.To{}, func() {
			defer context.AfterFunc(ctx, func() { _ = conn.Close(); _ = far.Close() })()
			_, _, _ = tunnel.Relay(conn.Whole(), far.Whole())
		}
	default:
		p.pass(t.filtering())
		return p.whole(ctx, conn)
	}
}

// pass notes that something has come that is not HTTP, of which these engagements
// have nothing, since they have a filter.
func (p *Port) pass(by []port.To) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, to := range by {
		if _, known := p.notHTTP[to]; !known {
			p.notHTTP[to] = struct{}{}
			p.log.Info("what is not HTTP comes to a port of an engagement with a filter, which has nothing of it", "engagement", to.Engagement)
		}
	}
}

// NotHTTP are the engagements with a filter that had nothing of what has come,
// because it is not HTTP.
func (p *Port) NotHTTP() []port.To {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.notHTTP))
}

// whole is for a connection that is not looked into any further.
func (p *Port) whole(ctx context.Context, c *peek.Conn) (end peek.End, to port.To, itself func()) {
	t := p.now.Load()
	if t.all == nil {
		return nil, port.To{}, func() { t.probes.App(ctx, c.Whole()) }
	}
	end, itself = t.probes.Sort(ctx, c)
	return end, *t.all, itself
}

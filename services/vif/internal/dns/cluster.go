package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"berth.dev/tunnel"

	"github.com/miekg/dns"
)

const (
	// clusterTimeout is when a cluster name is given up with SERVFAIL.
	clusterTimeout = 2 * time.Second
	// clusterTry is when a query is sent once more: datagrams may be dropped
	// on either side of the tunnel.
	clusterTry = 700 * time.Millisecond
)

// Opener opens streams to the cluster; it fails at once while the tunnel is down.
type Opener interface {
	Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
}

// cluster asks the cluster's DNS servers through the tunnel. All queries share
// one UDP flow for each server, told apart by their ids, since a flow of its own
// would cost each a round trip.
type cluster struct {
	opener Opener
	mu     sync.Mutex
	by     map[netip.Addr]*flow
	wg     sync.WaitGroup
	closed bool
}

var errNoClusterDNS = errors.New("the manager named no DNS server of the cluster")

// exchange asks until ctx ends, the servers in turn.
func (c *cluster) exchange(ctx context.Context, servers []netip.Addr, m *dns.Msg) (*dns.Msg, error) {
	if len(servers) == 0 {
		return nil, errNoClusterDNS
	}
	var err error
	for try := range 2 {
		server := servers[try%len(servers)]
		var r *dns.Msg
		r, err = c.ask(ctx, server, m, try == 1)
		if err == nil && r.Truncated {
			if whole, terr := c.askTCP(ctx, server, m); terr == nil {
				r = whole
			}
		}
		if err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("ask the cluster's DNS: %w", err)
}

func (c *cluster) ask(ctx context.Context, server netip.Addr, m *dns.Msg, last bool) (*dns.Msg, error) {
	if !last {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, clusterTry)
		defer cancel()
	}
	f, err := c.flow(ctx, server)
	if err != nil {
		return nil, err
	}
	return f.ask(ctx, m)
}

// flow is the open flow to a server, or a new one.
func (c *cluster) flow(ctx context.Context, server netip.Addr) (*flow, error) {
	c.mu.Lock()
	defer c.mu.Unlock() // others would only open the same one
	if f := c.by[server]; f != nil && f.alive() {
		return f, nil
	}
	if c.closed {
		return nil, errors.New("dns is closed")
	}
	st, err := c.opener.Open(ctx, tunnel.Header{Kind: tunnel.KindUDP, Dst: netip.AddrPortFrom(server, 53)})
	if err != nil {
		return nil, err
	}
	f := &flow{stream: st, done: make(chan struct{}), pending: map[uint16]chan *dns.Msg{}}
	if c.by == nil {
		c.by = map[netip.Addr]*flow{}
	}
	c.by[server] = f
	c.wg.Go(f.read)
	return f, nil
}

func (c *cluster) askTCP(ctx context.Context, server netip.Addr, m *dns.Msg) (*dns.Msg, error) {
	st, err := c.opener.Open(ctx, tunnel.Header{Kind: tunnel.KindTCP, Dst: netip.AddrPortFrom(server, 53)})
	if err != nil {
		return nil, err
	}
	defer st.Close()
	if d, ok := ctx.Deadline(); ok {
		_ = st.SetDeadline(d)
	}
	q := m.Copy()
	q.Id = dns.Id()
	conn := &dns.Conn{Conn: st}
	if err := conn.WriteMsg(q); err != nil {
		return nil, err
	}
	r, err := conn.ReadMsg()
	if err == nil && r.Id != q.Id {
		err = dns.ErrId
	}
	return r, err
}

// close ends the flows and waits for their readers.
func (c *cluster) close() {
	c.mu.Lock()
	c.closed = true
	for _, f := range c.by {
		f.stream.Reset(tunnel.CodeCanceled)
	}
	c.mu.Unlock()
	c.wg.Wait()
}

// flow is a UDP flow to one server.
type flow struct {
	stream  *tunnel.Stream
	done    chan struct{} // closed when nothing can be read any more
	mu      sync.Mutex
	pending map[uint16]chan *dns.Msg
}

func (f *flow) alive() bool {
	select {
	case <-f.done:
		return false
	default:
		return true
	}
}

func (f *flow) read() {
	defer close(f.done)
	defer f.stream.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := f.stream.ReadPacket(buf)
		if err != nil {
			return
		}
		m := new(dns.Msg)
		if m.Unpack(buf[:n]) != nil || !m.Response {
			continue
		}
		f.mu.Lock()
		ch := f.pending[m.Id]
		f.mu.Unlock()
		if ch != nil {
			select {
			case ch <- m:
			default:
			}
		}
	}
}

var errFlowLost = errors.New("the flow to the cluster's DNS broke")

func (f *flow) ask(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	q := m.Copy()
	ch := make(chan *dns.Msg, 1)
	f.mu.Lock()
	for q.Id = dns.Id(); f.pending[q.Id] != nil; q.Id = dns.Id() {
	}
	f.pending[q.Id] = ch
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.pending, q.Id)
		f.mu.Unlock()
	}()
	wire, err := q.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack query: %w", err)
	}
	if err := f.stream.WritePacket(wire); err != nil {
		return nil, err
	}
	for {
		select {
		case r := <-ch:
			if len(r.Question) == 1 && r.Question[0].Qtype == q.Question[0].Qtype && strings.EqualFold(r.Question[0].Name, q.Question[0].Name) {
				return r, nil
			}
		case <-f.done:
			return nil, errFlowLost
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

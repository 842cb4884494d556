package connection

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"berth.dev/services/vif/internal/netstack"
	"berth.dev/services/vif/internal/virtual"
	"berth.dev/tunnel"
)

// errDown is what opening a stream fails with while there is no tunnel.
var errDown = errors.New("the tunnel is down")

// link stands for the session of the moment, so that netstack and DNS need not
// know that sessions come and go.
type link struct {
	mu      sync.Mutex
	session *tunnel.Session
}

func (l *link) set(s *tunnel.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session = s
}

func (l *link) get() *tunnel.Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

// translated opens streams to virtual addresses: the far side knows none.
type translated struct {
	opener netstack.Opener
	table  *virtual.Table
}

func (t translated) Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	h.Dst = netip.AddrPortFrom(t.table.Cluster(h.Dst.Addr()), h.Dst.Port())
	return t.opener.Open(ctx, h)
}

// Open opens a stream, or fails at once without a tunnel.
func (l *link) Open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	s := l.get()
	if s == nil {
		return nil, errDown
	}
	return s.Open(ctx, h)
}

// Begin is Open without waiting for the answer.
func (l *link) Begin(h tunnel.Header) (tunnel.Opening, error) {
	s := l.get()
	if s == nil {
		return tunnel.Opening{}, errDown
	}
	return s.Begin(h)
}

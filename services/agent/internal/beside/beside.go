// Package beside does what the manager says of an agent that runs beside a
// container: it serves engagements, and diverts the traffic of ports to their
// handlers.
//
// It is level-based: each Apply names all that is to hold, and what it does not
// name ends. Without a manager nothing is known to hold, so the traffic of every
// port goes back to the app at once (Suspend).
//
// Order of a change: listen, then divert, so that no connection finds nobody. At
// the end turn the traffic round, so that nothing new comes; then let the open
// flows end, for a while, and reset what does not; then take the table away, which
// until then translates their packets.
package beside

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/divert"
	"berth.dev/services/agent/internal/port"
	"berth.dev/services/agent/internal/probe"
)

// Diverter brings the traffic of ports to others; divert.Diverter is one.
type Diverter interface {
	Set(rules []divert.Rule) error
	Close()
}

// drainTime is what open flows get to end when their engagement has.
const drainTime = 5 * time.Second

// Beside is what an agent beside a container does. Its methods may be called
// concurrently.
type Beside struct {
	opener   port.Opener
	diverter Diverter
	log      *slog.Logger

	mu       sync.Mutex
	served   map[string]bool
	ports    map[key]*diverted
	retiring map[*port.Set]context.CancelFunc
	retired  sync.WaitGroup
	node     []netip.Addr
	named    map[port.Port]*named
	exit     bool
	done     chan struct{} // closed when the manager needs the agent no more
}

// key is a port that is diverted for an engagement.
type key struct {
	engagement string
	port       port.Port
	as         uint16
}

// diverted is a port with who listens for it.
type diverted struct {
	set    *port.Set
	at     uint16
	probes *probe.Port
}

// named is a port whose name was given to the agent: its traffic comes here by
// itself.
type named struct {
	set    *port.Set
	probes *probe.Port
}

// Named takes the traffic of the app's port p at the port number at, for as long
// as the agent lives. Call it before anything is applied.
func (b *Beside) Named(p port.Port, at uint16) error {
	n := &named{port.NewSet("", b.opener, b.log), &probe.Port{Number: p.Number}}
	if err := n.set.Switch(at, n.probes); err != nil {
		return fmt.Errorf("listen for port %v: %w", p, err)
	}
	b.named[p] = n
	return nil
}

// toNamed says where the traffic of named ports goes, and takes them from wanted.
func (b *Beside) toNamed(wanted map[key]lease.Diverted) map[key]lease.Diverted {
	rest := map[key]lease.Diverted{}
	to := map[*named]*port.To{}
	for k, d := range wanted {
		if n := b.named[k.port]; n != nil {
			to[n] = &port.To{Engagement: k.engagement, As: k.as}
			continue
		}
		rest[k] = d
	}
	for _, n := range b.named {
		n.set.SetTo(to[n])
	}
	return rest
}

// New serves nothing yet.
func New(o port.Opener, d Diverter, log *slog.Logger) *Beside {
	return &Beside{opener: o, diverter: d, log: log, served: map[string]bool{}, ports: map[key]*diverted{}, retiring: map[*port.Set]context.CancelFunc{}, named: map[port.Port]*named{}, done: make(chan struct{})}
}

// Serves reports whether the agent serves the engagement.
func (b *Beside) Serves(engagement string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.served[engagement]
}

// Done is closed when the manager has said that the agent may go.
func (b *Beside) Done() <-chan struct{} { return b.done }

// Apply makes q what holds. The answer tells what could not be done.
func (b *Beside) Apply(q lease.AgentServe) lease.AgentServed {
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.Exit && !b.exit {
		b.exit = true
		close(b.done)
	}
	b.served = map[string]bool{}
	b.node = gateways()
	for _, n := range q.Node {
		if a, err := netip.ParseAddr(n); err == nil {
			b.node = append(b.node, a.Unmap())
		}
	}
	wanted := map[key]lease.Diverted{}
	for _, e := range q.Engagements {
		b.served[e.ID] = true
		for _, d := range e.Divert {
			wanted[key{e.ID, port.Port{Number: d.Port, Protocol: d.Protocol}, d.As}] = d
		}
	}
	return lease.AgentServed{Errors: b.divert(wanted)}
}

// Suspend gives the traffic back and resets the flows; the engagements are still
// served otherwise.
func (b *Beside) Suspend() {
	b.mu.Lock()
	b.divert(nil)
	for _, cancel := range b.retiring {
		cancel()
	}
	b.mu.Unlock()
	b.retired.Wait()
}

// retire lets the flows of ports that are no longer diverted end, and takes the
// table away after the last of them.
func (b *Beside) retire(s *port.Set) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	b.retiring[s] = cancel
	drain := s.Retire()
	b.retired.Go(func() {
		drain(ctx)
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.retiring, s)
		if len(b.retiring) == 0 && len(b.ports) == 0 {
			b.diverter.Close()
		}
	})
}

// divert makes wanted the ports that are diverted.
func (b *Beside) divert(wanted map[key]lease.Diverted) map[string]string {
	errs := map[string]string{}
	wanted = b.toNamed(wanted)
	next := map[key]*diverted{}
	for k, d := range wanted {
		if old := b.ports[k]; old != nil {
			if slices.Equal(old.probes.Probes, d.Probes) && slices.Equal(old.probes.Node, b.node) {
				next[k] = old
				continue
			}
		}
		n := &diverted{set: port.NewSet(k.engagement, b.opener, b.log), probes: &probe.Port{Number: k.port.Number, Probes: d.Probes, Node: b.node}}
		at, err := n.set.Divert(k.port, k.as, n.probes)
		if err != nil {
			n.set.Close()
			errs[k.engagement] = fmt.Sprintf("port %v: %v", k.port, err)
			continue
		}
		n.at = at
		next[k] = n
	}
	if !same(b.ports, next) {
		if err := b.diverter.Set(rules(next)); err != nil {
			for k, n := range next {
				errs[k.engagement] = err.Error()
				if b.ports[k] != n {
					n.set.Close()
				}
			}
			next = nil // nothing is diverted
		}
	}
	for k, old := range b.ports {
		if next[k] != old {
			b.retire(old.set)
		}
	}
	if len(b.ports) != len(next) {
		b.log.Info("diverted ports have changed", "now", len(next))
	}
	b.ports = next
	if len(errs) == 0 {
		return nil
	}
	return errs
}

func same(a, b map[key]*diverted) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// rules are the table for ports, in an order of their own.
func rules(ports map[key]*diverted) []divert.Rule {
	var rs []divert.Rule
	for k, d := range ports {
		rs = append(rs, divert.Rule{Port: k.port.Number, UDP: k.port.Protocol == port.UDP, To: d.at})
	}
	slices.SortFunc(rs, func(a, b divert.Rule) int { return int(a.To) - int(b.To) })
	return rs
}

// Diverting reports whether at least one port is diverted.
func (b *Beside) Diverting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ports) > 0
}

// Open is the number of flows.
func (b *Beside) Open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, d := range b.ports {
		n += d.set.Open()
	}
	for s := range b.retiring {
		n += s.Open()
	}
	for _, m := range b.named {
		n += m.set.Open()
	}
	return n
}

// Linger is for a pod that is ending: it goes on for at least the time that it
// takes until nobody sends new connections to it, then until no flow is open, at
// most until ctx ends; then it gives the traffic back.
func (b *Beside) Linger(ctx context.Context, least time.Duration) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		if time.Since(began) >= least && b.Open() == 0 {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	b.Suspend()
}

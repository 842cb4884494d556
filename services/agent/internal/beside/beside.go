// Package beside does what the manager says of an agent that runs beside a
// container: it serves engagements, and diverts the traffic of ports to their
// handlers.
//
// It is level-based: each Apply names all that is to hold, and what it does not
// name ends. Without a manager nothing is known to hold, so the traffic of every
// port goes back to the app at once (Suspend).
//
// Order of a change: listen, then divert, so that no connection finds nobody. At
// the end turn the traffic round, so that nothing new comes; then let what is with
// the handler end, for a while, and reset what does not; then take the table away,
// which until then translates the packets. What has come through here to the app
// is not ours to end: as long as it lasts the listener and the table stay.
package beside

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/divert"
	"berth.dev/services/agent/internal/port"
	"berth.dev/services/agent/internal/split"
)

// Diverter brings the traffic of ports to others; divert.Diverter is one.
type Diverter interface {
	Set(rules []divert.Rule) error
	Close()
}

const (
	drainTime = 5 * time.Second        // for flows to end when their engagement has
	onTheWay  = 200 * time.Millisecond // from a connection's first packet until it is accepted
)

// Beside is what an agent beside a container does. Its methods may be called
// concurrently.
type Beside struct {
	opener   port.Opener
	diverter Diverter
	log      *slog.Logger

	mu     sync.Mutex
	served map[string]bool
	ports  map[port.Port]*diverted
	node   []netip.Addr
	exit   bool
	done   chan struct{} // closed when the manager needs the agent no more
}

// diverted is a port with who listens for it.
type diverted struct {
	set   *port.Set
	split *split.Port
	at    uint16              // where it is brought
	named bool                // it comes by itself, for the agent was given its name
	on    bool                // it is to come here
	has   map[string]struct{} // engagements that have traffic of it
	stay  context.CancelFunc  // it comes here again: ends the waiting for its end
}

// Named takes the traffic of the app's port p at the port number at, for as long
// as the agent lives. Call it before anything is applied.
func (b *Beside) Named(p port.Port, at uint16) error {
	d, err := b.listen(p, at)
	if err != nil {
		return fmt.Errorf("listen for port %v: %w", p, err)
	}
	d.named = true
	b.ports[p] = d
	return nil
}

// listen makes a port's listener, at a free port or the one given.
func (b *Beside) listen(p port.Port, at uint16) (*diverted, error) {
	d := &diverted{set: port.NewSet("", b.opener, b.log), split: split.New(p.Number, b.opener, b.log), stay: func() {}}
	var err error
	if d.at, err = d.set.Divert(p.Protocol, at, d.split); err != nil {
		d.set.Close()
		return nil, err
	}
	return d, nil
}

// New serves nothing yet.
func New(o port.Opener, d Diverter, log *slog.Logger) *Beside {
	return &Beside{opener: o, diverter: d, log: log, served: map[string]bool{}, ports: map[port.Port]*diverted{}, done: make(chan struct{})}
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
	b.served = map[string]bool{}
	b.node = gateways()
	for _, n := range q.Node {
		if a, err := netip.ParseAddr(n); err == nil {
			b.node = append(b.node, a.Unmap())
		}
	}
	w := wanted{}
	for _, e := range q.Engagements {
		b.served[e.ID] = true
		for _, d := range e.Divert {
			w.add(e.ID, d)
		}
	}
	errs := b.divert(w)
	b.exit = q.Exit
	b.leave()
	if len(errs) == 0 {
		return lease.AgentServed{}
	}
	return lease.AgentServed{Errors: errs}
}

// leave says that the agent may go, when it has nothing more to carry.
func (b *Beside) leave() {
	if !b.exit || len(b.ports) > 0 {
		return
	}
	select {
	case <-b.done:
	default:
		close(b.done)
	}
}

// wanted is what is to hold, by port.
type wanted map[port.Port]*holding

type holding struct {
	routes []split.Route
	taps   []split.Route
	probes []lease.Probe
}

func (w wanted) add(engagement string, d lease.Diverted) {
	p := port.Port{Number: d.Port, Protocol: d.Protocol}
	if w[p] == nil {
		w[p] = &holding{}
	}
	r := split.Route{To: port.To{Engagement: engagement, As: d.As}, Filter: d.Filter}
	if d.Copy {
		w[p].taps = append(w[p].taps, r)
	} else {
		w[p].routes = append(w[p].routes, r)
	}
	w[p].probes = d.Probes
}

// Suspend gives the traffic back and resets what is with handlers; the engagements
// are still served otherwise.
func (b *Beside) Suspend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	had := map[*diverted][]string{}
	for _, d := range b.ports {
		had[d] = slices.Collect(maps.Keys(d.has))
	}
	b.divert(nil)
	for d, engagements := range had {
		for _, e := range engagements {
			d.cut(e)
		}
	}
}

// Close gives the traffic back and resets all flows, those with the app too.
func (b *Beside) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p, d := range b.ports {
		b.end(p, d)
	}
}

// end takes a port's listener away; the table goes with the last one.
func (b *Beside) end(p port.Port, d *diverted) {
	d.stay()
	d.set.Close()
	delete(b.ports, p)
	if !slices.ContainsFunc(slices.Collect(maps.Values(b.ports)), func(d *diverted) bool { return !d.named }) {
		b.diverter.Close()
	}
}

// divert makes w the ports that are diverted.
func (b *Beside) divert(w wanted) map[string]string {
	errs := map[string]string{}
	was := b.rules()
	for p, h := range w {
		d := b.ports[p]
		if d == nil {
			var err error
			if d, err = b.listen(p, 0); err != nil {
				h.fail(errs, fmt.Sprintf("port %v: %v", p, err))
				continue
			}
			b.ports[p] = d
		}
		d.stay()
		d.on = true
		b.hold(d, h, errs)
	}
	for p, d := range b.ports {
		if d.on && w[p] == nil {
			d.on = false
			b.hold(d, &holding{}, errs)
		}
	}
	if now := b.rules(); !slices.Equal(was, now) {
		if err := b.diverter.Set(now); err != nil { // and nothing is diverted
			for p, d := range b.ports {
				if d.on && !d.named {
					d.on = false
					b.hold(d, &holding{}, errs)
					w[p].fail(errs, err.Error())
				}
			}
		}
		b.log.Info("diverted ports have changed", "now", len(now))
	}
	for p, d := range b.ports {
		if !d.on && !d.named {
			b.retire(p, d)
		}
	}
	return errs
}

// fail tells of all engagements of a port what could not be done.
func (h *holding) fail(errs map[string]string, why string) {
	for e := range h.engagements() {
		errs[e] = why
	}
}

// engagements are those that have something of the port.
func (h *holding) engagements() map[string]struct{} {
	all := map[string]struct{}{}
	for _, r := range slices.Concat(h.routes, h.taps) {
		all[r.To.Engagement] = struct{}{}
	}
	return all
}

// hold makes h what holds for a port. What is with the handler of an engagement
// that has no traffic of it any more may end for a while; datagrams, of which each
// stands for itself, are at once another's.
func (b *Beside) hold(d *diverted, h *holding, errs map[string]string) {
	for e, err := range d.split.Set(h.routes, h.taps, h.probes, b.node) {
		errs[e] = err.Error()
	}
	has := h.engagements()
	for e := range d.has {
		if _, ok := has[e]; !ok {
			time.AfterFunc(drainTime, func() { b.expire(d, e) })
		}
	}
	d.has = has
}

// expire cuts what is still with the handler of an engagement that has ended.
func (b *Beside) expire(d *diverted, engagement string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, again := d.has[engagement]; !again {
		d.cut(engagement)
	}
}

func (d *diverted) cut(engagement string) {
	d.set.Cut(engagement)
	d.split.Cut(engagement)
}

// retire waits until nothing is open of a port that is no longer diverted, and
// takes it away. It is harmless to call it again.
func (b *Beside) retire(p port.Port, d *diverted) {
	d.stay()
	ctx, cancel := context.WithCancel(context.Background())
	d.stay = cancel
	go func() {
		defer cancel()
		select {
		case <-time.After(onTheWay):
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil && d.set.Quiet(ctx) {
			b.mu.Lock()
			if ctx.Err() == nil && d.set.Open() == 0 {
				b.end(p, d)
				b.leave()
			}
			b.mu.Unlock()
		}
	}()
}

// rules are the table, in an order of their own.
func (b *Beside) rules() []divert.Rule {
	var rs []divert.Rule
	for p, d := range b.ports {
		if d.on && !d.named {
			rs = append(rs, divert.Rule{Port: p.Number, UDP: p.Protocol == port.UDP, To: d.at})
		}
	}
	slices.SortFunc(rs, func(a, b divert.Rule) int { return int(a.To) - int(b.To) })
	return rs
}

// Diverting reports whether at least one port is diverted.
func (b *Beside) Diverting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.rules()) > 0
}

// Open is the number of flows.
func (b *Beside) Open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, d := range b.ports {
		n += d.set.Open()
	}
	return n
}

// Lost is of how many connections copies for wiretaps were lost, by engagement.
func (b *Beside) Lost() map[string]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]int64{}
	for _, d := range b.ports {
		for e, n := range d.split.Lost() {
			all[e] += n
		}
	}
	return all
}

// NotHTTP are the ports, by engagement, to which something has come that its filter
// does not apply to, because it is not HTTP.
func (b *Beside) NotHTTP() map[string][]uint16 {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string][]uint16{}
	for _, d := range b.ports {
		for _, to := range d.split.NotHTTP() {
			all[to.Engagement] = append(all[to.Engagement], to.As)
		}
	}
	return all
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

package connection

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/vif/internal/dns"
	"berth.dev/services/vif/internal/netstack"
	"berth.dev/services/vif/internal/route"
	"berth.dev/services/vif/internal/tun"
	"berth.dev/services/vif/internal/virtual"
	"berth.dev/tunnel"
)

const probeWithin = 6 * time.Second

// Terminator ends the flows that arrive on the TUN. The plane needs no more of
// netstack than this; the kernel's own TCP may take its place (ADR 0004).
type Terminator interface {
	Run(ctx context.Context) error
	ListenTCP(netip.AddrPort) (net.Listener, error)
	ListenUDP(netip.AddrPort) (net.PacketConn, error)
	Flows() int
}

// plane is what stands in the network namespace while a connection does: the
// TUN with its routes, the terminator on it, and the DNS server.
type plane struct {
	log   *slog.Logger
	dev   *tun.Device
	stack Terminator
	dns   *dns.Server
	table *route.Table
	// virtual has the cluster's subnets that have other addresses here.
	virtual *virtual.Table
	resolv  Resolver
	server  []netip.Addr // of the DNS server, IPv4 first

	cancel context.CancelFunc
	wg     sync.WaitGroup
	broken chan struct{} // closed when a part has failed: see err
	err    error
	once   sync.Once

	short   string // the search domain of short names
	pointed bool
	lowered sync.Once

	mu       sync.Mutex
	welcome  *tunnel.Welcome
	needed   []netip.Addr // what must stay out of the tunnel
	networks []route.Network
	existing []route.Route  // of others, as they were when the VIF was raised
	subnets  []netip.Prefix // routed, the DNS server's aside
}

// raise makes the TUN, its routes and the terminator, and states that they stand.
func (c *Connection) raise(ctx context.Context, w *tunnel.Welcome) (*plane, error) {
	o := c.current()
	networks, err := route.Networks(c.cfg.Interface)
	if err != nil {
		return nil, err
	}
	actx, cancelLookup := context.WithTimeout(ctx, 5*time.Second)
	api, err := c.cfg.Dialer.Addresses(actx, o.target)
	cancelLookup()
	if err != nil {
		return nil, err
	}
	p := &plane{
		log: c.log, resolv: c.cfg.Resolver, virtual: &virtual.Table{}, networks: networks, broken: make(chan struct{}),
		needed: append(api, c.cfg.Resolver.Original().Servers...),
	}
	if a, err := netip.ParseAddrPort(c.cfg.Bus.NC.ConnectedAddr()); err == nil {
		p.needed = append(p.needed, a.Addr().Unmap())
	}
	if p.existing, err = route.Existing(c.cfg.Interface, networks); err != nil {
		return nil, err
	}
	if c.cfg.OnHost {
		p.short = command.ShortNames
	}
	if err := c.stand(p, w, o); err != nil {
		return nil, err
	}
	if err := c.check(p, p.virtual.Subnets(w.Subnets), o); err != nil {
		return nil, err
	}
	if p.dev, err = tun.Create(c.cfg.Interface, c.cfg.MTU); err != nil {
		return nil, explainTUN(err)
	}
	if err := p.start(w, o, &c.link); err != nil {
		p.lower()
		return nil, err
	}
	p.dns = dns.New(&c.link, func() []netip.Addr { return c.cfg.Resolver.Original().Servers }, c.log)
	c.interfaceReady(ctx, p)
	return p, nil
}

func explainTUN(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.FailedPrecondition, "modprobe tun", "the engine's machine has no /dev/net/tun: %v", err)
	case errors.Is(err, syscall.EBUSY):
		return fault.New(fault.FailedPrecondition, "ctl quit; or ctl connect --docker", "there is a VIF of another connection in this network already: %v", err)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.PermissionDenied, "ctl doctor", "the daemon container may not make a TUN, which needs NET_ADMIN and /dev/net/tun: %v", err)
	}
	return err
}

// start brings the device up with its addresses, routes and terminator.
func (p *plane) start(w *tunnel.Welcome, o *order, opener netstack.Opener) error {
	a := route.Pick(p.taken(w, o))
	set, err := route.Up(p.dev.Name(), a.Near, a.Near6)
	if err != nil {
		return err
	}
	p.server = []netip.Addr{a.Server}
	if slices.Contains(set, a.Near6) {
		p.server = append(p.server, a.Server6)
	} else {
		p.log.Info("the container's network has no IPv6: neither has the VIF")
	}
	if p.table, err = route.NewTable(p.dev.Name()); err != nil {
		return err
	}
	if _, err := p.sync(w, o); err != nil {
		return err
	}
	stack, err := netstack.New(netstack.Config{Device: p.dev, Opener: translated{opener, p.virtual}, Local: p.server, Logger: p.log})
	if err != nil {
		return err
	}
	p.stack = stack
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(func() { p.fail(stack.Run(ctx)) })
	return nil
}

func (p *plane) fail(err error) {
	if err != nil {
		p.once.Do(func() { p.err = err; close(p.broken) })
	}
}

// sync makes the routes fit what the cluster is and what was ordered. changed
// says that it is not what it was.
func (p *plane) sync(w *tunnel.Welcome, o *order) (changed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rules := route.Rules{
		Include: slices.Concat(p.virtual.Subnets(w.Subnets), o.also),
		Exclude: slices.Concat(o.never, hosts(p.needed)),
	}
	for _, n := range p.networks {
		rules.Exclude = append(rules.Exclude, hosts(n.Needed)...)
	}
	stand, err := p.table.Sync(append(hosts(p.server), route.Compute(rules)...))
	if err != nil {
		return false, err
	}
	subnets := slices.DeleteFunc(stand, func(s netip.Prefix) bool { return s.IsSingleIP() && slices.Contains(p.server, s.Addr()) })
	changed = p.welcome == nil || !slices.Equal(subnets, p.subnets)
	p.welcome, p.subnets = w, subnets
	if p.dns != nil {
		p.dns.SetCluster(p.zones(o), w.DNS)
	}
	return changed, nil
}

// protect keeps further addresses out of the tunnel.
func (p *plane) protect(addrs []netip.Addr, o *order) error {
	p.mu.Lock()
	w, missing := p.welcome, false
	for _, a := range addrs {
		if !slices.Contains(p.needed, a) {
			p.needed, missing = append(p.needed, a), true
		}
	}
	p.mu.Unlock()
	if !missing {
		return nil
	}
	_, err := p.sync(w, o)
	return err
}

// zones is called with mu held.
func (p *plane) zones(o *order) dns.Zones {
	domain := p.welcome.ClusterDomain
	if domain == "" {
		domain = "cluster.local"
	}
	return dns.Zones{Domain: domain, Namespace: o.namespace, Subnets: p.subnets, Namespaces: o.namespaces, Search: p.resolv.Original().Search, Short: p.short, Virtual: p.virtual}
}

func (c *Connection) interfaceReady(ctx context.Context, p *plane) {
	p.mu.Lock()
	subnets := make([]string, 0, len(p.subnets))
	for _, s := range p.subnets {
		subnets = append(subnets, s.String())
	}
	p.mu.Unlock()
	c.mu.Lock()
	c.subnets = subnets
	c.mu.Unlock()
	var virtual []event.VirtualSubnet
	for _, v := range p.virtual.Pairs() {
		virtual = append(virtual, event.VirtualSubnet{Cluster: v.Cluster.String(), Here: v.Here.String()})
	}
	c.log.Info("interface ready", "interface", p.dev.Name(), "subnets", subnets, "virtual", virtual)
	c.state(ctx, event.InterfaceReady{Interface: p.dev.Name(), Subnets: subnets, Virtual: virtual})
}

// startDNS serves names, makes sure that the cluster's arrive, and only then
// points the container at the server.
func (p *plane) startDNS(ctx context.Context, c *Connection) error {
	p.mu.Lock()
	p.dns.SetCluster(p.zones(c.current()), p.welcome.DNS)
	p.mu.Unlock()
	packets, listeners, err := p.listen()
	if err != nil {
		return err
	}
	dctx, stop := context.WithCancel(context.Background())
	lower := p.cancel
	served := make(chan struct{})
	p.cancel = func() { // DNS before what it stands on
		stop()
		<-served
		lower()
	}
	p.wg.Go(func() {
		defer close(served)
		p.fail(p.dns.Run(dctx, packets, listeners))
	})
	pctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	if err := p.dns.Probe(pctx, netip.AddrPortFrom(p.server[0], 53)); err != nil {
		return fault.New(fault.Unavailable, "ctl doctor", "%v", err)
	}
	search, err := p.resolv.Point(p.server[0], p.dns.Search(), p.dns.Routes())
	if err != nil {
		return fmt.Errorf("point resolvers at the VIF's DNS: %w", err)
	}
	p.pointed = true
	c.log.Info("DNS ready", "server", p.server[0], "search", search)
	c.state(ctx, event.DNSReady{Server: p.server[0].String(), Search: search})
	return nil
}

// listen opens where the DNS server is to be asked.
func (p *plane) listen() (packets []net.PacketConn, listeners []net.Listener, err error) {
	for _, a := range p.server {
		pc, err := p.stack.ListenUDP(netip.AddrPortFrom(a, 53))
		if err != nil {
			return nil, nil, err
		}
		packets = append(packets, pc)
		l, err := p.stack.ListenTCP(netip.AddrPortFrom(a, 53))
		if err != nil {
			return nil, nil, err
		}
		listeners = append(listeners, l)
	}
	morePackets, moreListeners := p.resolv.Sockets() // last: the others go with the stack
	return append(packets, morePackets...), append(listeners, moreListeners...), nil
}

// lower undoes everything, in reverse order. Repeating it is harmless.
func (p *plane) lower() { p.lowered.Do(p.undo) }

func (p *plane) undo() {
	if p.pointed {
		if err := p.resolv.Restore(); err != nil {
			p.log.Error("the resolver's configuration is not restored", "err", err)
		}
	}
	if p.cancel != nil {
		p.cancel()
	}
	p.wg.Wait()
	_ = p.dev.Close() // and with it addresses and routes
}

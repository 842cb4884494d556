// Package connection is the life of one connection in the daemon container: it
// takes the commands, opens the tunnel, raises the VIF, and keeps both up.
//
// A connection begins with TunnelOpen. Stage by stage (tunnel, VIF, DNS) it
// states that the stage has passed; if one fails, everything is undone and
// VIFFailed says at which stage and why, and TunnelOpen may be sent again. Once
// all have passed, a tunnel that is lost is opened again for as long as the
// process lives: the TUN, its routes and the DNS server stay meanwhile, only
// the flows that were open are reset.
//
// Locks: Connection.mu is never held while something is waited for.
package connection

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"
	"berth.dev/services/vif/internal/door"
	"berth.dev/services/vif/internal/engaged"
	"berth.dev/services/vif/internal/listening"
	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/services/vif/internal/topod"
	"berth.dev/services/vif/internal/tunnelclient"
	"berth.dev/tunnel"

	"golang.org/x/sync/errgroup"
)

// Dialer opens the tunnel. *tunnelclient.Client does; tests put the manager
// into their own process.
type Dialer interface {
	Dial(ctx context.Context, t tunnelclient.Target) (tunnelclient.Result, error)
	// Addresses are those that the tunnel itself needs.
	Addresses(ctx context.Context, t tunnelclient.Target) ([]netip.Addr, error)
}

// Resolver is how the programs of the network come to ask the VIF's DNS server.
type Resolver interface {
	// Original is whom they asked before, and whom vif itself asks.
	Original() resolvconf.Config
	// Sockets are where the server is to listen beside its address at the VIF;
	// they are the caller's to close.
	Sockets() ([]net.PacketConn, []net.Listener)
	// Point makes programs ask server, which is that at the VIF, and search the
	// domains of search. Where only some names are asked of it, they are those of
	// search and routes. It returns all domains that are searched.
	Point(server netip.Addr, search, routes []string) ([]string, error)
	// Restore undoes Point. Repeating it is harmless.
	Restore() error
}

// Config is what a Connection is made of.
type Config struct {
	ID        string // of the connection
	Version   string
	Identity  *tunnel.Identity // the key with which Dialer proves itself
	Bus       *bus.Conn
	Dialer    Dialer
	Resolver  Resolver
	Interface string // name of the TUN
	MTU       int
	// OnHost: the network is that of a machine, whose own routes come first, and
	// whose programs know short names by the search domain command.ShortNames.
	OnHost bool
	Logger *slog.Logger
}

// Connection is one connection's process. See Run.
type Connection struct {
	cfg     Config
	log     *slog.Logger
	link    link
	engaged *engaged.Table
	door    *door.Door
	toPod   *topod.Table
	wake    chan struct{} // interrupts the wait before the next attempt

	mu        sync.Mutex
	group     *errgroup.Group
	ctx       context.Context // of Run
	order     *order          // accepted TunnelOpen, nil before
	opening   bool            // somebody works on it
	failing   bool            // and is stating that it has failed
	reordered bool            // an order has come meanwhile
	plane     *plane          // nil while the VIF is down
	transport string
	subnets   []string
	doorAddr  string // where the volume plugin comes in, once Run listens
}

// order is a TunnelOpen, taken apart.
type order struct {
	target      tunnelclient.Target
	namespace   string
	namespaces  []string // of the cluster, as far as the user may list them
	also, never []netip.Prefix
	virtual     []netip.Prefix // of the cluster's, for which others are to stand
	virtualAuto bool           // and for those that are somebody else's here
}

// New returns a connection that does nothing yet.
func New(cfg Config) *Connection {
	c := &Connection{cfg: cfg, log: cfg.Logger, engaged: engaged.New(cfg.Logger), wake: make(chan struct{}, 1)}
	c.door = door.New(cfg.Identity, &c.link, c.volumesLost, cfg.Logger)
	c.toPod = topod.New(&c.link, cfg.Logger)
	return c
}

// Run serves the commands until ctx ends or the bus is lost, then undoes
// everything. It fails if the VIF breaks.
func (c *Connection) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	c.mu.Lock()
	c.group, c.ctx = g, ctx
	c.mu.Unlock()
	if err := c.openDoor(ctx, g); err != nil {
		return err
	}
	svc, err := c.cfg.Bus.Serve(subject.VIF, c.cfg.Version)
	if err != nil {
		return err
	}
	if err := c.handle(svc); err != nil {
		svc.Stop()
		return err
	}
	release, err := c.cfg.Bus.Hold(subject.VIF, c.cfg.ID)
	if err != nil {
		svc.Stop()
		return err
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-c.cfg.Bus.Lost():
			c.log.Warn("the bus is lost: ending")
			cancel()
		}
		return nil
	})
	g.Go(func() error { lease.GiveBack(ctx); return nil })
	c.state(ctx, event.VIFStarted{Version: c.cfg.Version, Pin: string(c.cfg.Identity.Pin())})
	<-ctx.Done()
	svc.Stop()
	release()
	return g.Wait()
}

// openDoor listens where the bus is reached from: on the workspace's network,
// and on no other that the container is in.
func (c *Connection) openDoor(ctx context.Context, g *errgroup.Group) error {
	host, _, err := net.SplitHostPort(c.cfg.Bus.NC.LocalAddr())
	if err != nil {
		return fmt.Errorf("find the container's address on the workspace's network: %w", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return fmt.Errorf("listen for the volume plugin: %w", err)
	}
	c.mu.Lock()
	c.doorAddr = l.Addr().String()
	c.mu.Unlock()
	g.Go(func() error { return c.door.Run(ctx, l) })
	g.Go(func() error { <-ctx.Done(); c.toPod.Close(); return nil })
	return nil
}

func (c *Connection) handle(svc *bus.Service) error {
	for _, add := range []func() error{
		func() error { return bus.Handle(svc, command.TunnelOpen, c.cfg.ID, c.tunnelOpen) },
		func() error { return bus.Handle(svc, command.Credentials, c.cfg.ID, c.credentials) },
		func() error { return bus.Handle(svc, command.VIFState, c.cfg.ID, c.status) },
		func() error { return bus.Handle(svc, command.VIFFigures, c.cfg.ID, c.figures) },
		func() error { return bus.Handle(svc, command.Engage, c.cfg.ID, c.engage) },
		func() error { return bus.Handle(svc, command.Listening, c.cfg.ID, c.listening) },
		func() error { return bus.Handle(svc, command.EngagePause, c.cfg.ID, c.engagePause) },
		func() error { return bus.Handle(svc, command.EngageResume, c.cfg.ID, c.engageResume) },
		func() error { return bus.Handle(svc, command.Disengage, c.cfg.ID, c.disengage) },
	} {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

// state states a fact. A bus that is away for good ends the process by itself,
// so a failure needs no more than to be seen.
func (c *Connection) state(ctx context.Context, d event.Data) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := c.cfg.Bus.State(ctx, c.cfg.ID, d); err != nil {
		c.log.Warn("fact not stated", "fact", event.TypeOf(d), "err", err)
	}
}

// volumesLost states that an engagement's volumes are lost for its handler.
func (c *Connection) volumesLost(ctx context.Context, engagement, cause string) {
	c.log.Warn("volumes are lost", "engagement", engagement, "cause", cause)
	c.state(ctx, event.VolumesLost{Engagement: engagement, Cause: cause})
}

func invalid(format string, args ...any) error {
	return fault.New(fault.InvalidArgument, "", format, args...)
}

func prefixes(what string, list []string) (out []netip.Prefix, err error) {
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, invalid("%s %q is not a subnet like 10.0.0.0/8", what, s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// tunnelOpen accepts the order; facts tell what becomes of it.
func (c *Connection) tunnelOpen(_ context.Context, req command.OpenTunnel) (command.Accepted, error) {
	o := &order{
		namespace: req.Namespace, namespaces: req.Namespaces,
		target: tunnelclient.Target{
			Connection: c.cfg.ID, Namespace: req.ManagerNamespace, Pin: req.Pin, Kubeconfig: req.Access.Kubeconfig, Direct: req.Direct,
		},
	}
	for name, v := range map[string]string{"namespace": req.Namespace, "managerNamespace": req.ManagerNamespace, "pin": req.Pin} {
		if v == "" {
			return command.Accepted{}, invalid("%s is missing", name)
		}
	}
	if err := tunnelclient.Validate(req.Access.Kubeconfig); err != nil {
		return command.Accepted{}, err
	}
	var err error
	if o.also, err = prefixes("also-proxy", req.AlsoProxy); err != nil {
		return command.Accepted{}, err
	}
	if o.never, err = prefixes("never-proxy", req.NeverProxy); err != nil {
		return command.Accepted{}, err
	}
	named := slices.DeleteFunc(slices.Clone(req.Virtual), func(s string) bool { return s == command.VirtualAuto })
	o.virtualAuto = len(named) < len(req.Virtual)
	if o.virtual, err = prefixes("vnat", named); err != nil {
		return command.Accepted{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	already := c.opening && !c.failing
	c.order = o
	switch {
	case c.failing:
		c.reordered = true
	case !already:
		c.opening = true
		c.group.Go(func() error { return c.open(c.ctx) })
	}
	return command.Accepted{ID: c.cfg.ID, Already: already}, nil
}

// credentials replaces the access for the next time the tunnel is dialled.
func (c *Connection) credentials(_ context.Context, req command.Access) (command.Accepted, error) {
	if err := tunnelclient.Validate(req.Kubeconfig); err != nil {
		return command.Accepted{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.order == nil {
		return command.Accepted{}, fault.New(fault.FailedPrecondition, "", "no tunnel has been asked for: there is nothing to renew")
	}
	o := *c.order
	o.target.Kubeconfig = req.Kubeconfig
	c.order = &o
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return command.Accepted{ID: c.cfg.ID}, nil
}

func (c *Connection) status(context.Context, command.None) (command.VIFStatus, error) {
	s := c.link.get()
	c.mu.Lock()
	defer c.mu.Unlock()
	st := command.VIFStatus{Subnets: append([]string{}, c.subnets...), Flows: c.engaged.Flows(), Door: c.doorAddr, DoorPin: c.door.Pin()}
	if s != nil && s.Err() == nil {
		st.TunnelUp, st.Transport, st.RTTMicros = true, c.transport, s.RTT().Microseconds()
	}
	if c.plane != nil {
		st.Flows += c.plane.stack.Flows()
	}
	return st, nil
}

// figuresTimeout bounds how long the far side may take to say what it holds.
const figuresTimeout = 10 * time.Second

// figures are vif's own and, while the tunnel is up, those of the far side.
func (c *Connection) figures(ctx context.Context, _ command.None) (command.Figures, error) {
	ctx, cancel := context.WithTimeout(ctx, figuresTimeout)
	defer cancel()
	s, streams := c.link.get(), 0
	if s != nil {
		streams = s.NumStreams()
	}
	all := []lease.Figures{lease.FiguresOf("vif", streams)}
	if s != nil {
		far, err := tunnel.Call[struct{}, []lease.Figures](ctx, s, lease.MethodFigures, struct{}{})
		if err != nil {
			c.log.Debug("no figures of the manager", "err", err)
		}
		all = append(all, far...)
	}
	var rep command.Figures
	for _, f := range all {
		rep.Processes = append(rep.Processes, command.Process{Process: f.Process, Goroutines: f.Goroutines, Files: f.Files, MemoryBytes: f.Memory, HeapBytes: f.Heap, Streams: f.Streams, CPUMicros: f.CPU})
	}
	return rep, nil
}

func (c *Connection) engage(_ context.Context, req command.EngageHandler) (command.Accepted, error) {
	if !subject.Valid(req.Engagement) {
		return command.Accepted{}, invalid("engagement %q is not an id", req.Engagement)
	}
	address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if req.Address != "" {
		a, err := netip.ParseAddr(strings.Trim(req.Address, "[]"))
		if err != nil {
			return command.Accepted{}, invalid("address %q is not an IP address", req.Address)
		}
		address = a
	}
	var ports []engaged.Port
	for _, p := range req.Ports {
		udp := strings.EqualFold(p.Protocol, "UDP")
		if p.Container == 0 || !udp && p.Protocol != "" && !strings.EqualFold(p.Protocol, "TCP") {
			return command.Accepted{}, invalid("port %d/%s cannot be engaged", p.Container, p.Protocol)
		}
		handler := p.Handler
		if handler == 0 {
			handler = p.Container
		}
		ports = append(ports, engaged.Port{Container: p.Container, Handler: handler, UDP: udp})
	}
	reach, err := toPod(req.ToPod)
	if err != nil {
		return command.Accepted{}, err
	}
	if v := req.Volumes; v != nil {
		if v.Token == "" || v.Pin == "" {
			return command.Accepted{}, invalid("volumes need both a token and a pin")
		}
		c.door.Grant(req.Engagement, door.Grant{Token: v.Token, Pin: tunnel.Pin(v.Pin)})
	}
	if err := c.toPod.Set(req.Engagement, reach); err != nil {
		return command.Accepted{}, fault.New(fault.FailedPrecondition, "ctl list", "%v; no handler of this connection can have a port that another one has", err)
	}
	already := c.engaged.Set(req.Engagement, address, ports)
	return command.Accepted{ID: req.Engagement, Already: already}, nil
}

// toPod reads ports of the pod: 6379, 53/UDP.
func toPod(given []string) ([]topod.Port, error) {
	var ports []topod.Port
	for _, g := range given {
		number, protocol, _ := strings.Cut(g, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		udp := strings.EqualFold(protocol, "UDP")
		if err != nil || n == 0 || !udp && protocol != "" && !strings.EqualFold(protocol, "TCP") {
			return nil, invalid("port %q is not like 6379 or 53/UDP", g)
		}
		ports = append(ports, topod.Port{Number: uint16(n), UDP: udp})
	}
	return ports, nil
}

// listening tells which of the ports of a handler nobody listens on yet.
func (c *Connection) listening(ctx context.Context, req command.AskListening) (command.ListeningPorts, error) {
	rep := command.ListeningPorts{Missing: []event.Port{}}
	address, err := netip.ParseAddr(strings.Trim(req.Address, "[]"))
	if err != nil {
		return rep, invalid("address %q is not an IP address", req.Address)
	}
	for _, p := range req.Ports {
		if p.Handler == 0 {
			p.Handler = p.Container
		}
		missing, err := listening.Missing(ctx, address, []listening.Port{{Number: p.Handler, UDP: strings.EqualFold(p.Protocol, "UDP"), Forwarded: req.Forwarded}})
		if err != nil {
			return rep, err
		}
		if len(missing) > 0 {
			rep.Missing = append(rep.Missing, p)
		}
	}
	return rep, nil
}

// engagePause makes new flows of an engagement wait.
func (c *Connection) engagePause(_ context.Context, req command.PauseEngagement) (command.PausedEngagement, error) {
	if req.Millis <= 0 {
		return command.PausedEngagement{}, invalid("a pause needs a limit")
	}
	open, busy, ok := c.engaged.Pause(req.Engagement, time.Duration(req.Millis)*time.Millisecond)
	if !ok {
		return command.PausedEngagement{}, fault.New(fault.NotFound, "", "no traffic is engaged by %q", req.Engagement)
	}
	return command.PausedEngagement{Open: open, Busy: busy}, nil
}

// engageResume lets them go on.
func (c *Connection) engageResume(_ context.Context, req command.EngagementRef) (command.Accepted, error) {
	if !subject.Valid(req.Engagement) {
		return command.Accepted{}, invalid("engagement %q is not an id", req.Engagement)
	}
	return command.Accepted{ID: req.Engagement, Already: !c.engaged.Resume(req.Engagement)}, nil
}

func (c *Connection) disengage(_ context.Context, req command.EngagementRef) (command.Accepted, error) {
	if !subject.Valid(req.Engagement) {
		return command.Accepted{}, invalid("engagement %q is not an id", req.Engagement)
	}
	c.door.Revoke(req.Engagement)
	c.toPod.Remove(req.Engagement)
	return command.Accepted{ID: req.Engagement, Already: !c.engaged.Remove(req.Engagement)}, nil
}

func at(stage event.Stage, err error) *fault.Error {
	f := fault.At(string(stage), err)
	if f.Code == fault.Internal { // the edge of the bus: it came as a plain error
		f.Hint = "ctl doctor"
	}
	return f
}

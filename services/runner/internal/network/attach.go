package network

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/owner"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// Want are the networks that a container is to be on, by name or ID as the user
// wrote them, with what the user asked for there.
type Want map[string]*network.EndpointSettings

// Attached are the networks that daemon containers joined for containers which
// share theirs: Docker has no such container join one by itself.
//
// An endpoint that was made for this carries a mark in its driver's options,
// which the engine keeps; whoever needs it says so in its label. So whatever
// dies, a later runner can tell what is to be undone. A network on which the
// daemon container is for other reasons is never left, nor joined anew.
//
// One endpoint serves all owners in a network, and Docker gives it names and
// addresses only when it is made. An owner that brings more names therefore has
// the daemon container leave and join again, which cuts the others' connections
// through that network for a moment; that is logged.
//
// Concurrency: mu is held while the engine joins and leaves, so that these are
// one after another.
type Attached struct {
	eng *engine.Engine

	mu     sync.Mutex
	owners map[string]*attachment // by owner
}

type attachment struct {
	owner owner.Owner
	ids   []string // of networks
	since time.Time
}

// mark is the driver option of endpoints that were made for a container.
const mark = "berth.dev/joined"

// NewAttached returns one that knows of nothing.
func NewAttached(e *engine.Engine) *Attached {
	return &Attached{eng: e, owners: map[string]*attachment{}}
}

// Join has the connection's daemon container join the networks that an owner
// wants, and returns their IDs. All or none. To ask again is fine.
func (a *Attached) Join(ctx context.Context, o owner.Owner, want Want) (ids []string, err error) {
	if len(want) == 0 {
		return nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.owners[o.Key()]; at != nil {
		return at.ids, nil
	}
	daemon, err := a.eng.DaemonOf(ctx, o.Connection)
	if err != nil {
		return nil, err
	}
	at := &attachment{owner: o, since: time.Now()}
	a.owners[o.Key()] = at
	for _, name := range slices.Sorted(maps.Keys(want)) {
		id, err := a.join(ctx, daemon, o, name, want[name])
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
			defer cancel()
			if lerr := a.leave(undo, at); lerr != nil {
				a.eng.Log.Warn("a joined network is left to the next sweep", "container", o.Name, "err", lerr)
			}
			return nil, err
		}
		at.ids = append(at.ids, id)
	}
	return at.ids, nil
}

const leaveWithin = 10 * time.Second

// join is Join for one network.
func (a *Attached) join(ctx context.Context, daemon string, o owner.Owner, name string, ask *network.EndpointSettings) (string, error) {
	n, err := a.eng.API.NetworkInspect(ctx, name, network.InspectOptions{})
	if cerrdefs.IsNotFound(err) {
		return "", fault.New(fault.NotFound, "docker network create "+name, "the Docker network %s does not exist", name)
	}
	if err != nil {
		return "", engine.Fault(err, "inspect network %s", name)
	}
	in, err := a.eng.API.ContainerInspect(ctx, daemon)
	if err != nil {
		return "", engine.Fault(err, "inspect the daemon container")
	}
	ask = a.complete(ask, o, n)
	for _, is := range in.NetworkSettings.Networks {
		if is.NetworkID == n.ID {
			return n.ID, a.share(ctx, daemon, o, n, is, ask)
		}
	}
	return n.ID, a.connect(ctx, daemon, n, ask)
}

// complete is what the user asked for, with the mark, and with the container's
// own name where names are possible: not on Docker's default network.
func (a *Attached) complete(ask *network.EndpointSettings, o owner.Owner, n network.Inspect) *network.EndpointSettings {
	e := &network.EndpointSettings{}
	if ask != nil {
		e = ask.Copy()
	}
	e.DriverOpts = maps.Clone(e.DriverOpts)
	if e.DriverOpts == nil {
		e.DriverOpts = map[string]string{}
	}
	e.DriverOpts[mark] = "true"
	if n.Name != network.NetworkBridge && !slices.Contains(e.Aliases, o.Name) {
		e.Aliases = append(slices.Clone(e.Aliases), o.Name)
	}
	return e
}

func (a *Attached) connect(ctx context.Context, daemon string, n network.Inspect, e *network.EndpointSettings) error {
	err := a.eng.API.NetworkConnect(ctx, n.ID, daemon, e)
	if err == nil {
		return nil
	}
	msg := engine.Message(err)
	if ip := address(e); ip != "" && (strings.Contains(msg, "Address already in use") || strings.Contains(msg, "is in use")) {
		return fault.New(fault.AlreadyExists, "docker network inspect "+n.Name, "the address %s in the network %s is taken%s", ip, n.Name, takenBy(n, ip))
	}
	if c := fault.CodeOf(engine.Fault(err, "")); c == fault.Internal || c == fault.PermissionDenied {
		// What the engine says here is about the user's arguments: an address
		// outside of the subnet, a network that cannot be attached to.
		return fault.New(fault.InvalidArgument, "docker network inspect "+n.Name, "join network %s: %s", n.Name, msg)
	}
	return engine.Fault(err, "join network %s", n.Name)
}

// takenBy names who has an address.
func takenBy(n network.Inspect, ip string) string {
	for _, c := range n.Containers {
		for _, has := range []string{c.IPv4Address, c.IPv6Address} {
			if p, err := netip.ParsePrefix(has); err == nil && p.Addr().String() == ip {
				return " by the container " + c.Name
			}
		}
	}
	return ""
}

// address is the one that was asked for, of either family.
func address(e *network.EndpointSettings) string {
	if e.IPAMConfig == nil {
		return ""
	}
	if e.IPAMConfig.IPv4Address != "" {
		return e.IPAMConfig.IPv4Address
	}
	return e.IPAMConfig.IPv6Address
}

// share is join where the daemon container is on the network already.
func (a *Attached) share(ctx context.Context, daemon string, o owner.Owner, n network.Inspect, is, ask *network.EndpointSettings) error {
	lacks := slices.DeleteFunc(slices.Clone(ask.Aliases), func(s string) bool { return s == o.Name || slices.Contains(is.Aliases, s) })
	ip := address(ask)
	if ip != "" && (ip == is.IPAddress || ip == is.GlobalIPv6Address) {
		ip = ""
	}
	if len(lacks) == 0 && ip == "" && len(ask.Links) == 0 {
		return nil
	}
	what := strings.Join(append(lacks, strings.Fields(ip)...), ", ")
	if len(ask.Links) > 0 {
		what = strings.TrimPrefix(what+", the links "+strings.Join(ask.Links, ", "), ", ")
	}
	if is.DriverOpts[mark] == "" {
		return fault.New(fault.FailedPrecondition, "docker network create NAME", "the connection itself is on the network %s, and cannot be given %s there without being cut: use another network", n.Name, what)
	}
	for _, other := range a.owners {
		if ip != "" && other.owner.Key() != o.Key() && slices.Contains(other.ids, n.ID) {
			return fault.New(fault.AlreadyExists, other.owner.Hint(), "the address %s cannot be had in the network %s: %s has joined it already, and all containers of a connection share one address there, %s", ip, n.Name, other.owner.Name, is.IPAddress)
		}
	}
	a.eng.Log.Warn("a network is left and joined again, for more names there", "network", n.Name, "container", o.Name, "names", what)
	all := ask.Copy()
	for _, s := range is.Aliases {
		if !slices.Contains(all.Aliases, s) && !strings.HasPrefix(daemon, s) { // the engine adds its ID by itself
			all.Aliases = append(all.Aliases, s)
		}
	}
	if err := a.eng.API.NetworkDisconnect(ctx, n.ID, daemon, true); err != nil && !cerrdefs.IsNotFound(err) {
		return engine.Fault(err, "leave network %s", n.Name)
	}
	err := a.connect(ctx, daemon, n, all)
	if err != nil { // as it was
		all.Aliases, all.IPAMConfig, all.Links = is.Aliases, is.IPAMConfig, is.Links
		if rerr := a.connect(context.WithoutCancel(ctx), daemon, n, all); rerr != nil {
			a.eng.Log.Error("a network could not be joined again", "network", n.Name, "err", rerr)
		}
	}
	return err
}

// Leave has the daemon container leave what it joined for an owner and nobody
// else needs. Nothing joined is fine.
func (a *Attached) Leave(ctx context.Context, o owner.Owner) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.owners[o.Key()]
	if at == nil {
		return nil
	}
	return a.leave(ctx, at)
}

// LeaveSoon leaves on the way out of whoever has no better thing to do with an
// error.
func (a *Attached) LeaveSoon(ctx context.Context, o owner.Owner) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveWithin)
	defer cancel()
	if err := a.Leave(ctx, o); err != nil {
		a.eng.Log.Warn("joined networks are left to the next sweep", "container", o.Name, "err", err)
	}
}

// leave forgets an owner and reconciles; a.mu is held.
func (a *Attached) leave(ctx context.Context, at *attachment) error {
	delete(a.owners, at.owner.Key())
	list, err := a.eng.List(ctx, engine.Is(engine.LabelComponent, engine.Daemon), engine.Is(engine.LabelConnection, at.owner.Connection))
	if err != nil {
		return err
	}
	return a.reconcile(ctx, list)
}

// reserved is how long the networks of an engagement are kept that connector
// does not know (yet); see package ports.
const reserved = 2 * time.Minute

// Reconcile has every daemon container leave what it joined for nobody that is
// left. known tells of engagements whether connector has them.
func (a *Attached) Reconcile(ctx context.Context, known func(engagement string) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, at := range a.owners {
		if e := at.owner.Engagement; e != "" && !known(e) && time.Since(at.since) > reserved {
			delete(a.owners, k)
		}
	}
	list, err := a.eng.List(ctx, engine.Is(engine.LabelComponent, engine.Daemon))
	if err != nil {
		return err
	}
	return a.reconcile(ctx, list)
}

func (a *Attached) reconcile(ctx context.Context, daemons []container.Summary) error {
	for _, d := range daemons {
		if d.State != container.StateRunning {
			continue
		}
		in, err := a.eng.API.ContainerInspect(ctx, d.ID)
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return engine.Fault(err, "inspect the daemon container")
		}
		for name, is := range in.NetworkSettings.Networks {
			if is.DriverOpts[mark] == "" || a.needed(d.Labels[engine.LabelConnection], is.NetworkID) {
				continue
			}
			id := is.NetworkID
			if id == "" { // an engine before 24 keeps the endpoint of a join that failed
				id = name
			}
			err := a.eng.API.NetworkDisconnect(ctx, id, d.ID, true)
			if err != nil && is.NetworkID == "" {
				continue // and does not always let it go: it has no interface
			}
			if err != nil && !cerrdefs.IsNotFound(err) && !strings.Contains(err.Error(), "is not connected") {
				return engine.Fault(err, "leave network %s", name)
			}
		}
	}
	return nil
}

func (a *Attached) needed(connection, network string) bool {
	for _, at := range a.owners {
		if at.owner.Connection == connection && slices.Contains(at.ids, network) {
			return true
		}
	}
	return false
}

// Adopt takes over the networks of living owners that an earlier runner joined.
// It must have returned before commands are served.
func (a *Attached) Adopt(ctx context.Context) error {
	list, err := a.eng.List(ctx)
	if err != nil {
		return err
	}
	owners, labels := owner.Living(list)
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, o := range owners {
		if l := labels[i][engine.LabelNetworks]; l != "" {
			a.owners[o.Key()] = &attachment{owner: o, ids: strings.Split(l, ","), since: time.Now()}
		}
	}
	return nil
}

package connection

import (
	"errors"
	"net/netip"
	"slices"

	"berth.dev/bus/fault"
	"berth.dev/services/vif/internal/route"
	"berth.dev/tunnel"
)

// stand lets virtual subnets stand for those of the cluster that were named, and
// for those that cannot be routed here if that was asked for.
func (c *Connection) stand(p *plane, w *tunnel.Welcome, o *order) error {
	taken := p.taken(w, o)
	for _, v := range o.virtual {
		named := false
		for _, s := range w.Subnets {
			if !s.Overlaps(v) {
				continue
			}
			named = true
			if s.Bits() < v.Bits() {
				v = s // as a whole: a subnet is in one place
			}
			if err := p.virtual.Stand(v, taken); err != nil {
				return fault.New(fault.FailedPrecondition, "ctl connect --docker", "%v", err)
			}
		}
		if !named {
			return fault.New(fault.InvalidArgument, "ctl connect --vnat auto", "--vnat %s: the cluster has no such subnet, but %v", v, w.Subnets)
		}
	}
	if !o.virtualAuto {
		return nil
	}
	for _, s := range w.Subnets {
		if c.check(p, p.virtual.Subnets([]netip.Prefix{s}), o) == nil {
			continue
		}
		if err := p.virtual.Stand(s, taken); err != nil {
			return fault.New(fault.FailedPrecondition, "ctl connect --docker", "%v", err)
		}
	}
	return nil
}

// taken is what is in use already, here or in the cluster.
func (p *plane) taken(w *tunnel.Welcome, o *order) []netip.Prefix {
	taken := slices.Concat(w.Subnets, o.also, p.virtual.Subnets(w.Subnets))
	for _, n := range p.networks {
		taken = append(taken, n.Prefix)
	}
	for _, r := range p.existing {
		taken = append(taken, r.Prefix)
	}
	return taken
}

// check turns what cannot be routed beside this network's own into something to
// act on. In a container these are its Docker networks; on a machine its routes
// too, a VPN's say, from which nothing is taken unless the user says so.
func (c *Connection) check(p *plane, subnets []netip.Prefix, o *order) error {
	const hint = "ctl connect --vnat auto"
	var network *route.ConflictError
	if err := route.Check(subnets, p.networks, o.never); errors.As(err, &network) {
		if c.cfg.OnHost {
			return fault.New(fault.FailedPrecondition, hint,
				"%v: let virtual addresses stand for the cluster's (--vnat %s), do without the cluster's part of it (--never-proxy %s), or connect with --docker, where this machine's networks are not in the way", network, network.Subnet, network.Network.Prefix)
		}
		return fault.New(fault.FailedPrecondition, "ctl connect --docker --vnat auto",
			"%v: let virtual addresses stand for the cluster's (--vnat %s), give the Docker network another subnet, or do without the cluster's part of it (--never-proxy %s)", network, network.Subnet, network.Network.Prefix)
	}
	if !c.cfg.OnHost {
		return nil
	}
	var other *route.RouteConflictError
	if err := route.CheckRoutes(subnets, p.existing, slices.Concat(o.never, o.also)); errors.As(err, &other) {
		return fault.New(fault.FailedPrecondition, hint,
			"%v, perhaps a VPN's: let virtual addresses stand for the cluster's (--vnat %s), do without the cluster's (--never-proxy %[2]s), or without the others (--also-proxy %[2]s), or connect with --docker, where nothing of this machine's is in the way", other, other.Subnet)
	}
	return nil
}

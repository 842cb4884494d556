package workspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"berth.dev/bus/fault"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
)

// pool is where the workspace's network is cut from: a half of the range that
// RFC 2544 sets aside for benchmarks, which neither clusters nor VPNs use.
// Docker's own pools are what clusters do use (172.20.0.0/16 on EKS).
const pool = "198.19.0.0/16"

// ensureNetwork makes sure of the workspace's network. created reports whether
// this call made it; an existing one that is not ours is refused.
func (w *Workspace) ensureNetwork(ctx context.Context) (id string, created bool, err error) {
	all, err := w.Engine.API.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return "", false, fmt.Errorf("list networks: %w", err)
	}
	name := w.Network()
	for _, n := range all {
		if n.Name != name {
			continue
		}
		if n.Labels[LabelWorkspace] != w.Name {
			return "", false, fault.New(fault.AlreadyExists, "docker network rm "+name, "there is a Docker network %s that is not Berth's", name)
		}
		return n.ID, false, nil
	}
	taken := prefixes(all)
	for i := 0; i < 256; i++ {
		subnet := nth(i)
		if slices.ContainsFunc(taken, subnet.Overlaps) {
			continue
		}
		// Whole, whatever Ctrl-C says: see createContainer.
		r, err := w.Engine.API.NetworkCreate(context.WithoutCancel(ctx), name, network.CreateOptions{
			Driver: "bridge", Labels: w.labels(""),
			IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet.String()}}},
		})
		switch {
		case err == nil:
			return w.oneNetwork(ctx, name, r.ID)
		case strings.Contains(err.Error(), "overlaps"):
			continue // with something that the list does not tell
		case errdefs.IsConflict(err) || strings.Contains(err.Error(), "already exists"):
			return w.ensureNetwork(ctx) // another ctl was faster
		}
		return "", false, fmt.Errorf("create network %s: %w", name, err)
	}
	return "", false, fault.New(fault.FailedPrecondition, "docker network prune", "no free subnet in %s for the network %s", pool, name)
}

// oneNetwork settles a race: engines before 24 let two networks have one name.
// The oldest stays.
func (w *Workspace) oneNetwork(ctx context.Context, name, mine string) (string, bool, error) {
	ctx = context.WithoutCancel(ctx) // who has made something says what
	same, err := w.Engine.API.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("name", "^"+name+"$"))})
	if err != nil {
		return "", false, errors.Join(fmt.Errorf("list networks: %w", err), w.removeNetwork(ctx, mine))
	}
	if len(same) < 2 {
		return mine, true, nil
	}
	oldest := slices.MinFunc(same, func(a, b network.Summary) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	if oldest.ID == mine {
		return mine, true, nil
	}
	if err := w.Engine.API.NetworkRemove(ctx, mine); err != nil && !errdefs.IsNotFound(err) {
		return "", false, fmt.Errorf("remove the second network %s: %w", name, err)
	}
	return oldest.ID, false, nil
}

// nth is the i-th /24 of the pool.
func nth(i int) netip.Prefix {
	a := netip.MustParsePrefix(pool).Addr().As4()
	a[2] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom4(a), 24)
}

// prefixes are what is in use: by Docker's networks and by this machine.
func prefixes(all []network.Summary) []netip.Prefix {
	var taken []netip.Prefix
	for _, n := range all {
		for _, c := range n.IPAM.Config {
			if p, err := netip.ParsePrefix(c.Subnet); err == nil {
				taken = append(taken, p)
			}
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return taken // the engine will refuse what overlaps
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	return taken
}

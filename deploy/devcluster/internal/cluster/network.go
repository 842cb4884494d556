package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"berth.dev/deploy/devcluster/engine"
)

// subnets are tried in turn; the engine refuses one that overlaps another
// network of the machine. All of them are outside the cluster's own ranges
// (10.244.0.0/16 and 10.96.0.0/16) and the engines' usual pools.
var subnets = []string{"10.231.0.0/24", "192.168.231.0/24", "172.31.231.0/24", "10.99.231.0/24"}

const subnet6 = "fd00:10:231::/64"

// network is the cluster's own network. The node's addresses in it are fixed,
// because they are in its certificates and in etcd.
type network struct{ ip4, ip6 string }

// ensureNetwork creates the network if it is missing: dual-stack if the engine
// can, IPv4 only otherwise.
func ensureNetwork(ctx context.Context) (network, error) {
	n, err := inspectNetwork(ctx)
	if err == nil || !engine.NotFound(err) {
		return n, err
	}
	families := [][]string{{"--ipv6", "--subnet", subnet6}, nil}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		families = families[1:]
	}
	var last error
	for _, six := range families {
		for _, subnet := range subnets {
			args := append([]string{"network", "create", "--driver", "bridge", "--label", label, "--subnet", subnet}, six...)
			if _, last = engine.Run(ctx, append(args, Name)...); last == nil {
				return inspectNetwork(ctx)
			}
		}
	}
	return network{}, fmt.Errorf("create network %s: all of %s are refused, the last with: %w", Name, strings.Join(subnets, ", "), last)
}

func inspectNetwork(ctx context.Context) (network, error) {
	out, err := engine.Run(ctx, "network", "inspect", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{end}}", Name)
	if err != nil {
		return network{}, err
	}
	return nodeAddresses(strings.Fields(out))
}

// nodeAddresses picks the node's address in each subnet: the 231st, far from
// those that the engine gives to others.
func nodeAddresses(subnets []string) (network, error) {
	var n network
	for _, s := range subnets {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return n, fmt.Errorf("read subnet of network %s: %w", Name, err)
		}
		raw := prefix.Masked().Addr().AsSlice()
		raw[len(raw)-1] += 231
		ip, _ := netip.AddrFromSlice(raw)
		if ip.Is4() {
			n.ip4 = ip.String()
		} else {
			n.ip6 = ip.String()
		}
	}
	if n.ip4 == "" {
		return n, fmt.Errorf("network %s has no IPv4 subnet; type: devcluster down", Name)
	}
	return n, nil
}

// defaultPort is where kubeconfigs expect the API.
const defaultPort = "16443"

// freePort is the wanted port, else the default one if it is free, else any.
func freePort(wanted string) (string, error) {
	if wanted != "" {
		return wanted, nil
	}
	for _, port := range []string{defaultPort, "0"} {
		listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			continue
		}
		_, port, err = net.SplitHostPort(listener.Addr().String())
		listener.Close()
		return port, err
	}
	return "", fmt.Errorf("no free port on 127.0.0.1 for the API; set BERTH_DEVCLUSTER_PORT")
}

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// The cluster's addresses. The container's own network is chosen by `devcluster
// up` so that it overlaps with none of them.
const (
	podCIDR4     = "10.244.0.0/16" // the one node gets 10.244.0.0/24 of it
	podCIDR6     = "fd00:10:244::/56"
	nodePods4    = "10.244.0.0/24"
	nodePods6    = "fd00:10:244::/64"
	serviceCIDR4 = "10.96.0.0/16"
	serviceCIDR6 = "fd00:10:96::/112"
	apiserverIP4 = "10.96.0.1" // the first of a service CIDR is Kubernetes's own
	apiserverIP6 = "fd00:10:96::1"
	dnsIP        = "10.96.0.10"
)

// Where things are inside the container.
const (
	stateDir  = "/var/lib/berth-node" // keys, configuration, etcd
	pkiDir    = stateDir + "/pki"
	configDir = stateDir + "/config"
	logDir    = "/var/log/berth-node"
	imagesDir = "/opt/berth/images" // image archives that come with the node
	socket    = "/run/berth-node.sock"
)

// node is what this container turned out to be.
type node struct {
	name       string
	ip4        netip.Addr
	ip6        netip.Addr // not valid on an engine without IPv6
	restricted bool       // CAP_SYS_RESOURCE is missing: OOM scores cannot be lowered
	snapshots  string     // containerd's snapshotter
}

// dual tells whether the cluster has IPv6 too.
func (n node) dual() bool { return n.ip6.IsValid() }

// families joins the IPv4 value and, on a dual-stack node, the IPv6 one.
func (n node) families(v4, v6 string) string {
	if n.dual() {
		return v4 + "," + v6
	}
	return v4
}

func (n node) ips() string { return n.families(n.ip4.String(), n.ip6.String()) }

// discover reads the node's name, addresses and capabilities off the container.
func discover() (node, error) {
	n := node{snapshots: "overlayfs"}
	var err error
	if n.name, err = os.Hostname(); err != nil {
		return n, fmt.Errorf("read host name: %w", err)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return n, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := prefix.Addr()
		switch {
		case !ip.IsGlobalUnicast() || inCluster(ip):
		case ip.Is4() && !n.ip4.IsValid():
			n.ip4 = ip
		case ip.Is6() && !n.ip6.IsValid():
			n.ip6 = ip
		}
	}
	if !n.ip4.IsValid() {
		return n, fmt.Errorf("the container has no IPv4 address")
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return n, fmt.Errorf("read capabilities: %w", err)
	}
	n.restricted = !hasSysResource(string(status))
	if !overlayWorks() {
		n.snapshots = "native"
	}
	return n, nil
}

// inCluster tells addresses that a former run of this node left on interfaces.
func inCluster(ip netip.Addr) bool {
	for _, cidr := range []string{podCIDR4, podCIDR6, serviceCIDR4, serviceCIDR6} {
		if netip.MustParsePrefix(cidr).Contains(ip) {
			return true
		}
	}
	return false
}

// hasSysResource reads the bounding set (capabilities(7)) out of /proc/self/status.
func hasSysResource(status string) bool {
	const sysResource = 24
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			var set uint64
			fmt.Sscanf(strings.TrimSpace(hex), "%x", &set)
			return set&(1<<sysResource) != 0
		}
	}
	return false
}

// writeFile writes a configuration file and the directories above it.
func writeFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

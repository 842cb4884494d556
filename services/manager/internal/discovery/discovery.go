// Package discovery finds out what a client has to route and whom it has to ask
// for names: the cluster's service and pod subnets, its domain and DNS servers.
//
// Services: the ServiceCIDR API (Kubernetes 1.33), else a guess around the
// addresses of the services there are. Pods: the nodes' podCIDRs, and what pods
// there are outside of them, which is all there is with some networks. The
// domain and the servers are those of the manager's own resolv.conf.
package discovery

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// keep is for how long subnets are not asked for again.
const keep = 30 * time.Second

// Discovery answers from the cluster, with a short memory.
type Discovery struct {
	Client kubernetes.Interface
	// PodIPs are the addresses of all pods that have a network of their own.
	PodIPs func() []netip.Addr
	Log    *slog.Logger

	mu      sync.Mutex
	subnets []netip.Prefix
	at      time.Time
}

// Subnets are the cluster's service and pod subnets, IPv4 and IPv6.
func (d *Discovery) Subnets(ctx context.Context) ([]netip.Prefix, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.subnets != nil && time.Since(d.at) < keep {
		return d.subnets, nil
	}
	services, err := d.services(ctx)
	if err != nil {
		return nil, err
	}
	d.subnets, d.at = merge(append(services, d.pods(ctx)...)), time.Now()
	return d.subnets, nil
}

func (d *Discovery) services(ctx context.Context) ([]netip.Prefix, error) {
	var out []netip.Prefix
	cidrs, err := d.Client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err == nil {
		for _, c := range cidrs.Items {
			out = append(out, parse(c.Spec.CIDRs)...)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	// Before 1.33 nobody says; services cluster in one range, by default a /12
	// to /20, and a /16 around each address covers most of them.
	list, err := d.Client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	for _, s := range list.Items {
		for _, ip := range s.Spec.ClusterIPs {
			a, err := netip.ParseAddr(ip)
			if err != nil {
				continue // "None"
			}
			bits := 16
			if a.Is6() {
				bits = 112
			}
			p, _ := a.Prefix(bits)
			out = append(out, p)
		}
	}
	return merge(out), nil
}

func (d *Discovery) pods(ctx context.Context) []netip.Prefix {
	var out []netip.Prefix
	nodes, err := d.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		d.Log.Warn("nodes cannot be listed; pod subnets are guessed from the pods' addresses", "err", err)
	} else {
		for _, n := range nodes.Items {
			out = append(out, parse(n.Spec.PodCIDRs)...)
		}
	}
	var outside []netip.Addr
	for _, ip := range d.PodIPs() {
		if !slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			outside = append(outside, ip)
		}
	}
	return merge(append(out, cover(outside)...))
}

func parse(cidrs []string) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range cidrs {
		if p, err := netip.ParsePrefix(c); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

// Resolver is what a pod's resolv.conf says.
type Resolver struct {
	Domain  string
	Servers []netip.Addr
}

// ReadResolver reads a pod's resolv.conf.
func ReadResolver(path string) (Resolver, error) {
	f, err := os.Open(path)
	if err != nil {
		return Resolver{}, fmt.Errorf("read the resolver's configuration: %w", err)
	}
	defer f.Close()
	return parseResolver(f)
}

func parseResolver(r io.Reader) (Resolver, error) {
	res := Resolver{Domain: "cluster.local"}
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				res.Servers = append(res.Servers, a.WithZone(""))
			}
		case "search":
			for _, d := range f[1:] {
				if rest, ok := strings.CutPrefix(strings.TrimSuffix(d, "."), "svc."); ok {
					res.Domain = rest
				}
			}
		}
	}
	if err := s.Err(); err != nil {
		return res, fmt.Errorf("read the resolver's configuration: %w", err)
	}
	return res, nil
}

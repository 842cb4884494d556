package kubeconfig

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
)

// Engine is what Locate asks the Docker Engine.
type Engine interface {
	ContainerList(context.Context, container.ListOptions) ([]container.Summary, error)
	NetworkInspect(context.Context, string, network.InspectOptions) (network.Inspect, error)
	Info(context.Context) (system.Info, error)
}

// Reach says how containers reach the API server.
type Reach struct {
	Via      string   // for people: "directly", "container kind-control-plane", "host gateway 172.17.0.1"
	Networks []string // Docker networks on which it is reached
}

// dialTimeout bounds each attempt, so that all of them together stay well below
// the twenty seconds in which a failure is to be told.
const dialTimeout = 5 * time.Second

// Locate makes the target's server one that containers reach, and verifies it by
// a TLS handshake. A loopback address is the host's, not a container's: what
// publishes that port is looked for among the containers (kind, k3d, minikube,
// anything else), and is taken where its certificate is the right one; failing
// that, the host's gateway is. local: containers' addresses can be dialled from
// here, as on a Linux host that runs the engine.
//
// Every failure is a fault of the stage "API server".
func (t *Target) Locate(ctx context.Context, docker Engine, local bool) (Reach, error) {
	r, err := t.locate(ctx, docker, local && runtime.GOOS == "linux")
	if err != nil {
		return r, fault.At(string(event.StageAPIServer), err)
	}
	return r, nil
}

func (t *Target) locate(ctx context.Context, docker Engine, dialable bool) (Reach, error) {
	c := t.cluster()
	u, err := url.Parse(c.Server)
	if err != nil || u.Hostname() == "" {
		return Reach{}, fault.New(fault.FailedPrecondition, "kubectl config view --minify", "%q is no server URL", c.Server)
	}
	if c.ProxyURL != "" {
		return Reach{Via: "proxy " + c.ProxyURL}, nil // who reaches it is the proxy's business
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80"}[u.Scheme], "443")
	if docker == nil || !loopback(ctx, u.Hostname()) {
		if err := t.verify(ctx, u.Scheme, net.JoinHostPort(u.Hostname(), port), u.Hostname()); err != nil {
			return Reach{}, t.unreachable(c.Server, err)
		}
		return Reach{Via: "directly"}, nil
	}
	return t.behindLoopback(ctx, docker, dialable, u, port)
}

// Here leaves the target's server where the user's kubeconfig has it, for what
// runs on this machine itself, and verifies it by a TLS handshake. Every failure
// is a fault of the stage "API server".
func (t *Target) Here(ctx context.Context) (Reach, error) {
	r, err := t.locate(ctx, nil, false)
	if err != nil {
		return r, fault.At(string(event.StageAPIServer), err)
	}
	return r, nil
}

// candidate is an address at which the API server may be reached from a container.
type candidate struct {
	host, port, network, via string
}

func (t *Target) behindLoopback(ctx context.Context, docker Engine, dialable bool, u *url.URL, port string) (Reach, error) {
	// Asked only where no container answers for it.
	original := sync.OnceValue(func() error {
		return t.verify(ctx, u.Scheme, net.JoinHostPort(u.Hostname(), port), u.Hostname())
	})
	reached := func(c candidate) error {
		err := t.verify(ctx, u.Scheme, net.JoinHostPort(c.host, c.port), u.Hostname())
		// Where containers cannot be dialled from here, it has to do that the
		// server answers at its own address; connector dials the rest.
		if err != nil && !dialable && networkError(err) && original() == nil {
			return nil
		}
		return err
	}
	all, err := publishers(ctx, docker, port)
	if err != nil {
		return Reach{}, err
	}
	for _, c := range all {
		if reached(c) == nil {
			return t.take(u, c), nil
		}
	}
	// Last, and only then asked for: some engines take a tenth of a second to say
	// what they are.
	gateway, err := hostGateway(ctx, docker, port)
	if err != nil {
		return Reach{}, err
	}
	last := reached(gateway)
	if last == nil {
		return t.take(u, gateway), nil
	}
	if err := original(); err != nil {
		return Reach{}, t.unreachable(t.Server, err)
	}
	return Reach{}, fault.New(fault.FailedPrecondition, "let the API server (or the ssh tunnel to it) listen on 0.0.0.0:"+port,
		"the API server answers at %s on this machine only: no container publishes port %s, and containers do not reach it over %s (%v)", t.Server, port, gateway.via, last)
}

// take rewrites the server. The certificate is still to be the one for the
// address that the user's kubeconfig has.
func (t *Target) take(u *url.URL, c candidate) Reach {
	n := *u
	n.Host = net.JoinHostPort(c.host, c.port)
	cl := t.cluster()
	cl.Server = n.String()
	if cl.TLSServerName == "" && !cl.InsecureSkipTLSVerify && u.Scheme == "https" {
		cl.TLSServerName = u.Hostname()
	}
	r := Reach{Via: c.via}
	if c.network != "" {
		r.Networks = []string{c.network}
	}
	return r
}

// unreachable explains err for people.
func (t *Target) unreachable(server string, err error) error {
	hint := "kubectl --context " + t.Context + " get --raw /version"
	if networkError(err) {
		return fault.New(fault.Unavailable, hint, "the API server at %s does not answer: %v", server, err)
	}
	return fault.New(fault.FailedPrecondition, hint, "the API server at %s is not the one of context %s: %v", server, t.Context, err)
}

// loopback reports whether host is this machine, for people and for resolvers:
// Docker Desktop gives the name kubernetes.docker.internal to 127.0.0.1.
func loopback(ctx context.Context, host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.IsLoopback() || a.IsUnspecified()
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(addrs) == 0 {
		return false
	}
	return !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !a.Unmap().IsLoopback() })
}

// publishers are the running containers that publish the host's port, each at
// its address on every network that it is on; networks made by users first,
// since only those are sure to reach other containers.
func publishers(ctx context.Context, docker Engine, port string) ([]candidate, error) {
	list, err := docker.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return nil, fault.New(fault.Unavailable, "docker ps", "list the containers: %v", err)
	}
	var found []candidate
	for _, c := range list {
		for _, p := range c.Ports {
			if p.Type != "tcp" || strconv.Itoa(int(p.PublicPort)) != port || c.NetworkSettings == nil {
				continue
			}
			for name, e := range c.NetworkSettings.Networks {
				if e == nil || e.IPAddress == "" {
					continue
				}
				found = append(found, candidate{e.IPAddress, strconv.Itoa(int(p.PrivatePort)), name, "container " + strings.TrimPrefix(c.Names[0], "/")})
			}
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(boolCompare(a.network == "bridge", b.network == "bridge"), cmp.Compare(a.network, b.network))
	})
	return slices.Compact(found), nil // a port is published for IPv4 and for IPv6
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// hostGateway is the address by which containers reach the engine's machine.
func hostGateway(ctx context.Context, docker Engine, port string) (candidate, error) {
	info, err := docker.Info(ctx)
	if err == nil && strings.Contains(info.OperatingSystem, "Docker Desktop") {
		const name = "host.docker.internal"
		return candidate{name, port, "", "host gateway " + name}, nil
	}
	n, err := docker.NetworkInspect(ctx, "bridge", network.InspectOptions{})
	if err != nil {
		return candidate{}, fault.New(fault.Unavailable, "docker network inspect bridge", "find the host's gateway: %v", err)
	}
	for _, c := range n.IPAM.Config {
		if a, err := netip.ParseAddr(c.Gateway); err == nil && a.Is4() {
			return candidate{c.Gateway, port, "", "the host gateway " + c.Gateway}, nil
		}
	}
	// An engine whose default bridge has no gateway entry uses the first address.
	for _, c := range n.IPAM.Config {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil && p.Addr().Is4() {
			a := p.Masked().Addr().Next().String()
			return candidate{a, port, "", "the host gateway " + a}, nil
		}
	}
	return candidate{}, fault.From(errors.New("the network bridge has no IPv4 subnet"))
}

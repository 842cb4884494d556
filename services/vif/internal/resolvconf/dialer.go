package resolvconf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

// Dialer connects by names as the original configuration resolves them. vif
// itself must not ask its own DNS server: it could not find the API server or
// the bus while the tunnel is down.
//
// It may be used concurrently.
type Dialer struct {
	cfg      Config
	resolver *net.Resolver
	next     atomic.Uint32
}

// NewDialer returns a dialer for the original configuration.
func NewDialer(cfg Config) *Dialer {
	d := &Dialer{cfg: cfg}
	d.resolver = &net.Resolver{PreferGo: true, Dial: d.server}
	return d
}

// server connects to one of the original name servers. Go's resolver asks once
// for each server it finds in the rewritten file, which is one, and again when
// it gets no answer: that goes to the next.
func (d *Dialer) server(ctx context.Context, network, address string) (net.Conn, error) {
	if len(d.cfg.Servers) == 0 {
		return nil, errors.New("the container has no name server")
	}
	s := d.cfg.Servers[int(d.next.Load())%len(d.cfg.Servers)]
	var nd net.Dialer
	c, err := nd.DialContext(ctx, network, netip.AddrPortFrom(s, 53).String())
	if err != nil {
		d.next.Add(1)
	}
	return c, err
}

// Resolver asks the original servers; unlike Lookup it knows nothing of the
// original search list.
func (d *Dialer) Resolver() *net.Resolver { return d.resolver }

// Lookup resolves a name to its addresses, with the original search list.
func (d *Dialer) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	var first error
	for _, name := range d.candidates(host) {
		// A trailing dot keeps the rewritten search list out of it.
		addrs, err := d.resolver.LookupNetIP(ctx, "ip", name+".")
		if err == nil {
			for i := range addrs {
				addrs[i] = addrs[i].Unmap()
			}
			return addrs, nil
		}
		var dns *net.DNSError
		if errors.As(err, &dns) && !dns.IsNotFound {
			d.next.Add(1)
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("resolve %s with the container's own name servers: %w", host, first)
}

// candidates are the names to try for host, as resolv.conf(5) has it.
func (d *Dialer) candidates(host string) []string {
	if n, ok := strings.CutSuffix(host, "."); ok {
		return []string{n}
	}
	var list []string
	for _, s := range d.cfg.Search {
		list = append(list, host+"."+s)
	}
	if strings.Count(host, ".") >= d.cfg.Ndots() {
		return append([]string{host}, list...)
	}
	return append(list, host)
}

// Dial implements the dialer that NATS asks for.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// DialContext connects to the first address that answers.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := d.Lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var first error
	for i, a := range addrs {
		// The time that is left is shared among those that are left.
		actx, cancel := ctx, context.CancelFunc(func() {})
		if deadline, ok := ctx.Deadline(); ok && i < len(addrs)-1 {
			actx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addrs)-i))
		}
		nd := net.Dialer{KeepAlive: 15 * time.Second}
		c, err := nd.DialContext(actx, network, net.JoinHostPort(a.String(), port))
		cancel()
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

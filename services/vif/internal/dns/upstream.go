package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// udpSize is what is offered to servers and clients alike
// (https://www.dnsflagday.net/2020/).
const udpSize = 1232

// upstreamTry bounds one attempt at one server. A client waits for five seconds.
const upstreamTry = 2 * time.Second

// upstream asks the container's original name servers, in their order. It goes
// by the kernel's network, where Docker's own server (127.0.0.11) is.
type upstream struct {
	servers func() []netip.Addr
	port    string // 53
}

var errNoServer = errors.New("the container has no name server of its own")

func (u *upstream) exchange(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	err := errNoServer
	for _, s := range u.servers() {
		if ctx.Err() != nil {
			break
		}
		var r *dns.Msg
		if r, err = u.ask(ctx, s, m); err == nil {
			return r, nil
		}
	}
	return nil, fmt.Errorf("ask the container's own name servers: %w", err)
}

func (u *upstream) ask(ctx context.Context, s netip.Addr, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTry)
	defer cancel()
	address := "[" + s.String() + "]:" + u.port
	q := m.Copy()
	q.Id = dns.Id()
	udp := dns.Client{Net: "udp", UDPSize: udpSize, Timeout: upstreamTry}
	r, _, err := udp.ExchangeContext(ctx, q, address)
	if err != nil || !r.Truncated {
		return r, err
	}
	tcp := dns.Client{Net: "tcp", Timeout: upstreamTry}
	if whole, _, err := tcp.ExchangeContext(ctx, q, address); err == nil {
		return whole, nil
	}
	return r, nil // better than nothing: the client may try by itself
}

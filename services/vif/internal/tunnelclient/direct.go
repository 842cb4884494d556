package tunnelclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"berth.dev/tunnel"
)

// Direct is the transport without the API server: TCP to an address that the
// manager has published.
const Direct = "direct"

const (
	// directWithin bounds the attempt: an address that a firewall swallows must
	// not hold up anything, and one that takes longer is no gain.
	directWithin = time.Second
	// directGrace is how long the way through the API server, once it stands,
	// waits for the direct one.
	directGrace = 100 * time.Millisecond
	// A direct path that broke so soon after it was opened is worse than the
	// other one, and left alone for a while: one that takes small packets only, say.
	directProven = time.Minute
	directShun   = 10 * time.Minute
)

var errNoDirect = errors.New("no address for the direct path")

// dialDirect tries all addresses at once, up to the upgrade: what answers so is
// a tunnel endpoint, and whether it is the right one the handshake tells.
func (c *Client) dialDirect(ctx context.Context, addrs []string) (net.Conn, error) {
	if len(addrs) == 0 {
		return nil, errNoDirect
	}
	ctx, cancel := context.WithTimeout(ctx, directWithin)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	for _, a := range addrs {
		go func() {
			conn, err := c.upgradeAt(ctx, a)
			select {
			case results <- result{conn, err}:
			case <-ctx.Done(): // another one was faster, or time is up
				if conn != nil {
					_ = conn.Close()
				}
			}
		}()
	}
	var errs []error
	for range addrs {
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			errs = append(errs, r.err)
		case <-ctx.Done():
			return nil, errors.Join(append(errs, context.Cause(ctx))...)
		}
	}
	return nil, errors.Join(errs...)
}

func (c *Client) upgradeAt(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := c.names.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	up, err := tunnel.RequestUpgrade(ctx, conn, addr, tunnel.Path, nil)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("ask %s for a tunnel: %w", addr, err)
	}
	return up, nil
}

// directAddresses are those of t, unless the direct path has just failed.
func (c *Client) directAddresses(t Target) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.directAt.IsZero() && now.Sub(c.directAt) < directProven {
		c.shunUntil = now.Add(directShun)
	}
	c.directAt = time.Time{}
	if now.Before(c.shunUntil) {
		return nil
	}
	return t.Direct
}

func (c *Client) directOpened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.directAt = time.Now()
}

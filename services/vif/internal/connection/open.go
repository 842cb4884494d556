package connection

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/services/vif/internal/tunnelclient"
	"berth.dev/tunnel"
)

const (
	// firstWithin bounds the tunnel stage: a failure has to be told within
	// 20 s of the connect.
	firstWithin = 12 * time.Second
	// attemptWithin bounds one attempt later, when there is time.
	attemptWithin = 20 * time.Second
	backoffFrom   = 100 * time.Millisecond
	backoffTo     = 5 * time.Second
)

// current is the order as it stands; Credentials may have changed it.
func (c *Connection) current() *order {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order
}

// open is the whole life of a connection, from an accepted order to the end of
// ctx, or to a stage that fails. It returns an error only if the VIF broke.
func (c *Connection) open(ctx context.Context) error {
	res, err := c.first(ctx)
	if err != nil {
		c.failed(ctx, at(event.StageTunnel, err))
		return nil
	}
	c.opened(ctx, res)
	p, err := c.raise(ctx, res.Welcome)
	if err != nil {
		c.link.set(nil)
		_ = res.Session.CloseWithError(err)
		c.failed(ctx, at(event.StageVIF, err))
		return nil
	}
	defer p.lower()
	c.mu.Lock()
	c.plane = p
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.plane == p { // not that of the next order
			c.plane, c.subnets = nil, nil
		}
	}()
	serving := c.serve(ctx, res.Session) // the far side may open streams from the first moment
	if err := p.startDNS(ctx, c); err != nil {
		c.link.set(nil)
		_ = res.Session.CloseWithError(err)
		<-serving
		p.lower() // before another order is taken
		c.failed(ctx, at(event.StageDNS, err))
		return nil
	}
	err = c.keep(ctx, p, res.Session, serving)
	if err != nil && ctx.Err() == nil {
		c.state(ctx, event.VIFFailed{Error: *at(event.StageVIF, err)})
		return err
	}
	return nil
}

// failed states why, and makes way for another order. One that comes before the
// statement has returned, of someone who has seen the fact, is taken up then.
func (c *Connection) failed(ctx context.Context, f *fault.Error) {
	c.mu.Lock()
	c.failing = true
	c.mu.Unlock()
	if ctx.Err() == nil {
		c.log.Error("stage failed", "stage", f.Stage, "err", f.Message)
		c.state(ctx, event.VIFFailed{Error: *f})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing, c.opening = false, c.reordered
	if c.reordered {
		c.reordered = false
		c.group.Go(func() error { return c.open(ctx) })
	}
}

// opened makes the session the one that flows use.
func (c *Connection) opened(ctx context.Context, res tunnelclient.Result) {
	c.mu.Lock()
	c.transport = res.Transport
	c.mu.Unlock()
	c.link.set(res.Session)
	c.log.Info("tunnel opened", "transport", res.Transport, "rtt", res.Session.RTT())
	c.state(ctx, event.TunnelOpened{Transport: res.Transport, RTTMicros: res.Session.RTT().Microseconds()})
}

// first dials until it works, time is up, or there is no hope. The manager may
// not have seen our Lease yet, or just be restarting.
func (c *Connection) first(ctx context.Context) (tunnelclient.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, firstWithin)
	defer cancel()
	var last error
	for wait := backoffFrom; ; wait = min(2*wait, time.Second) {
		res, err := c.cfg.Dialer.Dial(ctx, c.current().target)
		if err == nil {
			return res, nil
		}
		if last == nil || !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			last = err // rather than that time was up
		}
		if tunnelclient.Permanent(err) || !c.pause(ctx, wait) {
			return res, last
		}
	}
}

// pause waits for about d, or until there are new credentials. It returns
// false when ctx ends.
func (c *Connection) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-c.wake:
	case <-t.C:
	}
	return ctx.Err() == nil
}

// serve answers the far side's requests on a session; the channel is closed
// when the session has ended and so have its streams.
func (c *Connection) serve(ctx context.Context, s *tunnel.Session) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.engaged.Serve(ctx, s)
		<-s.Done()
	}()
	return done
}

// keep keeps the tunnel open until ctx ends or the plane breaks.
func (c *Connection) keep(ctx context.Context, p *plane, s *tunnel.Session, serving <-chan struct{}) error {
	for {
		select {
		case <-s.Done():
		case <-ctx.Done():
		case <-p.broken:
		}
		c.link.set(nil)
		why := s.Err()
		_ = s.Close()
		<-serving
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-p.broken:
			return p.err
		default:
		}
		c.log.Warn("tunnel lost", "err", why)
		f := fault.New(fault.Unavailable, "ctl status", "%v", why)
		f.Stage = string(event.StageTunnel)
		c.state(ctx, event.TunnelLost{Error: *f})
		res, err := c.again(ctx, p)
		if err != nil {
			return err
		}
		s = res.Session
		serving = c.serve(ctx, s)
		c.opened(ctx, res)
		if err := c.stand(p, res.Welcome, c.current()); err != nil {
			c.log.Warn("a subnet that is new has no virtual addresses", "err", err)
		}
		if changed, err := p.sync(res.Welcome, c.current()); err != nil {
			return err
		} else if changed {
			c.interfaceReady(ctx, p)
		}
	}
}

// again dials for as long as it takes. The error is ctx's or the plane's.
func (c *Connection) again(ctx context.Context, p *plane) (tunnelclient.Result, error) {
	told := ""
	for wait := backoffFrom; ; wait = min(2*wait, backoffTo) {
		if !c.pause(ctx, wait) {
			return tunnelclient.Result{}, ctx.Err()
		}
		select {
		case <-p.broken:
			return tunnelclient.Result{}, p.err
		default:
		}
		o := c.current()
		actx, cancel := context.WithTimeout(ctx, attemptWithin)
		// The API server may have moved to an address that is routed into the
		// tunnel: take it out before anybody dials it.
		if addrs, err := c.cfg.Dialer.Addresses(actx, o.target); err == nil {
			if err := p.protect(addrs, o); err != nil {
				cancel()
				return tunnelclient.Result{}, err
			}
		}
		res, err := c.cfg.Dialer.Dial(actx, o.target)
		cancel()
		if err == nil {
			return res, nil
		}
		if ctx.Err() == nil && err.Error() != told { // not the same line every five seconds
			told = err.Error()
			c.log.Warn("tunnel not opened, trying again", "err", err)
		}
	}
}

func hosts(addrs []netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		if a = a.WithZone(""); a.IsValid() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

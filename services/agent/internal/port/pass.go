package port

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"berth.dev/tunnel"
)

// appTimeout is how long a pod of the app may take to answer a connection: it was
// reached a moment ago, and another one may be there.
const appTimeout = time.Second

// Pass has new connections go on to the app in other pods, in the place of the
// handler, from when it returns; none of apps ends that. It returns those of apps
// that are reached on all of the ports.
func (s *Set) Pass(ctx context.Context, ports []Port, apps []netip.Addr) []netip.Addr {
	reached := make([]bool, len(apps))
	var asking sync.WaitGroup
	for i, a := range apps {
		asking.Go(func() {
			reached[i] = !slices.ContainsFunc(ports, func(p Port) bool {
				c, err := dialApp(ctx, a, p.Number)
				if err == nil {
					c.Close()
				}
				return err != nil
			})
		})
	}
	asking.Wait()
	var app []netip.Addr
	for i, a := range apps {
		if reached[i] {
			app = append(app, a)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.app = app
	return app
}

func dialApp(ctx context.Context, a netip.Addr, port uint16) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: appTimeout}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// apps are the pods of the app to which new connections go on, in any order; none:
// they go to the handler.
func (s *Set) apps() []netip.Addr {
	s.mu.Lock()
	app := slices.Clone(s.app)
	s.mu.Unlock()
	rand.Shuffle(len(app), func(i, j int) { app[i], app[j] = app[j], app[i] })
	return app
}

// pass carries a connection to the app, to its end. One that no pod takes is reset.
func (s *Set) pass(c *net.TCPConn, as uint16, app []netip.Addr) {
	for _, a := range app {
		far, err := dialApp(s.ctx, a, as)
		if err != nil {
			s.log.Debug("a pod of the app does not answer", "pod", a, "port", as, "err", err)
			continue
		}
		if _, _, err := tunnel.Relay(c, far); err != nil {
			s.log.Debug("flow ended", "port", as, "err", err)
		}
		return
	}
	reset(c)
}

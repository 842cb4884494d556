// Package relay carries what arrives at a socket to the port of the same number
// in this network namespace.
//
// A socket may have been made in another namespace (package handover): then
// this is the way from the one into the other, and it is the only hop.
//
// TCP ends as it ends on the other side: a half-close is passed on as one, a
// reset as a reset. A connection to a port on which nobody listens is reset,
// which is as near to a refusal as one comes that has accepted already. UDP has
// flows, one for each client, that are forgotten when they have carried nothing
// for a while.
package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// dialWithin is long for a connection to one's own machine.
const dialWithin = 10 * time.Second

// TCP accepts on l until ctx ends, and carries each connection to the port on
// 127.0.0.1, or to where target says if that is refused. It returns when all
// have ended.
func TCP(ctx context.Context, l net.Listener, port uint16, target func() (netip.AddrPort, error)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if !passes(err) {
				return err
			}
			select { // out of descriptors: some connection will end
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		all.Go(func() { carry(ctx, c.(*net.TCPConn), port, target) })
	}
}

// passes: an error that does not mean that the listener is broken.
func passes(err error) bool {
	var n interface{ Temporary() bool }
	return errors.As(err, &n) && n.Temporary()
}

func carry(ctx context.Context, in *net.TCPConn, port uint16, target func() (netip.AddrPort, error)) {
	defer in.Close()
	out, err := dial(ctx, port, target)
	if err != nil {
		_ = in.SetLinger(0)
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { oneWay(out, in) })
	oneWay(in, out)
	both.Wait()
}

// dial tries what is nearly always right before it asks where the port is, which
// costs reading a table of all connections.
func dial(ctx context.Context, port uint16, target func() (netip.AddrPort, error)) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	var d net.Dialer
	d.SetMultipathTCP(false)
	first := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	c, err := d.DialContext(ctx, "tcp", first.String())
	if errors.Is(err, syscall.ECONNREFUSED) {
		to, terr := target()
		if terr != nil || to == first {
			return nil, errors.Join(err, terr)
		}
		c, err = d.DialContext(ctx, "tcp", to.String())
	}
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// oneWay carries one direction to its end (by splice(2), as the package net
// does between two TCP connections) and passes that end on.
func oneWay(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil {
		// One of the two was reset or has vanished: so do both.
		_ = to.SetLinger(0)
		_ = from.SetLinger(0)
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}

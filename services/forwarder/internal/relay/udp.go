package relay

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// UDP carries datagrams between clients of c and where target says, a flow for
// each client, until ctx ends; a flow that has carried nothing for idle is
// forgotten. It returns when all flows have ended.
func UDP(ctx context.Context, c *net.UDPConn, idle time.Duration, target func() (netip.AddrPort, error)) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	f := &flows{front: c, idle: idle, target: target, all: map[netip.AddrPort]*flow{}}
	defer f.end()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if passes(err) {
				continue
			}
			return err
		}
		if to := f.of(from); to != nil {
			_, _ = to.back.Write(buf[:n]) // a datagram may be lost
		}
	}
}

// maxFlows bounds the descriptors of one port; the one that was idle for longest
// gives way.
const maxFlows = 8192

// flows are those of one port.
type flows struct {
	front  *net.UDPConn
	idle   time.Duration
	target func() (netip.AddrPort, error)

	mu  sync.Mutex
	all map[netip.AddrPort]*flow
	wg  sync.WaitGroup
}

type flow struct {
	back *net.UDPConn
	used atomic.Int64 // when last, in nanoseconds
}

// of returns the flow of a client, a new one where there is none; nil if there
// is no making one.
func (f *flows) of(client netip.AddrPort) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now().UnixNano()
	if fl := f.all[client]; fl != nil {
		fl.used.Store(now)
		return fl
	}
	to, err := f.target()
	if err != nil {
		return nil
	}
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil
	}
	if len(f.all) >= maxFlows {
		f.evict()
	}
	fl := &flow{back: back}
	fl.used.Store(now)
	f.all[client] = fl
	f.wg.Go(func() { f.answers(client, fl) })
	return fl
}

// evict ends the flow that was idle for longest. f.mu is held.
func (f *flows) evict() {
	var oldest *flow
	for _, fl := range f.all {
		if oldest == nil || fl.used.Load() < oldest.used.Load() {
			oldest = fl
		}
	}
	oldest.back.Close() // answers takes it off the map
}

// answers carries the other way, and ends the flow: when it is idle, closed, or
// refused because nobody listens (any more).
func (f *flows) answers(client netip.AddrPort, fl *flow) {
	defer func() {
		fl.back.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.all[client] == fl {
			delete(f.all, client)
		}
	}()
	buf := make([]byte, 1<<16)
	for {
		_ = fl.back.SetReadDeadline(time.Unix(0, fl.used.Load()).Add(f.idle))
		n, err := fl.back.Read(buf)
		if err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() && time.Since(time.Unix(0, fl.used.Load())) < f.idle {
				continue // used meanwhile by the client
			}
			return
		}
		fl.used.Store(time.Now().UnixNano())
		_, _ = f.front.WriteToUDPAddrPort(buf[:n], client)
	}
}

// end ends all flows and waits for them.
func (f *flows) end() {
	f.mu.Lock()
	for _, fl := range f.all {
		fl.back.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

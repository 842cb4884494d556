package split

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"berth.dev/services/agent/internal/port"
	"berth.dev/tunnel"
)

// Bounds of what waits for the handlers of wiretaps, of one port and engagement.
const (
	copyMost   = 128 << 10 // bytes of one connection
	copiesMost = 128       // connections at a time
	copyLinger = 5 * time.Second
)

// tap is a wiretap's part of a port: how many connections are being copied, and of
// how many something was lost. Those of one with a filter are requests.
type tap struct {
	to    port.To
	match *matcher // nil: no filter
	open  atomic.Int64
	lost  atomic.Int64
}

// begin counts one more copy, if there may be.
func (t *tap) begin() bool {
	if t.open.Add(1) <= copiesMost {
		return true
	}
	t.open.Add(-1)
	return false
}

// going is a copy on its way.
type going interface {
	of() *tap
	cut()
}

// tapped is a client's connection, of which copies are made as it is read. Reading
// never waits for them.
type tapped struct {
	*net.TCPConn
	copies []*copied
	sifted *queue // for wiretaps with filters; nil: there are none
}

func (t *tapped) Read(b []byte) (int, error) {
	n, err := t.TCPConn.Read(b)
	for _, c := range t.copies {
		c.put(b[:n])
	}
	if t.sifted != nil {
		t.sifted.fill(b[:n]) // who sifts waits for nobody
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.end()
	}
	return n, err
}

func (t *tapped) end() {
	for _, c := range t.copies {
		c.end()
	}
	if t.sifted != nil {
		t.sifted.end(io.EOF)
	}
}

// WriteTo hides the socket's own, which knows nothing of copies.
func (t *tapped) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{t})
}

func (t *tapped) Close() error {
	t.end()
	return t.TCPConn.Close()
}

// copied is the copy of one connection on its way to a handler.
type copied struct {
	port *Port
	tap  *tap

	mu     sync.Mutex
	more   sync.Cond // on mu: one of what follows has changed
	queue  []byte
	ended  bool // the client has
	lost   bool // something was dropped, and with it the rest
	stream *tunnel.Stream
}

// tapping makes copies of a connection for all that tap the port.
func (p *Port) tapping(ctx context.Context, c *net.TCPConn, taps []*tap) *tapped {
	t := &tapped{TCPConn: c}
	for _, tap := range taps {
		if tap.match != nil {
			if t.sifted == nil {
				t.sifted = p.sift(ctx, c)
			}
			continue
		}
		if !tap.begin() {
			p.lose(tap)
			continue
		}
		k := &copied{port: p, tap: tap}
		k.more.L = &k.mu
		t.copies = append(t.copies, k)
		p.mu.Lock()
		p.copies[k] = struct{}{}
		p.mu.Unlock()
		go k.run(ctx, tap.to.Header(tunnel.KindTCP, c.LocalAddr(), c.RemoteAddr()))
	}
	return t
}

// lose counts, and says so now and then.
func (p *Port) lose(t *tap) {
	if n := t.lost.Add(1); n&(n-1) == 0 {
		p.log.Warn("copies of connections are lost: the handler does not take them", "engagement", t.to.Engagement, "connections", n)
	}
}

// Lost is of how many connections something was lost, by engagement.
func (p *Port) Lost() map[string]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string]int64{}
	for e, t := range p.taps {
		all[e] = t.lost.Load()
	}
	return all
}

// put queues what the client has said; where that is too much the copy ends.
func (c *copied) put(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost || c.ended || len(b) == 0 {
		return
	}
	if len(c.queue)+len(b) > copyMost {
		c.drop()
		return
	}
	c.queue = append(c.queue, b...)
	c.more.Signal()
}

// drop gives the copy up; c.mu is held.
func (c *copied) drop() {
	if c.lost {
		return
	}
	c.lost, c.queue = true, nil
	c.port.lose(c.tap)
	if c.stream != nil {
		c.stream.Reset(tunnel.CodeCanceled) // also ends a Write that waits
	}
	c.more.Signal()
}

// end says that the client has ended: what is queued may still be taken, for a while.
func (c *copied) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.ended = true
		c.more.Signal()
	}
}

func (c *copied) of() *tap { return c.tap }

// cut ends the copy because its engagement has.
func (c *copied) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.queue = true, nil
	if c.stream != nil {
		c.stream.Reset(tunnel.CodeCanceled)
	}
	c.more.Signal()
}

// run carries the copy to the handler and drops what that answers.
func (c *copied) run(ctx context.Context, h tunnel.Header) {
	defer func() {
		c.tap.open.Add(-1)
		c.port.mu.Lock()
		delete(c.port.copies, c)
		c.port.mu.Unlock()
	}()
	s, err := c.port.open(ctx, h)
	c.mu.Lock()
	if err != nil || c.lost {
		c.drop()
		c.mu.Unlock()
		if err == nil {
			s.Reset(tunnel.CodeCanceled)
		}
		return
	}
	c.stream = s
	c.mu.Unlock()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		_, _ = io.Copy(io.Discard, s)
	}()
	for {
		b, ended := c.next()
		if len(b) > 0 {
			if _, err := s.Write(b); err != nil {
				c.mu.Lock()
				c.drop()
				c.mu.Unlock()
			}
		}
		if ended {
			break
		}
	}
	_ = s.CloseWrite()
	select {
	case <-answered:
	case <-time.After(copyLinger):
	case <-ctx.Done():
	}
	s.Reset(tunnel.CodeCanceled) // nothing where both have ended
	<-answered
}

// next waits for what is to be written; ended: there is nothing after it.
func (c *copied) next() (b []byte, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.ended && !c.lost {
		c.more.Wait()
	}
	b, c.queue = c.queue, nil
	return b, c.lost || c.ended
}

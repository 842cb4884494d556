package files

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options of a client.
type Options struct {
	// Dial opens a byte stream to the server. It is called again for as long as
	// the client lives, and should return soon after its context ends. After an
	// error that is [ErrGone] it is not: calls fail from then on.
	Dial func(context.Context) (net.Conn, error)
	// Token of the engagement.
	Token string
	// Root is the mount path.
	Root     string
	ReadOnly bool
	// Timeout is for how long calls block without a connection; DefaultTimeout if 0.
	Timeout time.Duration
	// OnEvent is told of invalidations, in order; it must not block, nor call the
	// client. After a reconnection it gets one for the whole tree.
	OnEvent func(Event)
}

// ErrGone is Dial's error when the server will not come back.
var ErrGone = errors.New("the file server has gone for good")

// Refused is a server's answer to a hello that it does not accept.
type Refused struct {
	Errno   syscall.Errno
	Message string
}

func (r *Refused) Error() string { return "server refuses: " + r.Message }
func (r *Refused) Unwrap() error { return r.Errno }

// Client speaks to a server, over one connection after the other. All methods
// may be called at the same time; they return errors as [syscall.Errno].
type Client struct {
	opts   Options
	id     string
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	heard  atomic.Int64 // unix nanoseconds of the last byte from the server
	nextFH atomic.Uint64
	home   string // the session that has our files; run's own

	mu      sync.Mutex
	info    Info
	next    uint64
	pending map[uint64]*call
	files   map[uint64]*File
	out     *sender       // nil without a connection that is ready for calls
	down    chan struct{} // closed while there is none
	dead    bool          // there has been none for the whole Timeout
	timer   *time.Timer
	closed  bool
}

type call struct {
	id    uint64
	op    op
	frame frame
	sent  bool    // to any server
	via   *sender // last
	// once: may not be done twice by servers that do not know of each other.
	once  bool
	done  chan struct{}
	body  []byte
	errno syscall.Errno
}

// Connect opens the first connection. A Refused error says why the server
// does not want it.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	c := &Client{opts: o, id: rand.Text(), next: 1, pending: map[uint64]*call{}, files: map[uint64]*File{}, down: make(chan struct{})}
	close(c.down)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	conn, info, err := c.hello(ctx)
	if err != nil {
		c.cancel()
		return nil, err
	}
	c.wg.Add(1)
	c.info = info
	go c.run(conn, info)
	return c, nil
}

// byeWithin bounds the goodbye: a peer that hangs must not hold an unmount.
const byeWithin = 500 * time.Millisecond

// Info is what the server said last.
func (c *Client) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.info
}

// Close fails all calls and returns when nothing of the client runs any more. The
// server is told, if it is there, so that it need not wait for us to come back.
func (c *Client) Close() {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	out := c.out
	var bye *call
	if first && out != nil {
		bye = c.make(opBye, nil, nil, false)
		bye.sent, bye.via = true, out
	}
	c.mu.Unlock()
	if bye != nil {
		go out.send(bye.frame) // the queue may be full for as long as the peer does not read
		select {
		case <-bye.done:
		case <-out.done:
		case <-time.After(byeWithin):
		}
	}
	c.cancel()
	c.wg.Wait()
	c.fail(syscall.EIO)
}

func (c *Client) hello(ctx context.Context) (net.Conn, Info, error) {
	conn, err := c.opts.Dial(ctx)
	if err != nil {
		return nil, Info{}, fmt.Errorf("dial file server: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	var b buffer
	b.u32(0)
	b.hello(hello{token: c.opts.Token, client: c.id, root: c.opts.Root, readOnly: c.opts.ReadOnly})
	if _, err = conn.Write(frame{head: b}.seal().head); err == nil {
		var r []byte
		if r, err = readFrame(conn, maxHello); err == nil {
			f := fields{b: r}
			if no := f.u32(); no != 0 {
				err = &Refused{Errno: syscall.Errno(no), Message: f.str()}
			} else {
				i := Info{Root: f.attr(), ReadOnly: f.bool(), Watches: f.bool(), Super: f.bool(), session: f.str(), boot: f.str()}
				if !f.bad {
					_ = conn.SetDeadline(time.Time{})
					return conn, i, nil
				}
				err = errFrame
			}
		}
	}
	_ = conn.Close()
	return nil, Info{}, fmt.Errorf("greet file server: %w", err)
}

// run owns the connections, one after the other.
func (c *Client) run(conn net.Conn, info Info) {
	defer c.wg.Done()
	for first := true; ; first = false {
		c.serve(conn, info, first)
		if c.ctx.Err() != nil {
			return
		}
		pause := 20 * time.Millisecond
		for {
			// A server that cannot be reached is asked again and again: this is
			// the probe, there is nothing else to wait for.
			ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
			var err error
			conn, info, err = c.hello(ctx)
			cancel()
			if err == nil {
				break
			}
			if errors.Is(err, ErrGone) {
				c.expire()
				return
			}
			select {
			case <-c.ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
		}
	}
}

func (c *Client) serve(conn net.Conn, info Info, first bool) {
	out := newSender(conn)
	stop := context.AfterFunc(c.ctx, out.close)
	defer stop()
	c.heard.Store(time.Now().UnixNano())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer out.close()
		br := bufio.NewReaderSize(conn, 128<<10)
		for {
			b, err := readFrame(br, maxAnswer)
			if err != nil || !c.receive(b) {
				return
			}
		}
	}()
	info.Resumed = info.session == c.home
	if first || info.Resumed || c.reopen(out, info, ended) {
		c.home = info.session
		c.ready(out, info)
	}
	c.probe(out, ended)
	out.close()
	<-ended
	out.wg.Wait()
	c.lost()
}

// probe ends when the connection has, or has said nothing for too long.
func (c *Client) probe(out *sender, ended chan struct{}) {
	every := min(max(c.opts.Timeout/6, 100*time.Millisecond), 5*time.Second)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ended:
			return
		case <-t.C:
		}
		if time.Since(time.Unix(0, c.heard.Load())) > 3*every {
			return
		}
		c.mu.Lock()
		p := c.make(opPing, nil, nil, false)
		p.sent, p.via = true, out
		c.mu.Unlock()
		go out.send(p.frame) // the queue may be full for as long as the peer does not read
	}
}

// ready opens the gate: calls that waited are sent in the order of their ids,
// and those that come meanwhile wait behind them.
func (c *Client) ready(out *sender, info Info) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.info, c.dead = info, false
	if !info.Resumed {
		for id, p := range c.pending {
			if p.sent && p.once {
				delete(c.pending, id) // done or not: only the server that is gone knew
				p.errno = syscall.EIO
				close(p.done)
			}
		}
	}
	for {
		var send []*call
		for _, p := range c.pending {
			if p.via != out {
				p.sent, p.via = true, out
				send = append(send, p)
			}
		}
		if len(send) == 0 {
			break
		}
		slices.SortFunc(send, func(a, b *call) int { return int(int64(a.id) - int64(b.id)) })
		c.mu.Unlock() // answers arrive while this blocks
		for _, p := range send {
			out.send(p.frame)
		}
		c.mu.Lock()
	}
	c.out, c.down = out, make(chan struct{})
}

func (c *Client) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out == nil {
		return
	}
	c.out = nil
	close(c.down)
	if !c.closed {
		c.timer = time.AfterFunc(c.opts.Timeout, c.expire)
	}
}

func (c *Client) expire() {
	c.mu.Lock()
	down := c.out == nil
	c.dead = down
	c.mu.Unlock()
	if down {
		c.fail(syscall.EIO)
	}
}

func (c *Client) fail(no syscall.Errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.pending {
		delete(c.pending, id)
		p.errno = no
		close(p.done)
	}
}

// receive handles one answer or push; false ends the connection.
func (c *Client) receive(b []byte) bool {
	c.heard.Store(time.Now().UnixNano())
	f := fields{b: b}
	id, no := f.u64(), f.u32()
	if f.bad {
		return false
	}
	if id == 0 {
		e := Event{Dir: f.str(), Name: f.str(), Tree: no == pushTree}
		if f.bad {
			return false
		}
		c.opts.OnEvent(e)
		return true
	}
	c.mu.Lock()
	p := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if p != nil {
		p.body, p.errno = f.rest(), syscall.Errno(no)
		close(p.done)
	}
	return true
}

// make registers a call; mu is held.
func (c *Client) make(o op, args func(*buffer), data []byte, once bool) *call {
	p := &call{id: c.next, op: o, once: once, done: make(chan struct{})}
	c.next++
	acked := p.id
	if o.changes() {
		for id := range c.pending {
			acked = min(acked, id)
		}
	}
	h := buffer(make([]byte, 4, 128))
	h.u64(p.id)
	h.u64(acked)
	h.u8(byte(o))
	if args != nil {
		args(&h)
	}
	p.frame = frame{head: h, data: data}.seal() // once: it may be sent on several connections
	c.pending[p.id] = p
	return p
}

// start sends a call, or leaves it for the next connection.
func (c *Client) start(o op, args func(*buffer), data []byte, once bool) *call {
	c.mu.Lock()
	p := c.make(o, args, data, once)
	c.launch(p)
	return p
}

// launch sends p; mu is held, and is not any more when it returns.
func (c *Client) launch(p *call) {
	if c.closed || c.dead {
		delete(c.pending, p.id)
		p.errno = syscall.EIO
		close(p.done)
		c.mu.Unlock()
		return
	}
	out := c.out
	p.sent, p.via = out != nil, out
	c.mu.Unlock()
	if out != nil {
		out.send(p.frame) // if it fails, the next connection sends it again
	}
}

// wait waits for the answer. A context that ends (a signal to the program)
// counts only while there is no connection: then, what hangs can be killed.
func (c *Client) wait(ctx context.Context, p *call) (fields, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		c.mu.Lock()
		down := c.down
		c.mu.Unlock()
		select {
		case <-p.done:
		case <-down:
			c.mu.Lock()
			if c.out == nil {
				delete(c.pending, p.id)
				c.mu.Unlock()
				return fields{}, syscall.EINTR
			}
			c.mu.Unlock()
			<-p.done
		}
	}
	if p.errno != 0 {
		return fields{b: p.body}, p.errno
	}
	return fields{b: p.body}, nil
}

func (c *Client) call(ctx context.Context, o op, once bool, args func(*buffer)) (fields, error) {
	return c.wait(ctx, c.start(o, args, nil, once))
}

// checked turns an answer that is too short into an error.
func checked[T any](f *fields, v T, err error) (T, error) {
	if err == nil && f.bad {
		err = syscall.EIO
	}
	return v, err
}

// reopen opens all files again on a server that does not know them. False: the
// connection has ended meanwhile.
func (c *Client) reopen(out *sender, info Info, ended chan struct{}) bool {
	c.mu.Lock()
	changed := info.boot != c.info.boot
	type again struct {
		f    *File
		was  Attr
		path string
		ok   bool
		call *call
	}
	var all []again
	for _, f := range c.files {
		if was, ok := f.was(); ok { // else its first call is still to come
			all = append(all, again{f: f, was: was})
		}
	}
	c.mu.Unlock()
	for i := range all {
		a := &all[i]
		if a.path, a.ok = a.f.path(); a.ok {
			c.mu.Lock()
			a.call = c.make(opOpen, func(b *buffer) { openArgs(b, a.f.id, a.path, a.f.reflags(), 0, Owner{}) }, nil, false)
			a.call.sent, a.call.via = true, out
			c.mu.Unlock()
			if !out.send(a.call.frame) {
				return false
			}
		}
	}
	for _, a := range all {
		ok := false
		if a.ok {
			select {
			case <-a.call.done:
				f := fields{b: a.call.body}
				ok = a.call.errno == 0 && f.attr().SameFile(a.was) && !f.bad
			case <-ended:
				return false
			}
		}
		a.f.reattached(ok, changed)
	}
	c.opts.OnEvent(Event{Tree: true})
	return true
}

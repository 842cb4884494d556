package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestCloseIsOrderly(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindTCP)
		mustWrite(t, c, "written before close")
		done := make(chan struct{})
		go func() { defer close(done); client.CloseWithError(errors.New("laptop is going home")) }()
		mustRead(t, s, "written before close")
		_, err := s.Read(make([]byte, 1))
		wantErr(t, "read on the far side", err, ErrClosedByPeer)
		if !strings.Contains(err.Error(), "laptop is going home") {
			t.Errorf("reason is lost: %v", err)
		}
		<-done
		<-client.Done()
		<-server.Done()
		wantErr(t, "client", client.Err(), ErrSessionClosed)
		wantErr(t, "client", client.Err(), net.ErrClosed)
		wantErr(t, "server", server.Err(), ErrClosedByPeer)
		_, err = client.Open(t.Context(), header(KindTCP))
		wantErr(t, "open", err, ErrSessionClosed)
		_, err = server.Accept(t.Context())
		wantErr(t, "accept", err, ErrClosedByPeer)
		_, err = c.Write([]byte("x"))
		wantErr(t, "write", err, ErrSessionClosed)
		if n := client.NumStreams() + server.NumStreams(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestCloseFlushesWhatIsQueued(t *testing.T) {
	client, server := link(t, "tls", Config{Window: 4 << 20})
	c, s := streamPair(t, client, server, KindTCP)
	const size = 3 << 20
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	client.Close()
	if n, err := io.Copy(io.Discard, s); n != size || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

func TestCutInTheMiddle(t *testing.T) {
	for name, cut := range map[string]func(*net.TCPConn){
		"fin":   func(c *net.TCPConn) { c.Close() },
		"reset": func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			client, server := NewSession(a, true, Config{}), NewSession(b, false, Config{})
			defer server.Close()
			defer client.Close()
			c, _ := streamPair(t, client, server, KindTCP)
			errs := make(chan error, 4)
			go func() { _, err := c.Read(make([]byte, 1)); errs <- err }()
			go func() {
				for {
					if _, err := c.Write(make([]byte, 64<<10)); err != nil {
						errs <- err
						return
					}
				}
			}()
			go func() { _, err := client.Open(context.Background(), header(KindTCP)); errs <- err }()
			go func() { _, err := client.Accept(context.Background()); errs <- err }()
			eventually(t, "all of them under way", func() bool { return client.NumStreams() == 2 })
			cut(b)
			for range 4 {
				if err := <-errs; err == nil || err == io.EOF || errors.Is(err, net.ErrClosed) {
					t.Errorf("got %v, want the loss of the connection", err)
				}
			}
			<-client.Done()
			if err := client.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUnansweredRequestIsRefusedByTheEnd(t *testing.T) {
	client, server := link(t, "tcp", Config{})
	failed := make(chan error, 1)
	go func() { _, err := client.Open(context.Background(), header(KindTCP)); failed <- err }()
	r, err := server.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	wantErr(t, "open", <-failed, ErrClosedByPeer)
	_, err = r.Accept()
	wantErr(t, "accept", err, ErrSessionClosed)
}

func TestKeepAliveFindsDeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		go io.Copy(io.Discard, b) // reads, but never answers
		b.SetWriteDeadline(time.Now().Add(time.Second))
		client := NewSession(a, true, Config{KeepAlive: 10 * time.Second})
		start := time.Now()
		<-client.Done()
		wantErr(t, "session", client.Err(), ErrDeadPeer)
		if got := time.Since(start); got != 40*time.Second {
			t.Errorf("found dead after %v, want three pings of 10 s unanswered", got)
		}
		client.Close()
	})
}

func TestKeepAliveKeepsQuietPeersAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		client := NewSession(a, true, Config{KeepAlive: 10 * time.Second})
		server := NewSession(b, false, Config{KeepAlive: time.Minute})
		time.Sleep(time.Hour)
		if client.Err() != nil || server.Err() != nil {
			t.Errorf("ended: %v, %v", client.Err(), server.Err())
		}
		client.Close()
		server.Close()
	})
}

func TestCloseGivesUpOnStalledPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe() // nobody reads b
		defer b.Close()
		client := NewSession(a, true, Config{})
		start := time.Now()
		client.Close()
		if got := time.Since(start); got > closeTimeout {
			t.Errorf("took %v", got)
		}
	})
}

// delayed is a pipe whose bytes take d to cross, in bubble time.
func delayed(t *testing.T, d time.Duration) (net.Conn, net.Conn) {
	a, x := net.Pipe()
	y, b := net.Pipe()
	carry := func(dst, src net.Conn) {
		type piece struct {
			b  []byte
			at time.Time
		}
		line := make(chan piece, 1<<16)
		go func() {
			defer close(line)
			for {
				buf := make([]byte, 64<<10)
				n, err := src.Read(buf)
				if err != nil {
					return
				}
				line <- piece{buf[:n], time.Now().Add(d)}
			}
		}()
		go func() {
			defer dst.Close()
			for p := range line {
				time.Sleep(time.Until(p.at))
				if _, err := dst.Write(p.b); err != nil {
					src.Close()
					for range line {
					}
					return
				}
			}
		}()
	}
	carry(y, x)
	carry(x, y)
	return a, b
}

func TestWindowGrowsWithBandwidthDelayProduct(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := delayed(t, 10*time.Millisecond)
		client, server := NewSession(a, true, Config{}), NewSession(b, false, Config{})
		c, s := streamPair(t, client, server, KindTCP)
		time.Sleep(time.Second) // for an RTT sample
		if rtt := client.RTT(); rtt.Round(time.Microsecond) != 20*time.Millisecond {
			t.Errorf("RTT %v, want 20ms", rtt)
		}
		go func() {
			defer c.CloseWrite()
			if _, err := c.Write(make([]byte, 64<<20)); err != nil {
				t.Error(err)
			}
		}()
		start := time.Now()
		if n, err := io.Copy(io.Discard, s); n != 64<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		// At the initial window it would take 256 round trips.
		if trips := time.Since(start) / (20 * time.Millisecond); trips > 20 {
			t.Errorf("took %d round trips", trips)
		}
		if s.window != 16<<20 {
			t.Errorf("window %d, want the maximum on a path of endless bandwidth", s.window)
		}
		c.Close()
		s.Close()
		time.Sleep(time.Second)
		if server.growth.Load() != 0 {
			t.Errorf("window budget not returned: %d", server.growth.Load())
		}
		client.Close()
		server.Close()
		time.Sleep(time.Second) // the line drains
	})
}

func TestWindowStaysSmallForSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := delayed(t, 10*time.Millisecond)
		client, server := NewSession(a, true, Config{}), NewSession(b, false, Config{})
		c, s := streamPair(t, client, server, KindTCP)
		go func() {
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}()
		for range 50 {
			time.Sleep(time.Second)
			mustRead(t, s, string(make([]byte, 64<<10)))
		}
		if s.window != 256<<10 {
			t.Errorf("window grew to %d for a reader of 64 KiB/s", s.window)
		}
		client.Close()
		server.Close()
		time.Sleep(time.Second)
	})
}

func TestWindowBudget(t *testing.T) {
	s := &Session{cfg: Config{WindowBudget: 512 << 10}.withDefaults()}
	s.w = newWriter(s, nil)
	a, b := newStream(s, Header{}, true), newStream(s, Header{}, true)
	if got := a.grow(); got != 256<<10 {
		t.Errorf("first: %d", got)
	}
	if got := a.grow(); got != 0 {
		t.Errorf("beyond the budget: %d", got)
	}
	if got := b.grow(); got != 256<<10 {
		t.Errorf("other stream: %d", got)
	}
	s.remove(a) // not in the table: keeps its share
	s.streams = map[uint32]*Stream{0: a}
	s.remove(a)
	if got := s.growth.Load(); got != 256<<10 {
		t.Errorf("after one stream went: %d", got)
	}
}

func TestBacklogAndStreamLimits(t *testing.T) {
	for name, cfg := range map[string]Config{
		"backlog": {AcceptBacklog: 3},
		"streams": {MaxStreams: 3},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := link(t, "tcp", cfg)
			var busy atomic.Int32
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(t.Context())
			for range 5 {
				wg.Go(func() {
					_, err := client.Open(ctx, header(KindTCP))
					if errors.Is(err, syscall.EAGAIN) {
						busy.Add(1)
					}
				})
			}
			eventually(t, "two refused, three wait", func() bool { return busy.Load() == 2 && server.NumStreams() == 3 })
			cancel()
			wg.Wait()
			eventually(t, "forgotten", func() bool { return server.NumStreams() == 0 })
		})
	}
}

func TestStreamNumbersRunOut(t *testing.T) {
	client, server := link(t, "tcp", Config{})
	go serve(server, echo)
	client.mu.Lock()
	client.nextID = math.MaxUint32 - 2
	client.mu.Unlock()
	for range 2 {
		st, err := client.Open(t.Context(), header(KindTCP))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, st, "x")
		mustRead(t, st, "x")
	}
	_, err := client.Open(t.Context(), header(KindTCP))
	wantErr(t, "open", err, ErrExhausted)
}

// rawPeer speaks frames by hand to a server session.
func rawPeer(t *testing.T) (*Session, net.Conn) {
	a, b := tcpPair(t)
	server := NewSession(b, false, Config{})
	t.Cleanup(func() { server.Close() })
	go io.Copy(io.Discard, a)
	return server, a
}

func TestProtocolErrorsEndTheSession(t *testing.T) {
	open := func(b []byte, id uint32) []byte {
		b, err := appendOpen(b, id, 1<<16, header(KindTCP), nil, false)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// OPEN fills the id in late; do it here.
	openID := func(id uint32) []byte { return open(nil, id) }
	big := make([]byte, 60<<10)
	for name, frames := range map[string][]byte{
		"no preface":         []byte("GET / HTTP/1.1\r\n\r\n"),
		"unknown type":       appendFrame(appendPreface(nil), 99, false, 1),
		"type 0":             append(appendPreface(nil), make([]byte, 8)...),
		"id of ours":         append(appendPreface(nil), openID(2)...),
		"id used twice":      append(append(appendPreface(nil), openID(3)...), openID(3)...),
		"id goes back":       append(append(appendPreface(nil), openID(3)...), openID(1)...),
		"data unopened":      appendFrame(appendPreface(nil), frameData, false, 1, 'x'),
		"data unaccepted":    appendFrame(append(appendPreface(nil), openID(1)...), frameData, false, 1, 'x'),
		"accept of theirs":   appendFrameUint32(append(appendPreface(nil), openID(1)...), frameAccept, 1, 1),
		"refuse of theirs":   appendMessage(append(appendPreface(nil), openID(1)...), frameRefuse, 1, CodeRefused, ""),
		"packet on tcp":      appendFrame(append(appendPreface(nil), openID(1)...), framePacket, false, 1, 'x'),
		"long ping":          appendFrame(appendPreface(nil), framePing, false, 0, big[:9]...),
		"ping on a stream":   appendFrame(appendPreface(nil), framePing, false, 1, big[:8]...),
		"fin on window":      appendFrame(append(appendPreface(nil), openID(1)...), frameWindow, true, 1, 0, 0, 0, 1),
		"credit overflow":    appendFrameUint32(append(appendPreface(nil), openID(1)...), frameWindow, 1, maxCredit),
		"credit is negative": appendFrameUint32(append(appendPreface(nil), openID(1)...), frameWindow, 1, 1<<31),
		"bad open":           appendFrame(appendPreface(nil), frameOpen, false, 1, big[:100]...),
		"long data":          append(appendPreface(nil), 4, 0xff, 0xff, 0xff, 0, 0, 0, 1),
	} {
		t.Run(name, func(t *testing.T) {
			server, conn := rawPeer(t)
			if _, err := conn.Write(frames); err != nil {
				t.Fatal(err)
			}
			<-server.Done()
			wantErr(t, "session", server.Err(), ErrProtocol)
		})
	}
}

func TestWindowOverrunEndsTheSession(t *testing.T) {
	server, conn := rawPeer(t)
	b, _ := appendOpen(appendPreface(nil), 1, 1<<16, header(KindTCP), nil, false)
	conn.Write(b)
	r, err := server.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Accept(); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 32<<10)
	for range 9 { // 288 KiB into a window of 256
		conn.Write(appendFrame(nil, frameData, false, 1, payload...))
	}
	<-server.Done()
	wantErr(t, "session", server.Err(), ErrProtocol)
}

func TestDataAfterFinEndsTheSession(t *testing.T) {
	server, conn := rawPeer(t)
	b, _ := appendOpen(appendPreface(nil), 1, 1<<16, header(KindTCP), nil, true)
	conn.Write(appendFrame(b, frameData, false, 1, 'x'))
	<-server.Done()
	wantErr(t, "session", server.Err(), ErrProtocol)
}

func TestMuxVersionMismatchNamesBoth(t *testing.T) {
	server, conn := rawPeer(t)
	p := appendPreface(nil)
	p[len(p)-1] = 77
	conn.Write(p)
	<-server.Done()
	var v *VersionError
	if !errors.As(server.Err(), &v) || v.Local != muxVersion || v.Remote != 77 {
		t.Errorf("got %v", server.Err())
	}
}

// Many tiny frames to a stream that nobody reads must not hold much more
// memory than the window.
func TestTinyFramesHoldLittleMemory(t *testing.T) {
	server, conn := rawPeer(t)
	b, _ := appendOpen(appendPreface(nil), 1, 1<<16, header(KindTCP), nil, false)
	conn.Write(b)
	r, err := server.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.Accept()
	if err != nil {
		t.Fatal(err)
	}
	const n = 100_000
	var out []byte
	for range n {
		out = appendFrame(out, frameData, false, 1, 'x')
	}
	conn.Write(out)
	eventually(t, "all arrived", func() bool {
		st.mu.Lock()
		defer st.mu.Unlock()
		return st.recv.n == n
	})
	held := 0
	for _, c := range st.recv.q {
		held += len(c.buf)
	}
	if held > 2*n {
		t.Errorf("%d bytes in frames of one hold %d", n, held)
	}
}

func TestPingIsAnswered(t *testing.T) {
	a, b := tcpPair(t)
	server := NewSession(b, false, Config{})
	defer server.Close()
	a.Write(appendFrame(appendPreface(nil), framePing, false, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	io.ReadFull(a, make([]byte, prefaceSize))
	for {
		var h [frameHeaderSize]byte
		if _, err := io.ReadFull(a, h[:]); err != nil {
			t.Fatal(err)
		}
		f, err := parseFrameHeader(h[:])
		if err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, f.length)
		if _, err := io.ReadFull(a, payload); err != nil {
			t.Fatal(err)
		}
		if f.typ == framePong {
			if binary.BigEndian.Uint64(payload) != 0x0102030405060708 {
				t.Errorf("pong %x", payload)
			}
			break
		}
	}
	a.Close()
}

// What is begun arrives in that order, and is answered in any.
func TestBegin(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		var all []Opening
		for i := range 100 {
			o, err := client.Begin(Header{Kind: KindTCP, Dst: netip.AddrPortFrom(netip.Addr{}, uint16(1000+i))})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, o)
		}
		var requests []*Request
		for i := range all {
			r, err := server.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Header.Dst.Port(); got != uint16(1000+i) {
				t.Fatalf("%d is number %d", got-1000, i)
			}
			requests = append(requests, r)
		}
		if _, err := requests[1].Accept(); err != nil {
			t.Fatal(err)
		}
		if _, err := all[1].Wait(t.Context()); err != nil {
			t.Error(err)
		}
		requests[2].Refuse(CodeRefused, "")
		if _, err := all[2].Wait(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("refused: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := all[0].Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
		rctx, release := requests[0].Context(t.Context())
		<-rctx.Done()
		release()
		server.Close()
		if _, err := all[3].Wait(t.Context()); !errors.Is(err, ErrClosedByPeer) {
			t.Errorf("after the session's end: %v", err)
		}
		if _, err := client.Begin(Header{Kind: KindTCP}); !errors.Is(err, ErrClosedByPeer) {
			t.Errorf("begun after the session's end: %v", err)
		}
	})
}

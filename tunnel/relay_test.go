package tunnel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// relayed returns the outer ends of app <-TCP-> relay <-tunnel-> relay <-TCP-> server.
func relayed(t *testing.T) (app, server *net.TCPConn, done chan error) {
	t.Helper()
	near, far := link(t, "tls", Config{})
	app, appRelay := tcpPair(t)
	server, serverRelay := tcpPair(t)
	c, s := streamPair(t, near, far, KindTCP)
	done = make(chan error, 2)
	go func() { _, _, err := Relay(appRelay, c); done <- err }()
	go func() { _, _, err := Relay(serverRelay, s); done <- err }()
	return app, server, done
}

func TestRelayHalfClose(t *testing.T) {
	for _, who := range []string{"app", "server"} {
		t.Run(who, func(t *testing.T) {
			a, b, done := relayed(t)
			if who == "server" {
				a, b = b, a
			}
			mustWrite(t, a, "request")
			a.CloseWrite()
			if got, err := io.ReadAll(b); err != nil || string(got) != "request" {
				t.Fatalf("got %q, %v", got, err)
			}
			mustWrite(t, b, "answer")
			b.Close()
			if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
				t.Fatalf("got %q, %v", got, err)
			}
			for range 2 {
				if err := <-done; err != nil {
					t.Errorf("relay: %v", err)
				}
			}
		})
	}
}

// As in the manager: both ends of a relay are streams, of two sessions, and
// both end in good order.
func TestRelayBetweenStreams(t *testing.T) {
	agent, managerNear := link(t, "tls", Config{})
	managerFar, vif := link(t, "tls", Config{})
	app, near := streamPair(t, agent, managerNear, KindTCP)
	far, server := streamPair(t, managerFar, vif, KindTCP)
	done := make(chan error, 1)
	go func() { _, _, err := Relay(near, far); done <- err }()
	mustWrite(t, app, "request")
	app.CloseWrite()
	if got, err := io.ReadAll(server); err != nil || string(got) != "request" {
		t.Fatalf("got %q, %v", got, err)
	}
	mustWrite(t, server, "answer")
	server.CloseWrite()
	if got, err := io.ReadAll(app); err != nil || string(got) != "answer" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Errorf("relay: %v", err)
	}
}

func TestRelayReset(t *testing.T) {
	for _, who := range []string{"app", "server"} {
		t.Run(who, func(t *testing.T) {
			a, b, done := relayed(t)
			if who == "server" {
				a, b = b, a
			}
			mustWrite(t, a, "x")
			mustRead(t, b, "x")
			a.SetLinger(0)
			a.Close()
			_, err := b.Read(make([]byte, 1))
			wantErr(t, "read", err, syscall.ECONNRESET)
			for range 2 {
				wantErr(t, "relay", <-done, syscall.ECONNRESET)
			}
		})
	}
}

// What was sent before a reset arrives before it, as it does without a tunnel:
// programs send their last words and close with an answer unread, which resets.
func TestRelayBytesBeforeReset(t *testing.T) {
	const last = 10_000
	for range 50 {
		app, server, done := relayed(t)
		mustWrite(t, server, "never read") // the other way is busy too
		mustWrite(t, app, string(make([]byte, last)))
		app.SetLinger(0)
		app.Close()
		n, err := io.Copy(io.Discard, server)
		wantErr(t, "read", err, syscall.ECONNRESET)
		if n != last {
			t.Fatalf("%d of %d bytes arrived", n, last)
		}
		for range 2 {
			wantErr(t, "relay", <-done, syscall.ECONNRESET)
		}
	}
}

// picky is an end that takes without waiting what it likes: less and less of each
// piece, then nothing, then all again.
type picky struct {
	got   chan byte
	end   chan struct{}
	tries int // bytes taken by TryWrite
	round int
	fails bool
}

func newPicky() *picky { return &picky{got: make(chan byte, 1<<20), end: make(chan struct{})} }

func (p *picky) TryWrite(b []byte) (int, error) {
	if p.fails {
		return 0, syscall.ECONNRESET
	}
	p.round++
	n := []int{len(b), len(b) / 2, 0, 1}[p.round%4]
	p.tries += n
	return p.Write(b[:n])
}

func (p *picky) Write(b []byte) (int, error) {
	for _, c := range b {
		p.got <- c
	}
	return len(b), nil
}

func (p *picky) Read([]byte) (int, error) { <-p.end; return 0, io.EOF }
func (p *picky) CloseWrite() error        { close(p.got); return nil }
func (p *picky) Close() error             { return nil }

// Small pieces are handed on by the session's reader as far as the other end takes
// them, and by the relay else: in order, counted, and before FIN.
func TestRelayWithoutWaiting(t *testing.T) {
	near, far := link(t, "tls", Config{})
	c, s := streamPair(t, near, far, KindTCP)
	to := newPicky()
	done := make(chan error, 1)
	var received int64
	go func() {
		_, n, err := Relay(to, s)
		received = n
		done <- err
	}()
	const pieces = 2000
	sent := 0
	for i := range pieces {
		piece := make([]byte, 1+i%50)
		for j := range piece {
			piece[j] = byte(sent + j)
		}
		mustWrite(t, c, string(piece))
		sent += len(piece)
		if i%2 == 0 { // the relay waits for the next one, or soon will
			eventually(t, "a piece in the other end", func() bool { return len(to.got) == sent })
		}
	}
	c.CloseWrite()
	n := 0
	for b := range to.got {
		if b != byte(n) {
			t.Fatalf("byte %d is %d", n, b)
		}
		n++
	}
	close(to.end)
	if err := <-done; err != nil {
		t.Errorf("relay: %v", err)
	}
	if n != sent || received != int64(sent) {
		t.Errorf("%d bytes arrived, %d were counted, want %d", n, received, sent)
	}
	if to.tries == 0 {
		t.Error("nothing was handed on by the session's reader")
	}
}

// A failure to take a piece ends the relay as one of the relay's own writes does.
func TestRelayWithoutWaitingFails(t *testing.T) {
	near, far := link(t, "tls", Config{})
	c, s := streamPair(t, near, far, KindTCP)
	to := newPicky()
	to.fails = true
	done := make(chan error, 1)
	go func() { _, _, err := Relay(to, s); done <- err }()
	var err error
	for err == nil { // until the relay waits
		_, err = c.Write([]byte("x"))
	}
	close(to.end)
	wantErr(t, "write", err, syscall.ECONNRESET)
	wantErr(t, "relay", <-done, syscall.ECONNRESET)
}

// The reset overtakes bytes that are stuck behind an app that does not read.
func TestRelayResetWhileStuck(t *testing.T) {
	near, far := link(t, "tls", Config{})
	app, appRelay := tcpPair(t)
	c, s := streamPair(t, near, far, KindTCP)
	done := make(chan error, 1)
	go func() { _, _, err := Relay(appRelay, c); done <- err }()
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		s.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for {
			if _, err := s.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	<-stuck
	s.Reset(CodeReset)
	wantErr(t, "relay", <-done, syscall.ECONNRESET)
	_, err := io.Copy(io.Discard, app)
	wantErr(t, "read", err, syscall.ECONNRESET)
}

func TestRelayEndsWithSession(t *testing.T) {
	near, far := link(t, "tcp", Config{})
	app, appRelay := tcpPair(t)
	c, _ := streamPair(t, near, far, KindTCP)
	done := make(chan error, 1)
	go func() { _, _, err := Relay(appRelay, c); done <- err }()
	far.Close()
	wantErr(t, "relay", <-done, ErrClosedByPeer)
	_, err := app.Read(make([]byte, 1))
	wantErr(t, "read", err, syscall.ECONNRESET)
}

func TestRelayCounts(t *testing.T) {
	near, far := link(t, "tcp", Config{})
	app, appRelay := tcpPair(t)
	go serve(far, echo)
	c, err := near.Open(t.Context(), header(KindTCP))
	if err != nil {
		t.Fatal(err)
	}
	type counts struct {
		sent, received int64
		err            error
	}
	done := make(chan counts, 1)
	go func() { s, r, err := Relay(appRelay, c); done <- counts{s, r, err} }()
	data := bytes.Repeat([]byte("berth"), 1<<20)
	go func() { app.Write(data); app.CloseWrite() }()
	got, err := io.ReadAll(app)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if r := <-done; r.sent != int64(len(data)) || r.received != r.sent || r.err != nil {
		t.Errorf("relay: %+v", r)
	}
}

func udpEcho(t *testing.T) *net.UDPConn {
	srv, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := srv.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			srv.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return srv
}

func TestRelayPackets(t *testing.T) {
	near, far := link(t, "tls", Config{})
	c, s := streamPair(t, near, far, KindUDP)
	sock, err := net.Dial("udp", udpEcho(t).LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, _, err := RelayPackets(s, sock, time.Minute); done <- err }()
	buf := make([]byte, 65536)
	for _, n := range []int{1, 0, 1400, 60000} {
		if err := c.WritePacket(bytes.Repeat([]byte{7}, n)); err != nil {
			t.Fatal(err)
		}
		got, err := c.ReadPacket(buf)
		if err != nil || got != n {
			t.Fatalf("datagram of %d: %d, %v", n, got, err)
		}
	}
	c.Close()
	if err := <-done; err != nil {
		t.Errorf("relay: %v", err)
	}
}

// There may be thousands of flows, silent most of the time: none holds a buffer
// for the largest datagram meanwhile.
func TestQuietFlowsOfDatagramsHoldLittle(t *testing.T) {
	const flows, most = 300, 40 << 10
	near, far := link(t, "tcp", Config{})
	server := udpEcho(t)
	var all sync.WaitGroup
	defer all.Wait()
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what the pools kept is free now
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	buf := make([]byte, 100)
	for range flows {
		c, s := streamPair(t, near, far, KindUDP)
		conn, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() { _, _, _ = RelayPackets(s, conn, 0) })
		defer c.Close()
		mustWritePacket(t, c, "x")
		if n, err := c.ReadPacket(buf); err != nil || string(buf[:n]) != "x" {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	if each := (heap() - before) / flows; each > most {
		t.Errorf("a quiet flow holds %d bytes, at most %d are fine", each, most)
	}
}

func TestRelayPacketsPortUnreachable(t *testing.T) {
	near, far := link(t, "tcp", Config{})
	c, s := streamPair(t, near, far, KindUDP)
	gone, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	sock, err := net.Dial("udp", gone.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	done := make(chan error, 1)
	go func() { _, _, err := RelayPackets(s, sock, time.Minute); done <- err }()
	mustWritePacket(t, c, "anyone?")
	_, err = c.ReadPacket(make([]byte, 10))
	wantErr(t, "read", err, syscall.ECONNREFUSED)
	wantErr(t, "relay", <-done, syscall.ECONNREFUSED)
}

func TestRelayPacketsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		near, far := NewSession(a, true, Config{}), NewSession(b, false, Config{})
		c, s := streamPair(t, near, far, KindUDP)
		x, y := net.Pipe()
		start := time.Now()
		done := make(chan error, 1)
		go func() { _, _, err := RelayPackets(s, x, time.Minute); done <- err }()
		go io.Copy(io.Discard, y)
		for range 5 {
			time.Sleep(40 * time.Second)
			mustWritePacket(t, c, "still here")
		}
		if err := <-done; err != nil {
			t.Errorf("relay: %v", err)
		}
		if got := time.Since(start); got < 260*time.Second || got > 320*time.Second {
			t.Errorf("ended after %v, want one to two minutes of silence after 200 s", got)
		}
		if _, err := c.ReadPacket(make([]byte, 1)); err != io.EOF {
			t.Errorf("other end: %v", err)
		}
		y.Close()
		near.Close()
		far.Close()
	})
}

func TestCodeOf(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	_, refused := net.Dial("tcp", ln.Addr().String())
	_, noName := net.Dial("tcp", "nowhere.invalid:80")
	var dns *net.DNSError
	if errors.As(noName, &dns) {
		dns.IsNotFound = true // whatever the resolver here says
	}
	_, timeout := (&net.Dialer{Deadline: time.Now().Add(-time.Second)}).Dial("tcp", "127.0.0.1:1")
	for want, err := range map[Code]error{
		CodeRefused: refused, CodeNotFound: noName, CodeTimeout: timeout,
		CodeReset:       &net.OpError{Err: syscall.ECONNRESET},
		CodeUnreachable: &net.OpError{Err: syscall.ENETUNREACH},
		CodeDenied:      &net.OpError{Err: syscall.EPERM},
		CodeInternal:    errors.New("?"),
	} {
		if got := CodeOf(err); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}

package split

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/tunnel"
)

const (
	siftMost = 256 << 10 // bytes of a connection that are not looked at yet
	headMost = 1 << 20   // of a request's headers; of a frame of HTTP/2

	idleWay = 30 * time.Second // after which a connection to a handler ends
)

var (
	errNotHTTP = errors.New("it is not HTTP")
	errNobody  = errors.New("nobody taps by a filter any more")
)

// sifter finds the requests in what a client says over one connection, and asks the
// handlers of the wiretaps whose filters they match the same. It is told of bytes
// that go their way without it, and changes nothing. It waits for no handler, so that
// who tells it may wait for it.
type sifter struct {
	port          *Port
	in            *queue
	local, remote net.Addr
	ways          map[way]*http.Transport
	asking        sync.WaitGroup
}

// way is one to a handler. Each client's connection has ways of its own.
type way struct {
	tap *tap
	two bool // by HTTP/2
}

// sift begins to look at what is put into the queue that it returns.
func (p *Port) sift(ctx context.Context, c *net.TCPConn) *queue {
	s := &sifter{port: p, in: newQueue(siftMost), local: c.LocalAddr(), remote: c.RemoteAddr(), ways: map[way]*http.Transport{}}
	go s.run(ctx)
	return s.in
}

func (s *sifter) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := s.requests(ctx)
	_ = s.in.Close()
	if errors.Is(err, errNotHTTP) {
		s.port.pass(s.port.now.Load().sifted())
	}
	linger, stop := context.WithTimeout(ctx, copyLinger)
	context.AfterFunc(linger, cancel)
	s.asking.Wait()
	stop()
	for _, w := range s.ways {
		w.CloseIdleConnections()
	}
}

// requests reads until the client's end, or what it cannot read.
func (s *sifter) requests(ctx context.Context) error {
	limit := &io.LimitedReader{R: s.in}
	br := bufio.NewReader(limit)
	offered := false      // the last request was one to upgrade the connection
	var upgraded []*asked // its copies
	over := func() {
		for _, a := range upgraded {
			a.end(nil)
		}
		upgraded = nil
	}
	defer over()
	for {
		limit.N = headMost
		what, err := glance(br)
		switch {
		case err != nil:
			return err
		case what != isHTTP && !offered:
			return errNotHTTP
		case what != isHTTP: // the offer was taken up
			limit.N = math.MaxInt64
			_, err := io.Copy(each(upgraded), br)
			return cmp.Or(err, io.EOF)
		}
		over()
		if b, _ := br.Peek(min(br.Buffered(), len(preface))); string(b) == preface {
			limit.N = math.MaxInt64
			return s.two(ctx, br)
		}
		r, err := http.ReadRequest(br)
		if err != nil {
			return malformed(err, limit.N == 0)
		}
		limit.N = math.MaxInt64
		if offered = r.Header.Get("Upgrade") != ""; offered && strings.EqualFold(r.Header.Get("Upgrade"), "h2c") {
			r.Header.Del("Upgrade")
			r.Header.Del("Http2-Settings")
		}
		all, err := s.ask(ctx, r)
		if err != nil {
			return err
		}
		if r.Body == http.NoBody && r.Header.Get("Upgrade") != "" {
			upgraded = all
			continue
		}
		if _, err := io.Copy(each(all), r.Body); err != nil {
			for _, a := range all {
				a.abort()
			}
			return malformed(err, false)
		}
		for _, a := range all {
			a.end(r.Trailer)
		}
	}
}

// malformed tells what cannot be read as HTTP from what has just ended.
func malformed(err error, long bool) error {
	if !long && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return err
	}
	return errNotHTTP
}

// glance says what comes next, without taking it.
func glance(br *bufio.Reader) (what, error) {
	var err error
	for {
		b, _ := br.Peek(br.Buffered())
		switch v, clear := judge(b); {
		case len(b) > 0 && clear:
			return v, nil
		case errors.Is(err, bufio.ErrBufferFull): // a long line, of which ReadRequest is to judge
			return isHTTP, nil
		case err != nil:
			return isOther, err
		}
		_, err = br.Peek(br.Buffered() + 1)
	}
}

// ask begins to ask what r asks, except for its body, the handlers of all wiretaps
// whose filters match it.
func (s *sifter) ask(ctx context.Context, r *http.Request) ([]*asked, error) {
	t := s.port.now.Load()
	taps := t.sifting()
	if len(taps) == 0 {
		return nil, errNobody
	}
	if t.probes.Asks(r.RequestURI, r.UserAgent()) {
		return nil, nil
	}
	taps = slices.DeleteFunc(taps, func(t *tap) bool { return !t.match.matches(r) })
	var all []*asked
	for _, t := range taps {
		if !t.begin() {
			s.port.lose(t)
			continue
		}
		a := newAsked(ctx, s.port, t, r)
		way := s.way(t, r.ProtoMajor == 2)
		s.asking.Go(func() { a.run(ctx, way) })
		all = append(all, a)
	}
	return all, nil
}

func (s *sifter) way(t *tap, two bool) *http.Transport {
	w := s.ways[way{t, two}]
	if w == nil {
		w = newTransport(two, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.port.open(ctx, t.to.Header(tunnel.KindTCP, s.local, s.remote))
		})
		w.MaxIdleConnsPerHost, w.IdleConnTimeout = copiesMost, idleWay
		s.ways[way{t, two}] = w
	}
	return w
}

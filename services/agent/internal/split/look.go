package split

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"berth.dev/services/agent/internal/peek"
	"berth.dev/services/agent/internal/port"
	"berth.dev/services/agent/internal/probe"
	"berth.dev/tunnel"
)

const (
	silence  = 200 * time.Millisecond // after which a client may be one that waits for the server's word
	lineWait = 10 * time.Second       // for the first line, once it has begun
	lineMost = 64 << 10               // of its length
)

// what a connection is, by what comes first.
type what int

const (
	isOther what = iota
	isHTTP
	isOver
	isServerFirst // the far end has spoken first; it is connected
)

// past is a deadline that interrupts.
var past = time.Unix(1, 0)

// look reads ahead until it is clear what a connection is. A client that says
// nothing is waited for without an end, as its server would; meanwhile the far end
// is asked whether it is one that speaks first.
func (p *Port) look(ctx context.Context, c *peek.Conn) (what, *peek.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(silence))
	err := c.More()
	_ = c.SetReadDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) && len(c.Ahead()) == 0 {
		var far *peek.Conn
		if far, err = p.whoSpeaks(ctx, c); far != nil {
			return isServerFirst, far
		}
	}
	if err != nil && len(c.Ahead()) == 0 {
		return isOver, nil
	}
	_ = c.SetReadDeadline(time.Now().Add(lineWait))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	for {
		verdict, clear := judge(c.Ahead())
		if clear {
			return verdict, nil
		}
		if err != nil {
			return isOther, nil
		}
		err = c.More()
	}
}

// whoSpeaks waits until either end says something. It returns the far end where
// that has, and else what reading from the client has led to.
func (p *Port) whoSpeaks(ctx context.Context, c *peek.Conn) (*peek.Conn, error) {
	end, err := p.dialWhole(ctx, c)
	if err != nil {
		return nil, c.More()
	}
	far := peek.New(end)
	heard, told := make(chan error, 1), make(chan error, 1)
	go func() { told <- far.More() }()
	go func() { heard <- c.More() }()
	select {
	case err = <-heard:
		_ = far.SetReadDeadline(past)
		<-told
		_ = far.SetReadDeadline(time.Time{})
	case <-told:
		_ = c.SetReadDeadline(past)
		err = <-heard
		_ = c.SetReadDeadline(time.Time{})
	}
	if len(far.Ahead()) > 0 {
		return far, nil
	}
	_ = far.Close()
	return nil, err // a deadline of ours too: the far end has closed without a word
}

// dialWhole connects to whose the connection is as a whole.
func (p *Port) dialWhole(ctx context.Context, c *peek.Conn) (peek.End, error) {
	if to, ok := p.All(); ok {
		return p.open(ctx, to.Header(tunnel.KindTCP, c.LocalAddr(), c.RemoteAddr()))
	}
	return p.dialApp(ctx, c.LocalAddr())
}

// open opens a flow to a handler.
func (p *Port) open(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, port.OpenTimeout)
	defer cancel()
	return p.opener.Open(ctx, h)
}

func (p *Port) dialApp(ctx context.Context, local net.Addr) (*net.TCPConn, error) {
	t, ok := local.(*net.TCPAddr)
	if !ok {
		return nil, fmt.Errorf("the address %v is none of TCP", local)
	}
	return probe.Dial(ctx, p.number, t.AddrPort().Addr().Unmap())
}

// preface begins a connection by HTTP/2 (RFC 9113, section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// judge says what a connection is that begins with b; clear is false if that
// takes more. HTTP/1 is told by its whole first line (RFC 9112, section 3), since
// other protocols begin with a word in capitals too. A CONNECT makes a tunnel of
// the connection, which is no request among others.
func judge(b []byte) (v what, clear bool) {
	if n := min(len(b), len(preface)); n > 0 && string(b[:n]) == preface[:n] {
		return isHTTP, n == len(preface)
	}
	line, _, complete := bytes.Cut(b, []byte("\n"))
	method, rest, two := strings.Cut(string(line), " ")
	switch {
	case method == "" && len(line) > 0, strings.ContainsFunc(method, notMethod), len(method) > 32, method == "CONNECT":
		return isOther, true
	case !complete:
		return isOther, len(line) > lineMost
	}
	_, version, three := cutLast(strings.TrimSuffix(rest, "\r"), " ")
	if two && three && (version == "HTTP/1.1" || version == "HTTP/1.0") {
		return isHTTP, true
	}
	return isOther, true
}

func notMethod(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' && r != '_' }

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

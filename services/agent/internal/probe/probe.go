// Package probe tells kubelet's probes of a diverted port from the traffic that
// is diverted, and passes them on to the app, which they are about.
//
// Where a probe comes from does not tell it: it is the node, as is everything
// that a node passes on with its own address (node ports, an ingress controller
// in the node's network). So what tells it is, by kind of probe:
//
//   - http: the request itself, by its path and kubelet's User-Agent. A port
//     that is probed by HTTP is one on which clients speak first, so looking at
//     the first bytes of each connection holds nobody up.
//   - tcp: a connection from the node that says nothing for a moment, or is
//     closed without a word. It is answered by the kernel, before we are asked.
//   - what is encrypted or multiplexed (HTTPS, gRPC) cannot be told apart: what
//     comes from the node itself goes to the app.
package probe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/lease"
	"berth.dev/tunnel"
)

const (
	silence     = 100 * time.Millisecond // after which a silent caller is no probe by TCP
	headersWait = 10 * time.Second       // for the headers of what began like a probe
	headersMost = 8 << 10
	dialTimeout = 5 * time.Second
)

// kubelet begins the User-Agent of its probes
// (https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/#http-probes).
const kubelet = "kube-probe/"

// Port sorts the connections of one diverted port.
type Port struct {
	Number uint16
	Probes []lease.Probe
	Node   []netip.Addr // from which probes come
}

// verdict is where a connection goes.
type verdict int

const (
	handler verdict = iota
	app
	nowhere // it was a probe, and is over
)

// Sort looks at a connection: what belongs to a probe is carried to the app
// until it ends, and nil returned; else what is to be carried to the handler.
func (p *Port) Sort(ctx context.Context, c *net.TCPConn) tunnel.HalfCloser {
	end := &conn{TCPConn: c}
	switch p.verdict(end) {
	case app:
		p.App(ctx, end)
		return nil
	case nowhere:
		_ = c.Close()
		return nil
	}
	if len(end.ahead) == 0 {
		return c // so that sockets are spliced
	}
	return end
}

func (p *Port) verdict(c *conn) verdict {
	if len(p.Probes) == 0 {
		return handler
	}
	has := func(kind string) bool {
		return slices.ContainsFunc(p.Probes, func(q lease.Probe) bool { return q.Kind == kind })
	}
	node := p.fromNode(c.RemoteAddr())
	if node && has(lease.ProbeOpaque) {
		return app
	}
	if has(lease.ProbeHTTP) {
		return p.http(c)
	}
	if node && has(lease.ProbeTCP) {
		_ = c.SetReadDeadline(time.Now().Add(silence))
		err := c.peek()
		_ = c.SetReadDeadline(time.Time{})
		if errors.Is(err, io.EOF) && len(c.ahead) == 0 {
			return nowhere
		}
	}
	return handler
}

func (p *Port) fromNode(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && slices.Contains(p.Node, t.AddrPort().Addr().Unmap().WithZone(""))
}

// http reads ahead until it is clear whether the request is a probe's.
func (p *Port) http(c *conn) verdict {
	_ = c.SetReadDeadline(time.Now().Add(headersWait))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	const get = "GET "
	first := true
	for {
		err := c.peek()
		if first && err != nil && len(c.ahead) == 0 {
			if errors.Is(err, io.EOF) {
				return nowhere // a probe by TCP, or one who thought better of it
			}
			return handler
		}
		first = false
		n := min(len(get), len(c.ahead))
		if string(c.ahead[:n]) != get[:n] {
			return handler
		}
		if end := bytes.Index(c.ahead, []byte("\r\n\r\n")); end >= 0 {
			if p.isProbe(string(c.ahead[:end])) {
				return app
			}
			return handler
		}
		if err != nil || len(c.ahead) >= headersMost {
			return handler
		}
	}
}

// isProbe judges the head of a request.
func (p *Port) isProbe(head string) bool {
	lines := strings.Split(head, "\r\n")
	words := strings.Fields(lines[0])
	if len(words) != 3 {
		return false
	}
	agent := ""
	for _, l := range lines[1:] {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.EqualFold(k, "User-Agent") {
			agent = strings.TrimSpace(v)
		}
	}
	return slices.ContainsFunc(p.Probes, func(q lease.Probe) bool {
		if q.Kind != lease.ProbeHTTP || words[1] != q.Path {
			return false
		}
		if q.UserAgent != "" {
			return agent == q.UserAgent
		}
		return strings.HasPrefix(agent, kubelet)
	})
}

// App carries a connection to the app, wherever in the pod it listens. Where it
// does not, the caller sees a reset, as near to a refusal as can be.
func (p *Port) App(ctx context.Context, end tunnel.HalfCloser) {
	var local netip.Addr
	if c, ok := end.(interface{ LocalAddr() net.Addr }); ok {
		local = addrOf(c.LocalAddr())
	}
	far, err := Dial(ctx, p.Number, local)
	if err != nil {
		if c, ok := end.(interface{ SetLinger(int) error }); ok {
			_ = c.SetLinger(0)
		}
		_ = end.Close()
		return
	}
	defer context.AfterFunc(ctx, func() { _ = end.Close(); _ = far.Close() })()
	_, _, _ = tunnel.Relay(end, far) // its end is the caller's to judge
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// Dial reaches the app inside of the pod: on the loopback address, or on the
// pod's own for one that listens on nothing else.
func Dial(ctx context.Context, port uint16, pod netip.Addr) (*net.TCPConn, error) {
	hosts := []string{"127.0.0.1", "::1"}
	if pod.IsValid() {
		hosts = append(hosts, pod.String())
	}
	d := net.Dialer{Timeout: dialTimeout}
	var errs []error
	for _, h := range hosts {
		c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(h, strconv.Itoa(int(port))))
		if err == nil {
			return c.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// conn is a connection of which some has been read ahead.
type conn struct {
	*net.TCPConn
	ahead []byte
}

// peek reads more ahead.
func (c *conn) peek() error {
	buf := make([]byte, 2048)
	n, err := c.TCPConn.Read(buf)
	c.ahead = append(c.ahead, buf[:n]...)
	return err
}

// Read returns first what was read ahead.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.TCPConn.Read(b)
}

// WriteTo hides the socket's own, which knows nothing of what was read ahead.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(c.ahead)
	c.ahead = c.ahead[n:]
	if err != nil {
		return int64(n), err
	}
	m, err := io.Copy(w, c.TCPConn)
	return int64(n) + m, err
}

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
	"berth.dev/services/agent/internal/peek"
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

// Sort looks at a connection: for what belongs to a probe it returns what carries
// it to the app, until it ends; else what is to be carried to the handler.
func (p *Port) Sort(ctx context.Context, c *peek.Conn) (end peek.End, itself func()) {
	switch p.verdict(c) {
	case app:
		return nil, func() { p.App(ctx, c) }
	case nowhere:
		return nil, func() { _ = c.Close() }
	}
	return c.Whole(), nil
}

func (p *Port) verdict(c *peek.Conn) verdict {
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
		err := c.More()
		_ = c.SetReadDeadline(time.Time{})
		if errors.Is(err, io.EOF) && len(c.Ahead()) == 0 {
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
func (p *Port) http(c *peek.Conn) verdict {
	_ = c.SetReadDeadline(time.Now().Add(headersWait))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	const get = "GET "
	first := true
	for {
		err := c.More()
		if first && err != nil && len(c.Ahead()) == 0 {
			if errors.Is(err, io.EOF) {
				return nowhere // a probe by TCP, or one who thought better of it
			}
			return handler
		}
		first = false
		n := min(len(get), len(c.Ahead()))
		if string(c.Ahead()[:n]) != get[:n] {
			return handler
		}
		if end := bytes.Index(c.Ahead(), []byte("\r\n\r\n")); end >= 0 {
			if p.isProbe(string(c.Ahead()[:end])) {
				return app
			}
			return handler
		}
		if err != nil || len(c.Ahead()) >= headersMost {
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
	return p.Asks(words[1], agent)
}

// grpcHealth is what kubelet's probes by gRPC ask for
// (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
const grpcHealth = "/grpc.health.v1.Health/Check"

// Asks reports whether a request for target by agent is a probe of this port.
func (p *Port) Asks(target, agent string) bool {
	return slices.ContainsFunc(p.Probes, func(q lease.Probe) bool {
		switch {
		case q.Kind == lease.ProbeOpaque:
			return target == grpcHealth && strings.HasPrefix(agent, kubelet)
		case q.Kind != lease.ProbeHTTP || target != q.Path:
			return false
		case q.UserAgent != "":
			return agent == q.UserAgent
		}
		return strings.HasPrefix(agent, kubelet)
	})
}

// App carries a connection to the app, wherever in the pod it listens. Where it
// does not, the caller sees a reset, as near to a refusal as can be.
func (p *Port) App(ctx context.Context, end peek.End) {
	far, err := Dial(ctx, p.Number, addrOf(end.LocalAddr()))
	if err != nil {
		peek.New(end).Reset(tunnel.CodeRefused)
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

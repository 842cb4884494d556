package split

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/port"
	"berth.dev/tunnel"
)

// rig is a diverted port with an app behind it and a real tunnel to handlers.
type rig struct {
	*Port
	at  string // where the port's traffic comes
	set *port.Set

	mu       sync.Mutex
	handlers map[string]string // addresses by engagement; without one: refused
	opened   map[string]int
	sources  []netip.AddrPort
	refusing func() // called before a flow is refused
}

// newRig is a port whose app listens at addr (127.0.0.1:N).
func newRig(t testing.TB, addr string) *rig {
	t.Helper()
	a, b := tcpPair(t)
	near, far := tunnel.NewSession(a, true, tunnel.Config{}), tunnel.NewSession(b, false, tunnel.Config{})
	r := &rig{handlers: map[string]string{}, opened: map[string]int{}}
	log := slog.New(slog.DiscardHandler)
	number := netip.MustParseAddrPort(addr).Port()
	r.Port = New(number, near, log)
	r.set = port.NewSet("", near, log)
	at, err := r.set.Divert(port.TCP, 0, r.Port)
	if err != nil {
		t.Fatal(err)
	}
	r.at = net.JoinHostPort("127.0.0.1", itoa(at))
	go r.serve(far)
	t.Cleanup(func() { r.set.Close(); near.Close(); far.Close() })
	return r
}

func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// serve is what manager and vif do: it dials the engagement's handler.
func (r *rig) serve(s *tunnel.Session) {
	for {
		q, err := s.Accept(context.Background())
		if err != nil {
			return
		}
		r.mu.Lock()
		addr := r.handlers[q.Header.Engagement]
		r.opened[q.Header.Engagement]++
		r.sources = append(r.sources, q.Header.Src)
		refusing := r.refusing
		r.mu.Unlock()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			if refusing != nil {
				refusing()
			}
			q.Refuse(tunnel.CodeRefused, "nobody listens")
			continue
		}
		if st, err := q.Accept(); err == nil {
			go func() { _, _, _ = tunnel.Relay(st, c.(*net.TCPConn)) }()
		}
	}
}

func (r *rig) handler(engagement, addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handlers[engagement] = addr
}

// route is a filter by header x-dev, or by path.
func route(engagement string, match ...string) Route {
	f := lease.Filter{}
	for _, m := range match {
		if strings.HasPrefix(m, "/") {
			f.Path = &lease.PathMatch{Kind: lease.PathPrefix, Value: m}
		} else {
			f.Headers = append(f.Headers, lease.HeaderMatch{Name: "X-Dev", Value: m})
		}
	}
	f, err := f.Normal()
	if err != nil {
		panic(err)
	}
	return Route{To: port.To{Engagement: engagement, As: 80}, Filter: f}
}

func (r *rig) hold(t testing.TB, routes ...Route) {
	t.Helper()
	if errs := r.Set(routes, nil, nil, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
}

// server is an HTTP server, HTTP/1 and HTTP/2 without TLS; its address.
func server(t testing.TB, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// named answers with its name and what it was asked, after the whole of it.
func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Who", name)
		w.Header().Set("X-Proto", r.Proto)
		_, _ = io.WriteString(w, name+" "+r.Method+" "+r.RequestURI+" "+string(b))
	})
}

// client1 and client2 are clients that keep connections alive.
func client1() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
}

func client2() *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Timeout: 20 * time.Second, Transport: tr}
}

func (r *rig) ask(t testing.TB, c *http.Client, path, dev string, body io.Reader) (string, *http.Response) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), "POST", "http://"+r.at+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if dev != "" {
		req.Header.Set("X-Dev", dev)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), res
}

// raw says what over one connection and returns all that is answered until the end.
func (r *rig) raw(t testing.TB, what string, halfClose bool) string {
	t.Helper()
	c, err := net.Dial("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
	if halfClose {
		_ = c.(*net.TCPConn).CloseWrite()
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%q after %q", err, b)
	}
	return string(b)
}

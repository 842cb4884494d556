package split

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"berth.dev/services/agent/internal/peek"
	"berth.dev/services/agent/internal/port"
	"berth.dev/tunnel"
)

// Windows of HTTP/2. One stream's is small against its connection's, so that a
// handler that does not read holds up none of its client's other requests before
// some thirty of them wait for it. What the app would allow of streams at a time
// is not known, so that hardly any limit is ours.
const (
	streamWindow     = 128 << 10
	connectionWindow = 4<<20 - 1 // the most that net/http takes
	streams          = 1 << 16
)

// continueWait is how long a client that expects "100 Continue" waits for the
// far end's word.
const continueWait = time.Second

// client is one client's connection, by HTTP, with those to the app and to
// handlers that its requests go over.
type client struct {
	port *Port
	conn *inbound
	one  *http.Transport // HTTP/1
	two  *http.Transport // HTTP/2

	mu   sync.Mutex
	fars map[*far]struct{} // that are open
	over bool
}

func newClient(p *Port, c *peek.Conn) *client {
	cl := &client{port: p, conn: newInbound(c), fars: map[*far]struct{}{}}
	cl.one, cl.two = newTransport(false, cl.dial), newTransport(true, cl.dial)
	return cl
}

// newTransport is one that speaks HTTP/1, or HTTP/2 without TLS.
func newTransport(two bool, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	t := &http.Transport{DialContext: dial, DisableCompression: true, ExpectContinueTimeout: continueWait, Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!two)
	t.Protocols.SetUnencryptedHTTP2(two)
	return t
}

// serve answers the client's requests until its connection is over.
func (cl *client) serve(ctx context.Context) {
	srv := &http.Server{
		Handler: cl, Protocols: new(http.Protocols), DisableGeneralOptionsHandler: true,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: streams, MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connectionWindow},
		ErrorLog:    slog.NewLogLogger(cl.port.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	_ = srv.Serve(&once{conn: cl.conn}) // returns when the connection has ended
	cl.mu.Lock()
	fars := cl.fars
	cl.fars, cl.over = nil, true
	cl.mu.Unlock()
	for f := range fars {
		_ = f.Close()
	}
}

// ServeHTTP carries one request to where it belongs.
func (cl *client) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := cl.port.now.Load()
	if r.ProtoMajor == 1 {
		_ = http.NewResponseController(w).EnableFullDuplex() // an answer may begin before the request has ended
		cl.conn.begin()
		defer cl.conn.end()
	}
	if strings.EqualFold(r.Header.Get("Upgrade"), "h2c") {
		// A server need not take up such an offer (RFC 9110, section 7.8), and
		// here it could not be seen any more whose the next requests are.
		r.Header.Del("Upgrade")
		r.Header.Del("Http2-Settings")
	}
	h := w.Header()
	h["Date"], h["Content-Type"] = nil, nil // none but the far end's own
	if !t.filtered() && r.Header.Get("Upgrade") == "" {
		h.Set("Connection", "close") // the next one is carried as a whole again; HTTP/2 makes a GOAWAY of it
	}
	to, engaged := t.of(r)
	cl.forward(w, r, to, engaged)
}

// app is the host that stands for the app in URLs inside of here; an engagement's
// id, which has no dot, stands for its handler.
const app = "app.invalid"

func (cl *client) forward(w http.ResponseWriter, r *http.Request, to port.To, engaged bool) {
	host, transport := app, cl.one
	if engaged {
		host = net.JoinHostPort(to.Engagement, itoa(to.As))
	}
	if r.ProtoMajor == 2 {
		transport = cl.two
	}
	var sent atomic.Bool // it has begun to go
	var proxy httputil.ReverseProxy
	proxy = httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, BufferPool: buffers,
		Rewrite: func(pr *httputil.ProxyRequest) {
			cl.rewrite(pr, host)
			if pr.Out.Body != nil && r.ProtoMajor == 2 {
				pr.Out.Body = &body{r.Body, &sent}
			}
		},
		ModifyResponse: func(res *http.Response) error {
			keepClose(w, r, res)
			if res.ContentLength == 0 && r.ProtoMajor == 2 {
				// The headers are all there is, and have to end the stream: gRPC has
				// what is else in trailers in them. A flush would not let them.
				proxy.FlushInterval = 0
				if _, told := res.Header["Content-Length"]; !told {
					w.Header()["Content-Length"] = nil
				}
			}
			return nil
		},
		ErrorLog: slog.NewLogLogger(cl.port.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			var refused *dialError
			switch {
			case !engaged, !errors.As(err, &refused), r.Context().Err() != nil:
				// As it is between the two without us: what breaks off there
				// breaks off here.
				panic(http.ErrAbortHandler)
			case !cl.port.now.Load().holds(to): // the engagement has ended meanwhile
				cl.forward(w, r, port.To{}, false)
			default:
				w.Header().Set("Connection", "close") // what is left of the request is not read
				http.Error(w, "berth: the handler of engagement "+to.Engagement+" takes no connection: "+refused.Error(), http.StatusBadGateway)
			}
		},
	}
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}
	if r.ProtoMajor == 1 {
		trace = cl.conn.trace()
	}
	proxy.ServeHTTP(w, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
}

// body is that of a request by HTTP/2. A far end that ends a stream before the
// client has said all makes the transport close it, which must end a Read that
// waits for the client; the proxy's own does not.
type body struct {
	io.ReadCloser
	sent *atomic.Bool
}

func (b *body) Close() error {
	if !b.sent.Load() {
		return nil // nobody was reached; it may go to another
	}
	return b.ReadCloser.Close()
}

// rewrite makes the request that goes on: the client's own, with its address added
// to X-Forwarded-For, since the far end sees another one.
func (cl *client) rewrite(pr *httputil.ProxyRequest, host string) {
	pr.Out.URL = aimed(pr.In, host)
	pr.Out.Host = pr.In.Host
	pr.Out.Trailer = pr.In.Trailer // filled when the body has ended
	for _, k := range []string{"Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := pr.In.Header[k]; ok {
			pr.Out.Header[k] = v
		}
	}
	via := pr.In.Header["X-Forwarded-For"]
	if a, err := netip.ParseAddrPort(pr.In.RemoteAddr); err == nil {
		via = []string{strings.Join(append(via[:len(via):len(via)], a.Addr().Unmap().String()), ", ")}
	}
	pr.Out.Header["X-Forwarded-For"] = via
}

// aimed is the URL of a request that goes on to host.
func aimed(r *http.Request, host string) *url.URL {
	if target := r.RequestURI; target == "*" || strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "//") {
		return &url.URL{Scheme: "http", Host: host, Opaque: target} // to the letter
	}
	u := *r.URL
	u.Scheme, u.Host = "http", host
	return &u
}

// keepClose tells the client of a far end that ends the connection after its answer.
func keepClose(w http.ResponseWriter, r *http.Request, res *http.Response) {
	if r.ProtoMajor == 1 && res.Close && res.StatusCode != http.StatusSwitchingProtocols {
		w.Header().Set("Connection", "close")
	}
}

// dialError is why the far end could not be reached: nothing has been sent there.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// dial connects to the app or a handler, as forward named them.
func (cl *client) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, number, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	f := &far{client: cl}
	if host == app {
		f.End, err = cl.port.dialApp(ctx, cl.conn.LocalAddr())
	} else {
		f.engagement = host
		f.End, err = cl.port.open(ctx, port.To{Engagement: host, As: atoi(number)}.Header(tunnel.KindTCP, cl.conn.LocalAddr(), cl.conn.RemoteAddr()))
	}
	if err != nil {
		return nil, &dialError{err}
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.over {
		_ = f.End.Close()
		return nil, net.ErrClosed
	}
	cl.fars[f] = struct{}{}
	cl.port.keep(f)
	return f, nil
}

// far is a connection to the app or a handler.
type far struct {
	peek.End
	client     *client
	engagement string // empty: to the app
}

// Read ends the client's connection where the app ends this one between two
// requests, as it would without us.
func (f *far) Read(b []byte) (int, error) {
	n, err := f.End.Read(b)
	if err != nil && f.engagement == "" {
		f.client.conn.closeIdle()
	}
	return n, err
}

func (f *far) Write(b []byte) (int, error) {
	n, err := f.End.Write(b)
	f.client.conn.written(f)
	return n, err
}

func (f *far) Close() error {
	f.client.mu.Lock()
	delete(f.client.fars, f)
	f.client.mu.Unlock()
	f.client.port.forget(f)
	return f.End.Close()
}

// pool are buffers of one size.
type pool struct{ sync.Pool }

var buffers = &pool{sync.Pool{New: func() any { return new([32 << 10]byte) }}}

func (p *pool) Get() []byte  { return p.Pool.Get().(*[32 << 10]byte)[:] }
func (p *pool) Put(b []byte) { p.Pool.Put((*[32 << 10]byte)(b)) }

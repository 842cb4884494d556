package apidial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"berth.dev/tunnel"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

const (
	// portForwardProtocol is Kubernetes' name of the port-forward protocol,
	// and the second that of its tunnelling over WebSocket.
	portForwardProtocol = portforward.PortForwardProtocolV1Name
	overWebSocket       = "SPDY/3.1+" + portForwardProtocol
	pingPeriod          = 10 * time.Second
	// streamTimeout bounds the wait for the API server to take our streams.
	streamTimeout = 10 * time.Second
)

// portForward opens one data stream to the pod's port. Everything rides in it:
// the API server's handling of many streams stalls all of them when one is
// abandoned.
func (a *api) portForward(ctx context.Context, t target, transport Transport) (net.Conn, error) {
	var conn httpstream.Connection
	var err error
	if transport == PortForwardSPDY {
		conn, err = a.dialSPDY(ctx, t)
		err = forbidden(err, "create", "pods/portforward", t.namespace)
	} else {
		conn, err = a.dialWebSocket(ctx, t)
		err = forbidden(err, "get", "pods/portforward", t.namespace)
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	return openData(conn, t)
}

func (a *api) dialSPDY(ctx context.Context, t target) (httpstream.Connection, error) {
	tlsConfig, err := rest.TLSConfigFor(a.config)
	if err != nil {
		return nil, fmt.Errorf("set up TLS: %w", err)
	}
	upgrader, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{
		TLS: tlsConfig, Proxier: a.proxier(), PingPeriod: pingPeriod,
	})
	if err != nil {
		return nil, fmt.Errorf("set up SPDY: %w", err)
	}
	rt, err := rest.HTTPWrappersForConfig(a.config, upgrader)
	if err != nil {
		return nil, fmt.Errorf("set up credentials: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.portForwardURL(t).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, portForwardProtocol)
	resp, err := rt.RoundTrip(req) // as client-go's spdy.Negotiate, which drops the status
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
		return nil, statusError(resp.StatusCode, body)
	}
	return upgrader.NewConnection(resp)
}

func (a *api) dialWebSocket(ctx context.Context, t target) (httpstream.Connection, error) {
	rt, holder, err := websocket.RoundTripperFor(a.config)
	if err != nil {
		return nil, fmt.Errorf("set up WebSocket: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.portForwardURL(t).String(), nil)
	if err != nil {
		return nil, err
	}
	ws, err := websocket.Negotiate(rt, holder, req, overWebSocket)
	if err != nil {
		return nil, unwrapUpgrade(err)
	}
	tunnel.Tune(ws.NetConn())
	conn, err := spdy.NewClientConnectionWithPings(portforward.NewTunnelingConnection("berth", ws), pingPeriod)
	if err != nil {
		_ = ws.Close()
		return nil, fmt.Errorf("start SPDY over WebSocket: %w", err)
	}
	return conn, nil
}

// unwrapUpgrade uncovers the API server's answer, which UpgradeFailureError
// hides from errors.As.
func unwrapUpgrade(err error) error {
	var failure *httpstream.UpgradeFailureError
	if errors.As(err, &failure) && failure.Cause != nil {
		return &refusedUpgrade{failure}
	}
	return err
}

type refusedUpgrade struct {
	failure *httpstream.UpgradeFailureError
}

func (e *refusedUpgrade) Error() string { return e.failure.Error() }
func (e *refusedUpgrade) Unwrap() error { return e.failure.Cause }

// openData asks for the streams of one forwarded connection: errors, then
// data.
func openData(conn httpstream.Connection, t target) (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, strconv.Itoa(t.port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	fail := func(err error) (net.Conn, error) {
		_ = conn.Close()
		return nil, fmt.Errorf("open port-forward stream: %w", err)
	}
	late := time.AfterFunc(streamTimeout, func() { _ = conn.Close() })
	defer late.Stop()
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return fail(err)
	}
	_ = errs.Close() // we send no errors
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return fail(err)
	}
	f := &forwarded{conn: conn, data: data, done: make(chan struct{})}
	go f.watch(errs)
	return f, nil
}

// forwarded is the data stream as a net.Conn. Deadlines are approximate, and
// final: passing one closes the connection.
type forwarded struct {
	conn httpstream.Connection
	data httpstream.Stream
	done chan struct{} // closed once the error stream has ended

	mu      sync.Mutex
	err     error // what the error stream said
	expired bool
	timer   *time.Timer
}

// watch ends with the connection, at the latest.
func (f *forwarded) watch(errs io.Reader) {
	defer close(f.done)
	msg, _ := io.ReadAll(io.LimitReader(errs, 4<<10))
	if len(msg) > 0 {
		f.mu.Lock()
		f.err = fmt.Errorf("port-forward: %s", msg)
		f.mu.Unlock()
		_ = f.conn.Close()
	}
}

// explain replaces what a closed stream returns by the reason.
func (f *forwarded) explain(err error) error {
	if err == nil {
		return nil
	}
	select { // an error stream says why a data stream ends, about then
	case <-f.done:
	case <-time.After(100 * time.Millisecond):
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.expired:
		return os.ErrDeadlineExceeded
	case f.err != nil:
		return f.err
	}
	return err
}

func (f *forwarded) Read(p []byte) (int, error) {
	n, err := f.data.Read(p)
	return n, f.explain(err)
}

func (f *forwarded) Write(p []byte) (int, error) {
	n, err := f.data.Write(p)
	return n, f.explain(err)
}

func (f *forwarded) Close() error {
	_ = f.SetDeadline(time.Time{})
	_ = f.data.Reset() // wakes a Read; Close would only end our direction
	return f.conn.Close()
}

func (f *forwarded) LocalAddr() net.Addr  { return address{} }
func (f *forwarded) RemoteAddr() net.Addr { return address{} }

func (f *forwarded) SetReadDeadline(t time.Time) error  { return f.SetDeadline(t) }
func (f *forwarded) SetWriteDeadline(t time.Time) error { return f.SetDeadline(t) }

func (f *forwarded) SetDeadline(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if !t.IsZero() {
		f.timer = time.AfterFunc(time.Until(t), func() {
			f.mu.Lock()
			f.expired = true
			f.mu.Unlock()
			_ = f.data.Reset()
			_ = f.conn.Close()
		})
	}
	return nil
}

// address stands for an end that has none of its own.
type address struct{}

func (address) Network() string { return "portforward" }
func (address) String() string  { return "portforward" }

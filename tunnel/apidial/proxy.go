package apidial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"time"

	"berth.dev/tunnel"
	"berth.dev/tunnel/internal/cork"
	"k8s.io/client-go/rest"
)

// podsProxy upgrades a request to the pod through the API server's proxy. The
// API server authorizes it as "get" on pods/proxy.
func (a *api) podsProxy(ctx context.Context, t target) (net.Conn, error) {
	base, err := a.http1()
	if err != nil {
		return nil, err
	}
	rt, err := rest.HTTPWrappersForConfig(a.config, base)
	if err != nil {
		return nil, fmt.Errorf("set up credentials: %w", err)
	}
	var got net.Conn
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { got = i.Conn }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, a.proxyURL(t).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", tunnel.UpgradeProtocol)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		base.CloseIdleConnections()
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
		_ = resp.Body.Close()
		base.CloseIdleConnections()
		return nil, forbidden(statusError(resp.StatusCode, body), "get", "pods/proxy", t.namespace)
	}
	body, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || got == nil {
		_ = resp.Body.Close()
		return nil, errors.New("a wrapper of the transport hides the upgraded connection")
	}
	return newProxied(got, body), nil
}

// http1 returns a transport of its own for one upgrade: an upgraded connection
// is of no use to others, HTTP/2 cannot upgrade, and the connections are made
// for bulk.
func (a *api) http1() (*http.Transport, error) {
	tlsConfig, err := rest.TLSConfigFor(a.config)
	if err != nil {
		return nil, fmt.Errorf("set up TLS: %w", err)
	}
	if tlsConfig != nil {
		tlsConfig = tlsConfig.Clone()
		tlsConfig.NextProtos = []string{"http/1.1"}
		tlsConfig.DynamicRecordSizingDisabled = true
	}
	dial := a.config.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy:           a.proxier(),
		TLSClientConfig: tlsConfig,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			tunnel.Tune(conn)
			return cork.New(conn), nil
		},
		TLSHandshakeTimeout: 10 * time.Second,
	}, nil
}

// proxier returns the kubeconfig's proxy, or the environment's.
func (a *api) proxier() func(*http.Request) (*url.URL, error) {
	if a.config.Proxy != nil {
		return a.config.Proxy
	}
	return http.ProxyFromEnvironment
}

// proxied is an upgraded connection. The http package owns what it read ahead,
// so reads go by the response's body; the rest goes straight to the
// connection.
type proxied struct {
	net.Conn
	body io.ReadWriteCloser
}

// newProxied writes through a cork.Conn if conn is TLS.
func newProxied(conn net.Conn, body io.ReadWriteCloser) net.Conn {
	if tc, ok := conn.(*tls.Conn); ok {
		if socket := socketUnder(tc); socket != nil {
			conn = cork.Over(tc, socket)
		}
	}
	return &proxied{Conn: conn, body: body}
}

// socketUnder walks down: with an https proxy there are two layers of TLS.
func socketUnder(conn net.Conn) *cork.Socket {
	for {
		switch c := conn.(type) {
		case *cork.Socket:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

func (c *proxied) Read(p []byte) (int, error) { return c.body.Read(p) }
func (c *proxied) Close() error               { return c.body.Close() }

// NetConn lets the session find the socket.
func (c *proxied) NetConn() net.Conn { return c.Conn }

package apidial

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"berth.dev/tunnel"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

type ctx = context.Context

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// check runs a session over conn and moves some bytes.
func check(t *testing.T, f *fake, conn net.Conn) {
	t.Helper()
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	s, welcome, err := tunnel.Dial(t.Context(), conn, id, f.id.Pin(), tunnel.Hello{Role: "vif"}, tunnel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if welcome.InstallationID != "fake" {
		t.Errorf("welcome %+v", welcome)
	}
	st, err := s.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Dst: netip.MustParseAddrPort("10.0.0.1:80")})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // 2 MiB
	go func() { st.Write(data); st.CloseWrite() }()
	got, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("echo of %d bytes: %d, %v", len(data), len(got), err)
	}
}

func TestEveryTransport(t *testing.T) {
	for _, transport := range []Transport{PodsProxy, PortForwardWebSocket, PortForwardSPDY} {
		t.Run(string(transport), func(t *testing.T) {
			f := newFake(t)
			d := f.dialer()
			d.Only = transport
			dialing, cancel := context.WithCancel(t.Context())
			conn, got, err := d.Dial(dialing)
			if err != nil {
				t.Fatal(err)
			}
			cancel() // bounds the dialling only
			if got != transport {
				t.Errorf("got %s", got)
			}
			check(t, f, conn)
			f.mu.Lock()
			defer f.mu.Unlock()
			for i, token := range f.tokens {
				if token != "Bearer user-token" {
					t.Errorf("%s came with %q", f.requests[i], token)
				}
			}
			if f.upgraded.Get("Authorization") != "" {
				t.Error("the user's token reached the manager")
			}
		})
	}
}

func TestFallsBackAndRemembers(t *testing.T) {
	f := newFake(t)
	d := f.dialer()
	f.set(f.forbid, "proxy", true)
	f.set(f.broken, "websocket", true)
	for range 2 {
		conn, transport, err := d.Dial(t.Context())
		if err != nil || transport != PortForwardSPDY {
			t.Fatalf("got %s, %v", transport, err)
		}
		check(t, f, conn)
	}
	if n := f.seen(tunnel.Path); n != 1 {
		t.Errorf("pods/proxy was tried %d times", n)
	}
	// What worked fails: the others get their chance again.
	f.set(f.forbid, "proxy", false)
	f.set(f.forbid, "portforward", true)
	conn, transport, err := d.Dial(t.Context())
	if err != nil || transport != PodsProxy {
		t.Fatalf("got %s, %v", transport, err)
	}
	check(t, f, conn)
}

func TestBadGatewayFallsBack(t *testing.T) {
	f := newFake(t)
	f.set(f.broken, "proxy", true)
	conn, transport, err := f.dialer().Dial(t.Context())
	if err != nil || transport != PortForwardWebSocket {
		t.Fatalf("got %s, %v", transport, err)
	}
	check(t, f, conn)
}

func TestForbiddenEverywhere(t *testing.T) {
	f := newFake(t)
	f.set(f.forbid, "proxy", true)
	f.set(f.forbid, "portforward", true)
	_, _, err := f.dialer().Dial(t.Context())
	var p *PermissionError
	if !errors.As(err, &p) || p.Verb != "get" || p.Resource != "pods/proxy" || p.Namespace != "berth" {
		t.Errorf("got %v", err)
	}
	if !apierrors.IsForbidden(p) {
		t.Error("the API server's status is lost")
	}
	for _, want := range []string{"pods-proxy", "portforward-websocket", "portforward-spdy", "get pods/proxy", "get pods/portforward", "create pods/portforward"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestForbiddenToList(t *testing.T) {
	f := newFake(t)
	f.set(f.forbid, "list", true)
	d := f.dialer()
	_, _, err := d.Dial(t.Context())
	var p *PermissionError
	if !errors.As(err, &p) || p.Verb != "list" || p.Resource != "pods" {
		t.Errorf("got %v", err)
	}
	d.Pod = "manager-0"
	conn, _, err := d.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, f, conn)
}

func TestNoReadyPod(t *testing.T) {
	f := newFake(t)
	f.pods = f.pods[:1]
	if _, _, err := f.dialer().Dial(t.Context()); !errors.Is(err, ErrNoPod) {
		t.Errorf("got %v", err)
	}
}

func TestCanceledWhileDialling(t *testing.T) {
	f := newFake(t)
	f.set(f.broken, "hang", true)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { _, _, err := f.dialer().Dial(ctx); failed <- err }()
	eventually(t, "request arrived", func() bool { return f.seen(tunnel.Path) == 1 })
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if f.seen("/portforward") != 0 {
		t.Error("went on after the cancel")
	}
}

func TestWrongPortIsExplained(t *testing.T) {
	f := newFake(t)
	for _, transport := range []Transport{PortForwardWebSocket, PortForwardSPDY} {
		d := f.dialer()
		d.Only, d.Port = transport, 1
		_, _, err := d.Dial(t.Context())
		if err == nil || !strings.Contains(err.Error(), "nobody listens on 1") {
			t.Errorf("%s: %v", transport, err)
		}
	}
}

func TestCloseEndsARead(t *testing.T) {
	f := newFake(t)
	for _, transport := range []Transport{PodsProxy, PortForwardWebSocket, PortForwardSPDY} {
		d := f.dialer()
		d.Only = transport
		conn, _, err := d.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { _, err := conn.Read(make([]byte, 1)); ended <- err }()
		conn.Close()
		if err := <-ended; err == nil {
			t.Errorf("%s: read went well", transport)
		}
	}
}

// An HTTP proxy between, as in companies.
func TestThroughHTTPProxy(t *testing.T) {
	f := newFake(t)
	connects := make(chan string, 16)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
			return
		}
		connects <- r.Host
		up, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer up.Close()
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(up, rw); up.(*net.TCPConn).CloseWrite() }()
		io.Copy(c, up)
	}))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	for _, transport := range []Transport{PodsProxy, PortForwardWebSocket, PortForwardSPDY} {
		d := f.dialer()
		d.Config.Proxy = http.ProxyURL(u)
		d.Only, d.Pod = transport, "manager-0"
		conn, _, err := d.Dial(t.Context())
		if err != nil {
			t.Errorf("%s: %v", transport, err)
			continue
		}
		check(t, f, conn)
		if host := <-connects; "https://"+host != f.URL {
			t.Errorf("%s: proxy saw %q", transport, host)
		}
	}
}

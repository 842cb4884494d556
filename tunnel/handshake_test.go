package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// shake runs both sides of a handshake and returns what each got.
func shake(t *testing.T, serverID *Identity, pin Pin, hello Hello, auth func(context.Context, Hello, Pin) (*Welcome, error)) (welcome *Welcome, got Hello, peer Pin, dialErr, serveErr error) {
	t.Helper()
	a, b := tcpPair(t)
	served := make(chan struct{})
	var server *Session
	go func() {
		defer close(served)
		server, got, peer, serveErr = Serve(t.Context(), b, serverID, auth, Config{})
	}()
	client, welcome, dialErr := Dial(t.Context(), a, identity(t), pin, hello, Config{})
	<-served
	if client != nil && server != nil {
		c, s := streamPair(t, client, server, KindTCP)
		mustWrite(t, c, "through the inner TLS")
		mustRead(t, s, "through the inner TLS")
	}
	if client != nil {
		client.Close()
	}
	if server != nil {
		server.Close()
	}
	return welcome, got, peer, dialErr, serveErr
}

func TestHandshake(t *testing.T) {
	id := identity(t)
	want := &Welcome{
		ServerVersion: "v1.2.3", InstallationID: "i-1", ClusterDomain: "cluster.local",
		DNS:     []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Extra:   json.RawMessage(`{"a":1}`),
	}
	hello := Hello{Role: "agent", ID: "default/echo-0", Token: "s3cret", Client: "agent v1.2.3"}
	welcome, got, peer, dialErr, serveErr := shake(t, id, id.Pin(), hello, func(_ context.Context, h Hello, peer Pin) (*Welcome, error) {
		if h.Token != "s3cret" || peer == "" {
			t.Errorf("auth got %+v, pin %q", h, peer)
		}
		return want, nil
	})
	if dialErr != nil || serveErr != nil {
		t.Fatal(dialErr, serveErr)
	}
	hello.Version = Version
	if got != hello {
		t.Errorf("hello: got %+v", got)
	}
	if peer == "" || peer == id.Pin() {
		t.Errorf("peer's pin %q", peer)
	}
	if want.Version != 0 {
		t.Error("auth's own Welcome was written to")
	}
	want.Version = Version
	if !reflect.DeepEqual(welcome, want) {
		t.Errorf("welcome: got %+v", welcome)
	}
}

func TestHandshakeRefused(t *testing.T) {
	id := identity(t)
	_, _, _, dialErr, serveErr := shake(t, id, id.Pin(), Hello{Role: "vif"}, func(context.Context, Hello, Pin) (*Welcome, error) {
		return nil, &RPCError{Code: "permission_denied", Message: "token has expired", Hint: "berth connect"}
	})
	var e *RPCError
	if !errors.As(dialErr, &e) || e.Code != "permission_denied" || e.Message != "token has expired" || e.Hint != "berth connect" {
		t.Errorf("dial: %v", dialErr)
	}
	if serveErr == nil || strings.Contains(serveErr.Error(), "s3cret") {
		t.Errorf("serve: %v", serveErr)
	}
	_, _, _, dialErr, _ = shake(t, id, id.Pin(), Hello{}, func(context.Context, Hello, Pin) (*Welcome, error) {
		return nil, errors.New("plain words")
	})
	if dialErr == nil || !strings.Contains(dialErr.Error(), "plain words") {
		t.Errorf("dial: %v", dialErr)
	}
}

func TestHandshakeVersions(t *testing.T) {
	id := identity(t)
	_, _, _, dialErr, serveErr := shake(t, id, id.Pin(), Hello{Version: 42}, welcomeAll)
	for who, err := range map[string]error{"dial": dialErr, "serve": serveErr} {
		var v *VersionError
		if !errors.As(err, &v) || v.Local+v.Remote != 42+Version {
			t.Errorf("%s: %v", who, err)
		}
		if err == nil || !strings.Contains(err.Error(), "42") {
			t.Errorf("%s does not name both versions: %v", who, err)
		}
	}
}

func TestHandshakeChecksServerPin(t *testing.T) {
	id, other := identity(t), identity(t)
	_, _, _, dialErr, serveErr := shake(t, id, other.Pin(), Hello{}, func(context.Context, Hello, Pin) (*Welcome, error) {
		t.Error("hello was sent to an impostor")
		return nil, nil
	})
	var p *PinError
	if !errors.As(dialErr, &p) || p.Want != other.Pin() || p.Got != id.Pin() {
		t.Errorf("dial: %v", dialErr)
	}
	if serveErr == nil {
		t.Error("server was content")
	}
	a, _ := net.Pipe()
	if _, _, err := Dial(t.Context(), a, id, "", Hello{}, Config{}); err == nil {
		t.Error("dialled without a pin")
	}
}

func TestServeWantsClientKeyAndTLS13(t *testing.T) {
	for name, config := range map[string]*tls.Config{
		"no certificate": {InsecureSkipVerify: true, NextProtos: []string{alpn}},
		"TLS 1.2":        {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{identity(t).cert}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			failed := make(chan error, 1)
			go func() { _, _, _, err := Serve(t.Context(), b, identity(t), welcomeAll, Config{}); failed <- err }()
			c := tls.Client(a, config)
			_ = c.Handshake()
			_, _ = c.Read(make([]byte, 1))
			if err := <-failed; err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestHandshakeTimesOut(t *testing.T) {
	id := identity(t)
	for _, who := range []string{"dial", "serve"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				defer b.Close()
				go io.Copy(io.Discard, b)
				start := time.Now()
				var err error
				if who == "dial" {
					_, _, err = Dial(t.Context(), a, id, id.Pin(), Hello{}, Config{})
				} else {
					_, _, _, err = Serve(t.Context(), a, id, welcomeAll, Config{})
				}
				wantErr(t, who, err, context.DeadlineExceeded)
				if got := time.Since(start); got != handshakeTimeout {
					t.Errorf("took %v", got)
				}
			})
		})
	}
}

func TestHandshakeCanceled(t *testing.T) {
	id := identity(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	a, b := tcpPair(t)
	defer b.Close()
	mine := errors.New("changed my mind")
	time.AfterFunc(10*time.Millisecond, func() { cancel(mine) })
	_, _, err := Dial(ctx, a, id, id.Pin(), Hello{}, Config{})
	wantErr(t, "dial", err, mine)
}

func TestIdentityPEM(t *testing.T) {
	id := identity(t)
	data, err := id.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseIdentity(data)
	if err != nil || again.Pin() != id.Pin() {
		t.Errorf("pin %v, %v", again, err)
	}
	if len(id.Pin()) != 43 {
		t.Errorf("pin %q is not 32 bytes of base64url", id.Pin())
	}
	other, _ := identity(t).MarshalPEM()
	key, cert := bytes.SplitAfter(data, []byte("-----END PRIVATE KEY-----\n")), bytes.SplitAfter(other, []byte("-----END PRIVATE KEY-----\n"))
	for name, bad := range map[string][]byte{"empty": nil, "key only": key[0], "another's certificate": append(key[0], cert[1]...)} {
		if _, err := ParseIdentity(bad); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

func TestUpgrade(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != Path {
			http.Error(w, "not here", http.StatusNotFound)
			return
		}
		conn, err := Upgrade(w, r)
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn)
	}))
	defer srv.Close()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	conn, err := RequestUpgrade(t.Context(), dial(), "manager", Path, http.Header{"X-A": {"b"}})
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, conn, "raw bytes")
	mustRead(t, conn, "raw bytes")
	conn.Close()

	_, err = RequestUpgrade(t.Context(), dial(), "manager", "/elsewhere", nil)
	var e *UpgradeError
	if !errors.As(err, &e) || e.Status != http.StatusNotFound || !strings.Contains(err.Error(), "not here") {
		t.Errorf("got %v", err)
	}
	resp, err := http.Get(srv.URL + Path)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("plain GET: %s", resp.Status)
	}
}

// Bytes that come in one piece with the head belong to the connection.
func TestUpgradeKeepsBytesReadAhead(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := Upgrade(w, r)
		if err != nil {
			return
		}
		defer conn.Close()
		io.Copy(conn, conn)
	}))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustWrite(t, c, "GET "+Path+" HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: berth\r\n\r\nahead")
	b := make([]byte, 4096)
	var got []byte
	for !bytes.HasSuffix(got, []byte("ahead")) {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, b[:n]...)
	}

	a, z := tcpPair(t)
	go func() {
		z.Read(make([]byte, 4096))
		io.WriteString(z, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: berth\r\n\r\nahead")
	}()
	conn, err := RequestUpgrade(t.Context(), a, "manager", Path, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, conn, "ahead")
}

func TestUpgradeCanceled(t *testing.T) {
	a, _ := tcpPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err := RequestUpgrade(ctx, a, "manager", Path, nil)
	wantErr(t, "upgrade", err, context.Canceled)
}

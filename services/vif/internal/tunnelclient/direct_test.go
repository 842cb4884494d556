package tunnelclient

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/tunnel"
)

// endpoint is a tunnel endpoint like the manager's; it returns its address.
func endpoint(t *testing.T, id *tunnel.Identity) string {
	t.Helper()
	var sessions sync.WaitGroup
	mux := http.NewServeMux()
	mux.HandleFunc(tunnel.Path, func(w http.ResponseWriter, r *http.Request) {
		conn, err := tunnel.Upgrade(w, r)
		if err != nil {
			return
		}
		sessions.Go(func() {
			s, _, _, err := tunnel.Serve(context.Background(), conn, id, func(context.Context, tunnel.Hello, tunnel.Pin) (*tunnel.Welcome, error) {
				return &tunnel.Welcome{ServerVersion: "test"}, nil
			}, tunnel.Config{})
			if err == nil {
				<-s.Done()
			}
		})
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(func() { srv.Close(); sessions.Wait() })
	return strings.TrimPrefix(srv.URL, "http://")
}

// refusing is an address where nobody listens.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// silent is an address that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// The API server is out of reach in all of these: whatever opens the tunnel is
// the direct path.
func TestDirect(t *testing.T) {
	manager, _ := tunnel.NewIdentity()
	other, _ := tunnel.NewIdentity()
	id, _ := tunnel.NewIdentity()
	web := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(web.Close)
	for _, tt := range []struct {
		name   string
		direct []string
		opens  bool
	}{
		{"the manager", []string{endpoint(t, manager)}, true},
		{"among others that are not", []string{refusing(t), silent(t), strings.TrimPrefix(web.URL, "http://"), "no address", endpoint(t, manager)}, true},
		{"none", nil, false},
		{"nobody", []string{refusing(t)}, false},
		{"a firewall", []string{silent(t)}, false},
		{"another installation", []string{endpoint(t, other)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := New(id, resolvconf.NewDialer(resolvconf.Config{}), "test", slog.New(slog.DiscardHandler))
			res, err := c.Dial(t.Context(), Target{Connection: "c", Namespace: "berth", Pin: string(manager.Pin()), Direct: tt.direct,
				Kubeconfig: config(`"server":"https://`+refusing(t)+`"`, `"token":"t"`)})
			switch {
			case tt.opens && err != nil:
				t.Fatal(err)
			case !tt.opens && err == nil:
				res.Session.Close()
				t.Fatalf("opened by %s", res.Transport)
			case !tt.opens && strings.Contains(err.Error(), "direct"):
				t.Errorf("the direct path's failure is nobody's business: %v", err)
			case tt.opens:
				defer res.Session.Close()
				if res.Transport != Direct || res.Welcome.ServerVersion != "test" {
					t.Errorf("%+v", res)
				}
			}
		})
	}
}

// A direct path that broke soon after it was opened is left alone for a while,
// one that held is not.
func TestDirectThatBreaksIsShunned(t *testing.T) {
	c := New(nil, nil, "", slog.New(slog.DiscardHandler))
	target := Target{Direct: []string{"192.0.2.1:1"}}
	if len(c.directAddresses(target)) != 1 {
		t.Fatal("not tried at first")
	}
	c.directOpened()
	c.directAt = c.directAt.Add(-2 * directProven)
	if len(c.directAddresses(target)) != 1 {
		t.Error("one that held is not tried again")
	}
	c.directOpened()
	if len(c.directAddresses(target)) != 0 {
		t.Error("one that broke at once is tried again")
	}
	c.shunUntil = time.Now()
	if len(c.directAddresses(target)) != 1 {
		t.Error("it is shunned for ever")
	}
}

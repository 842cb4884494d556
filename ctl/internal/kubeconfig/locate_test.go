package kubeconfig

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
)

// answers stands in for the engine's answers, whose containers have addresses
// of this machine: 127.0.0.2 is a "container" that can be dialled. The real
// engine is asked in e2e, with the dev cluster.
type answers struct {
	containers []container.Summary
	gateway    string
}

func (a answers) ContainerList(context.Context, container.ListOptions) ([]container.Summary, error) {
	return a.containers, nil
}

func (a answers) NetworkInspect(context.Context, string, network.InspectOptions) (network.Inspect, error) {
	return network.Inspect{IPAM: network.IPAM{Config: []network.IPAMConfig{{Gateway: a.gateway}}}}, nil
}
func (a answers) Info(context.Context) (system.Info, error) { return system.Info{}, errors.New("none") }

// server is a TLS server at an address of its own.
func server(t *testing.T, addr string) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	_ = s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func port(t *testing.T, s *httptest.Server) uint16 {
	t.Helper()
	return netip.MustParseAddrPort(s.Listener.Addr().String()).Port()
}

// loadAt is a target at url whose certificate authority is that of s.
func loadAt(t *testing.T, s *httptest.Server, at string) *Target { return loadWith(t, s, at, "") }

func loadWith(t *testing.T, s *httptest.Server, at, more string) *Target {
	t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: here\nclusters: [{name: c, cluster: {server: %q, certificate-authority: ca.pem%s}}]\ncontexts: [{name: here, context: {cluster: c}}]\n", at, more)
	path := filepath.Join(dir, "config")
	if err := os.WriteFile(path, []byte(cfg), 0o600); err != nil {
		t.Fatal(err)
	}
	target, err := Load(t.Context(), Options{File: path})
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func publishing(name, ip string, public, private uint16) container.Summary {
	return container.Summary{
		Names: []string{"/" + name},
		Ports: []container.Port{{IP: "0.0.0.0", PublicPort: public, PrivatePort: private, Type: "tcp"}, {IP: "::", PublicPort: public, PrivatePort: private, Type: "tcp"}},
		NetworkSettings: &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{
			"kind": {IPAddress: ip}, "bridge": {IPAddress: "192.0.2.77"},
		}},
	}
}

func TestLocate(t *testing.T) {
	inside := server(t, "127.0.0.2:0") // in the "container"
	in := port(t, inside)
	outside := server(t, "127.0.0.1:0") // what the port is published as
	out := port(t, outside)
	other := server(t, "127.0.0.3:0")
	const unreachable = "127.0.0.4"

	t.Run("container", func(t *testing.T) {
		for _, host := range []string{"127.0.0.1", "localhost"} {
			more := ""
			if host == "localhost" { // the test server's certificate is for example.com and 127.0.0.1
				more = ", tls-server-name: example.com"
			}
			target := loadWith(t, outside, fmt.Sprintf("https://%s:%d/prefix", host, out), more)
			r, err := target.Locate(t.Context(), answers{[]container.Summary{publishing("node", "127.0.0.2", out, in), publishing("bystander", "127.0.0.9", 9, 9)}, unreachable}, true)
			if err != nil {
				t.Fatal(err)
			}
			if r.Via != "container node" || len(r.Networks) != 1 || r.Networks[0] != "kind" {
				t.Errorf("reach %+v", r)
			}
			if got, want := target.cluster().Server, fmt.Sprintf("https://127.0.0.2:%d/prefix", in); got != want {
				t.Errorf("server %s, want %s", got, want)
			}
			want := map[string]string{"127.0.0.1": "127.0.0.1", "localhost": "example.com"}[host]
			if got := target.cluster().TLSServerName; got != want {
				t.Errorf("tls-server-name %q, want %q", got, want)
			}
			if target.Server != fmt.Sprintf("https://%s:%d/prefix", host, out) {
				t.Errorf("the user's own server is lost: %s", target.Server)
			}
		}
	})
	t.Run("host gateway", func(t *testing.T) {
		onGateway := server(t, fmt.Sprintf("127.0.0.5:%d", out))
		defer onGateway.Close()
		target := loadAt(t, outside, fmt.Sprintf("https://0.0.0.0:%d", out))
		target.cluster().TLSServerName = "127.0.0.1"
		// A container that publishes the port on paper only does not win.
		r, err := target.Locate(t.Context(), answers{[]container.Summary{publishing("dead", "127.0.0.2", out, 1)}, "127.0.0.5"}, true)
		if err != nil || !strings.Contains(r.Via, "host gateway 127.0.0.5") || len(r.Networks) != 0 {
			t.Errorf("reach %+v, %v", r, err)
		}
	})
	t.Run("loopback only", func(t *testing.T) {
		target := loadAt(t, outside, fmt.Sprintf("https://127.0.0.1:%d", out))
		_, err := target.Locate(t.Context(), answers{nil, unreachable}, true)
		f := fault.From(err)
		if f == nil || f.Stage != "API server" || !strings.Contains(f.Message, "on this machine only") || f.Hint == "" {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("not from here", func(t *testing.T) {
		// An engine in a virtual machine: the container cannot be dialled from here.
		target := loadAt(t, outside, fmt.Sprintf("https://127.0.0.1:%d", out))
		r, err := target.Locate(t.Context(), answers{[]container.Summary{publishing("node", "127.0.0.2", out, 1)}, unreachable}, false)
		if err != nil || r.Via != "container node" {
			t.Errorf("reach %+v, %v", r, err)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		target := loadAt(t, outside, "https://127.0.0.1:1")
		_, err := target.Locate(t.Context(), answers{nil, unreachable}, true)
		f := fault.From(err)
		if f == nil || f.Code != fault.Unavailable || f.Stage != "API server" || !strings.Contains(f.Message, "does not answer") || f.Hint == "" {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("another's certificate", func(t *testing.T) {
		target := loadWith(t, other, other.URL, ", tls-server-name: not.this")
		_, err := target.Locate(t.Context(), answers{nil, unreachable}, true)
		f := fault.From(err)
		if f == nil || f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, "not.this") {
			t.Errorf("got %+v", f)
		}
	})
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{"127.0.0.1": true, "127.9.9.9": true, "::1": true, "0.0.0.0": true, "::": true, "localhost": true, "a.localhost": true, "192.0.2.1": false, "10.0.0.1": false} {
		u, err := url.Parse("https://" + net.JoinHostPort(host, "1"))
		if err != nil {
			t.Fatal(err)
		}
		if got := loopback(t.Context(), u.Hostname()); got != want {
			t.Errorf("loopback(%s) = %v", host, got)
		}
	}
}

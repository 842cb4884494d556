package probe

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/agent/internal/peek"
)

// sorting listens as a diverted port does; what is for the handler answers with
// a line "handler: " and all that was said.
func sorting(t *testing.T, p *Port) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				end, itself := p.Sort(context.Background(), peek.New(c.(*net.TCPConn)))
				if itself != nil {
					itself()
					return
				}
				_, _ = io.WriteString(end, "handler: ")
				_, _ = io.Copy(struct{ io.Writer }{end}, struct{ io.Reader }{end})
				_ = end.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func appServer(t *testing.T) uint16 {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "app "+r.URL.String()) }))
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(strings.TrimPrefix(s.URL, "http://")).Port()
}

func say(t *testing.T, addr, what string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	for _, part := range strings.SplitAfter(what, "|") { // a part is a packet
		if _, err := io.WriteString(c, strings.TrimSuffix(part, "|")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if errors.Is(err, syscall.ECONNRESET) {
		return "reset"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSort(t *testing.T) {
	node := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	http := lease.Probe{Kind: lease.ProbeHTTP, Path: "/healthz?full"}
	own := lease.Probe{Kind: lease.ProbeHTTP, Path: "/", UserAgent: "prober"}
	tcp, opaque := lease.Probe{Kind: lease.ProbeTCP}, lease.Probe{Kind: lease.ProbeOpaque}
	probe := "GET /healthz?full HTTP/1.1\r\nHost: x\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"
	for _, tt := range []struct {
		name   string
		probes []lease.Probe
		node   []netip.Addr
		say    string
		want   string // how the answer begins or ends; "" is closed without a word
	}{
		{"a probe", []lease.Probe{http}, node, probe, "app /healthz?full"},
		{"a probe by another way", []lease.Probe{http}, nil, probe, "app /healthz?full"},
		{"a probe in pieces", []lease.Probe{http}, node, "GE|T /healthz?full HTTP/1.1\r\n|User-Agent: kube-pro|be/1.34\r\nHost: x\r\nConnection: close\r\n\r|\n", "app /healthz?full"},
		{"one with a User-Agent of its own", []lease.Probe{http, own}, node, "GET / HTTP/1.1\r\nHost: x\r\nUser-agent: prober\r\nConnection: close\r\n\r\n", "app /"},
		{"another path", []lease.Probe{http}, node, strings.Replace(probe, "?full", "", 1), "handler: GET /healthz HTTP"},
		{"a client", []lease.Probe{http}, node, strings.Replace(probe, "kube-probe", "curl", 1), "handler: GET /healthz?full"},
		{"a client that posts", []lease.Probe{http}, node, "POST /healthz?full HTTP/1.1\r\n\r\nbody", "handler: POST /healthz?full HTTP/1.1\r\n\r\nbody"},
		{"another protocol", []lease.Probe{http}, node, "\x16\x03\x01", "handler: \x16\x03\x01"},
		{"a request without end", []lease.Probe{http}, node, "GET /healthz?full HTTP/1.1\r\nUser-", "handler: GET /healthz?full HTTP/1.1\r\nUser-"},
		{"headers of great length", []lease.Probe{http}, node, "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", headersMost), "handler: GET / HTTP/1.1\r\nX: xx"},
		{"no probes", nil, node, probe, "handler: GET /healthz?full"},
		{"by TCP", []lease.Probe{tcp}, node, "", ""},
		{"by TCP, but with something to say", []lease.Probe{tcp}, node, "hello", "handler: hello"},
		{"silent, from elsewhere", []lease.Probe{tcp}, nil, "", "handler: "},
		{"TLS or gRPC", []lease.Probe{opaque}, node, "GET /any HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "app /any"},
		{"TLS or gRPC, from elsewhere", []lease.Probe{opaque}, nil, "GET /any HTTP/1.1\r\n", "handler: GET /any"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := sorting(t, &Port{Number: appServer(t), Probes: tt.probes, Node: tt.node})
			got := say(t, addr, tt.say)
			if !strings.HasPrefix(got, tt.want) && !strings.HasSuffix(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("answer %q, want %q", got, tt.want)
			}
		})
	}
}

// A server that speaks first is not kept waiting by a probe of another kind than HTTP.
func TestSilentClientReachesTheHandler(t *testing.T) {
	addr := sorting(t, &Port{Number: 1, Probes: []lease.Probe{{Kind: lease.ProbeTCP}}, Node: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if line, err := bufio.NewReader(c).ReadString(' '); err != nil || line != "handler: " {
		t.Errorf("%q, %v", line, err)
	}
}

// A probe of an app that does not listen fails.
func TestDeadAppIsNotWell(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	n, _ := strconv.Atoi(port)
	addr := sorting(t, &Port{Number: uint16(n), Probes: []lease.Probe{{Kind: lease.ProbeHTTP, Path: "/"}}})
	if got := say(t, addr, "GET / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\n\r\n"); got != "reset" {
		t.Errorf("%q", got)
	}
}

// An app that listens on the pod's address only is reached there.
func TestAppOnThePodsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	c, err := Dial(t.Context(), port, netip.MustParseAddr("127.0.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := Dial(t.Context(), port, netip.Addr{}); err == nil {
		t.Error("reached where nobody listens")
	}
}

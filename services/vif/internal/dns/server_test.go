package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/services/vif/internal/farside"
	"berth.dev/tunnel"
	"berth.dev/tunnel/freeport"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nameserver is a real DNS server on loopback that counts what it is asked.
type nameserver struct {
	addr netip.AddrPort
	mu   sync.Mutex
	seen []string
	mute atomic.Bool // swallow everything
	drop atomic.Int32
}

func (n *nameserver) asked(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := 0
	for _, s := range n.seen {
		if strings.EqualFold(s, name) {
			c++
		}
	}
	return c
}

func startNameserver(t *testing.T, records ...string) *nameserver {
	n := &nameserver{}
	zone := map[string][]dns.RR{}
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		k := strings.ToLower(rr.Header().Name)
		zone[k] = append(zone[k], rr)
	}
	l, pc := freeport.Both(t)
	n.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		name := q.Question[0].Name
		n.mu.Lock()
		n.seen = append(n.seen, name)
		n.mu.Unlock()
		if n.mute.Load() || n.drop.Add(-1) >= 0 {
			return
		}
		m := new(dns.Msg)
		m.SetReply(q)
		rrs, ok := zone[strings.ToLower(name)]
		switch {
		case strings.HasPrefix(name, "broken"):
			m.Rcode = dns.RcodeServerFailure
		case !ok:
			m.Rcode = dns.RcodeNameError
			soa, _ := dns.NewRR(". 30 IN SOA a. b. 1 1 1 1 30")
			m.Ns = []dns.RR{soa}
		}
		for _, rr := range rrs {
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m.Truncate(512)
		}
		_ = w.WriteMsg(m)
	})
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return n
}

// lab is a Server between two real name servers, the cluster's behind a tunnel.
type lab struct {
	*Server
	cluster, up *nameserver
	addr        string
	far         *tunnel.Session
}

func big() (out []string) {
	for i := range 60 {
		out = append(out, fmt.Sprintf("big.shop.svc.cluster.local. 5 IN A 10.1.0.%d", i))
	}
	return out
}

// numbered is a record for each number below n, of a format that is given it twice,
// as a name and as the last two bytes of an address.
func numbered(format string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i, i>>8, i&0xff))
	}
	return out
}

func newLab(t *testing.T) *lab {
	cluster := append(big(), numbered("n%d.shop.svc.cluster.local. 5 IN A 10.9.%d.%d", 500)...)
	l := &lab{
		cluster: startNameserver(t, append(cluster,
			"backend.shop.svc.cluster.local. 5 IN A 10.96.0.7",
			"backend.other.svc.cluster.local. 5 IN A 10.96.0.8",
			"pod-0.db.shop.svc.cluster.local. 5 IN A 10.244.0.9",
			"_http._tcp.backend.shop.svc.cluster.local. 5 IN SRV 0 100 80 backend.shop.svc.cluster.local.",
			"7.0.96.10.in-addr.arpa. 5 IN PTR backend.shop.svc.cluster.local.",
			"container.shop.svc.cluster.local. 5 IN AAAA fd00::1",
		)...),
		up: startNameserver(t, append(numbered("n%d.example.com. 5 IN A 172.30.%d.%d", 500), "www.example.com. 60 IN A 192.0.2.1", "example.com. 60 IN A 192.0.2.2", "webserver. 60 IN A 172.18.0.9", "1.2.0.192.in-addr.arpa. 5 IN PTR www.example.com.")...),
	}
	near, far, err := farside.Pair(tunnel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.far = far
	f := &farside.Far{Translate: func(h tunnel.Header) (netip.AddrPort, tunnel.Code) {
		if h.Dst != netip.MustParseAddrPort("10.96.0.10:53") {
			return netip.AddrPort{}, tunnel.CodeRefused
		}
		return l.cluster.addr, 0
	}}
	l.Server = New(near, func() []netip.Addr { return []netip.Addr{l.up.addr.Addr()} }, slog.New(slog.DiscardHandler))
	l.Server.upstream.port = fmt.Sprint(l.up.addr.Port())
	l.SetCluster(testZones, []netip.Addr{netip.MustParseAddr("10.96.0.10")})
	tl, pc := freeport.Both(t)
	l.addr = pc.LocalAddr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.Serve(ctx, far) })
	wg.Go(func() {
		if err := l.Run(ctx, []net.PacketConn{pc}, []net.Listener{tl}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); _ = near.Close(); _ = far.Close(); wg.Wait() })
	return l
}

func (l *lab) query(t *testing.T, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	r, _, err := c.Exchange(m, l.addr)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return r
}

// short is the last answer's data, or the rcode.
func short(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	rr := m.Answer[len(m.Answer)-1]
	return strings.TrimPrefix(rr.String(), rr.Header().String())
}

func TestNames(t *testing.T) {
	l := newLab(t)
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"backend.", dns.TypeA, "10.96.0.7"},
		{"backend.other.", dns.TypeA, "10.96.0.8"},
		{"backend.other.svc.", dns.TypeA, "10.96.0.8"},
		{"backend.shop.svc.cluster.local.", dns.TypeA, "10.96.0.7"},
		{"BackEnd.Shop.svc.Cluster.local.", dns.TypeA, "10.96.0.7"},
		{"backend.", dns.TypeAAAA, "NOERROR"},
		{"pod-0.db.shop.svc.cluster.local.", dns.TypeA, "10.244.0.9"},
		{"_http._tcp.backend.", dns.TypeSRV, "0 100 80 backend.shop.svc.cluster.local."},
		{"_http._tcp.backend.shop.svc.cluster.local.", dns.TypeSRV, "0 100 80 backend.shop.svc.cluster.local."},
		{"7.0.96.10.in-addr.arpa.", dns.TypePTR, "backend.shop.svc.cluster.local."},
		{"8.0.96.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"1.2.0.192.in-addr.arpa.", dns.TypePTR, "www.example.com."},
		{"www.example.com.", dns.TypeA, "192.0.2.1"},
		{"example.com.", dns.TypeA, "192.0.2.2"},
		{"webserver.", dns.TypeA, "172.18.0.9"},
		{"nosuch.", dns.TypeA, "NXDOMAIN"},
		{"nosuch.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"nosuch.example.com.", dns.TypeA, "NXDOMAIN"},
		{"broken.example.com.", dns.TypeA, "SERVFAIL"}, // upstream's own word
		{"localhost.", dns.TypeA, "127.0.0.1"},
		{"big.", dns.TypeA, "10.1.0.59"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := l.query(t, network, tt.name, tt.qtype)
			if network == "udp" && r.Truncated {
				continue // its turn is TCP's
			}
			if got := short(r); got != tt.want {
				t.Errorf("%s %s %s: %s, want %s", network, tt.name, dns.TypeToString[tt.qtype], got, tt.want)
			}
			if r.Question[0].Name != tt.name || (len(r.Answer) > 0 && r.Answer[0].Header().Name != tt.name) {
				t.Errorf("%s: the name's case is lost: %v", tt.name, r)
			}
		}
	}
	for _, name := range []string{"backend.", "backend.other.", "backend.other.svc.", "nosuch.shop.svc.cluster.local.", "backend.shop.svc.cluster.local."} {
		if l.up.asked(name) != 0 {
			t.Errorf("%s was forwarded upstream", name)
		}
	}
	if l.cluster.asked("www.example.com.") != 0 {
		t.Error("www.example.com was asked of the cluster")
	}
	if n := l.cluster.asked("backend.shop.svc.cluster.local."); n > 4 { // A, AAAA, and the TTL may have passed
		t.Errorf("the cluster was asked %d times: nothing is cached", n)
	}
}

func TestTruncated(t *testing.T) {
	l := newLab(t)
	if r := l.query(t, "udp", "big.shop.svc.cluster.local.", dns.TypeA); !r.Truncated {
		t.Error("60 addresses fit into 512 bytes")
	}
	if r := l.query(t, "tcp", "big.shop.svc.cluster.local.", dns.TypeA); len(r.Answer) != 60 {
		t.Errorf("%d addresses by TCP", len(r.Answer))
	}
}

func TestEDNS(t *testing.T) {
	l := newLab(t)
	m := new(dns.Msg)
	m.SetQuestion("big.shop.svc.cluster.local.", dns.TypeA)
	m.SetEdns0(4096, false)
	r, _, err := new(dns.Client).Exchange(m, l.addr)
	if err != nil {
		t.Fatal(err)
	}
	if opt := r.IsEdns0(); opt == nil || opt.UDPSize() != 1232 {
		t.Errorf("OPT %v", opt)
	}
	if len(r.Answer) != 60 || r.Truncated {
		t.Errorf("%d addresses, truncated %v: they fit into 1232 bytes", len(r.Answer), r.Truncated)
	}
	if r := l.query(t, "udp", "backend.", dns.TypeA); r.IsEdns0() != nil {
		t.Error("OPT for a client that sent none")
	}
}

func TestLostQueryIsRepeated(t *testing.T) {
	l := newLab(t)
	l.cluster.drop.Store(1)
	began := time.Now()
	if r := l.query(t, "udp", "backend.shop.svc.cluster.local.", dns.TypeA); short(r) != "10.96.0.7" {
		t.Fatal(r)
	}
	if d := time.Since(began); d > clusterTimeout {
		t.Errorf("took %v", d)
	}
}

func TestOneQueryForMany(t *testing.T) {
	l := newLab(t)
	l.cluster.drop.Store(1) // so that all wait for the second try
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			m := new(dns.Msg)
			m.SetQuestion("backend.", dns.TypeA)
			r, _, err := (&dns.Client{Timeout: 5 * time.Second}).Exchange(m, l.addr)
			if err != nil || short(r) != "10.96.0.7" {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	wg.Wait()
	if n := l.cluster.asked("backend.shop.svc.cluster.local."); n != 2 {
		t.Errorf("the cluster was asked %d times", n)
	}
}

func TestTunnelDown(t *testing.T) {
	l := newLab(t)
	_ = l.far.Close()
	for name, want := range map[string]string{
		"backend.shop.svc.cluster.local.": "SERVFAIL",
		"backend.shop.svc.":               "SERVFAIL",
		"7.0.96.10.in-addr.arpa.":         "SERVFAIL",
		"www.example.com.":                "192.0.2.1",
		"example.com.":                    "192.0.2.2",
		"webserver.":                      "172.18.0.9",
	} {
		began := time.Now()
		if got := short(l.query(t, "udp", name, dns.TypeA)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if d := time.Since(began); d > clusterTimeout+500*time.Millisecond {
			t.Errorf("%s took %v", name, d)
		}
	}
}

func TestClusterSilent(t *testing.T) {
	l := newLab(t)
	l.cluster.mute.Store(true)
	for name, want := range map[string]string{"backend.shop.svc.cluster.local.": "SERVFAIL", "example.com.": "192.0.2.2"} {
		began := time.Now()
		if got := short(l.query(t, "udp", name, dns.TypeA)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if d := time.Since(began); d > clusterTimeout+500*time.Millisecond {
			t.Errorf("%s took %v", name, d)
		}
	}
}

func TestUpstreamSilent(t *testing.T) {
	l := newLab(t)
	l.up.mute.Store(true)
	if got := short(l.query(t, "udp", "nosuch.", dns.TypeA)); got != "NXDOMAIN" {
		t.Errorf("a single label that the cluster does not know: %s", got)
	}
	if got := short(l.query(t, "udp", "www.example.com.", dns.TypeA)); got != "REFUSED" {
		t.Errorf("www.example.com: %s", got)
	}
	if got := short(l.query(t, "udp", "backend.", dns.TypeA)); got != "10.96.0.7" {
		t.Errorf("backend: %s", got)
	}
}

func TestNoUpstream(t *testing.T) {
	s := New(nil, func() []netip.Addr { return nil }, slog.New(slog.DiscardHandler))
	m := new(dns.Msg)
	m.SetQuestion("www.example.com.", dns.TypeA)
	if r := s.resolve(t.Context(), m); r.Rcode != dns.RcodeRefused {
		t.Errorf("got %s", dns.RcodeToString[r.Rcode])
	}
	if _, err := s.upstream.exchange(t.Context(), m); !errors.Is(err, errNoServer) {
		t.Error(err)
	}
	s.cancel()
}

func BenchmarkCached(b *testing.B) {
	s := New(nil, func() []netip.Addr { return nil }, slog.New(slog.DiscardHandler))
	defer s.cancel()
	s.SetCluster(testZones, nil)
	rr, _ := dns.NewRR("backend.shop.svc.cluster.local. 30 IN A 10.96.0.7")
	m := new(dns.Msg)
	m.Response, m.Answer = true, []dns.RR{rr}
	s.cache.put(key{"backend.shop.svc.cluster.local.", dns.TypeA, false, true}, m)
	q := new(dns.Msg)
	q.SetQuestion("backend.shop.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		if r := s.resolve(b.Context(), q); r.Rcode != dns.RcodeSuccess {
			b.Fatal(r)
		}
	}
}

package connection

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/files"
	"berth.dev/services/vif/internal/farside"
	"berth.dev/services/vif/internal/nstest"
	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/services/vif/internal/route"
	"berth.dev/services/vif/internal/tun"
	"berth.dev/services/vif/internal/tunnelclient"
	"berth.dev/tunnel"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const (
	id        = "c1"
	iface     = "berth-conn"
	original  = "nameserver 127.0.0.11\nsearch lan\noptions ndots:0\n"
	apiServer = "10.96.0.1"
)

const kubeconfig = `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":"https://` + apiServer + `:6443"}}],
"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{"token":"t"}}]}`

// manager is the far side: a cluster whose DNS is real and whose services are
// on loopback.
type manager struct {
	t       *testing.T
	far     farside.Far
	welcome tunnel.Welcome
	dns     netip.AddrPort

	mu      sync.Mutex
	refuse  error
	session *tunnel.Session // the manager's end
	wg      sync.WaitGroup
	ctx     context.Context
}

func newManager(t *testing.T) *manager {
	m := &manager{t: t, ctx: context.Background()}
	m.welcome = tunnel.Welcome{
		ClusterDomain: "cluster.local", DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/24"), netip.MustParsePrefix("10.244.0.0/16")},
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.dns = netip.MustParseAddrPort(pc.LocalAddr().String())
	started := make(chan struct{})
	srv := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		switch {
		case q.Question[0].Name == "backend.shop.svc.cluster.local." && q.Question[0].Qtype == dns.TypeA:
			rr, _ := dns.NewRR("backend.shop.svc.cluster.local. 5 IN A 10.96.0.7")
			r.Answer = []dns.RR{rr}
		case q.Question[0].Name == "7.0.96.10.in-addr.arpa.":
			rr, _ := dns.NewRR("7.0.96.10.in-addr.arpa. 5 IN PTR backend.shop.svc.cluster.local.")
			r.Answer = []dns.RR{rr}
		default:
			r.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(r)
	})}
	m.wg.Go(func() { _ = srv.ActivateAndServe() })
	<-started
	m.far.Translate = func(h tunnel.Header) (netip.AddrPort, tunnel.Code) {
		if h.Dst == netip.MustParseAddrPort("10.96.0.10:53") {
			return m.dns, 0
		}
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.Dst.Port()), 0
	}
	t.Cleanup(func() { _ = srv.Shutdown(); m.wg.Wait() })
	return m
}

func (m *manager) Dial(context.Context, tunnelclient.Target) (tunnelclient.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return tunnelclient.Result{}, m.refuse
	}
	near, far, err := farside.Pair(tunnel.Config{})
	if err != nil {
		return tunnelclient.Result{}, err
	}
	m.session = far
	m.wg.Go(func() { m.far.Serve(m.ctx, far); _ = far.Close() })
	w := m.welcome
	return tunnelclient.Result{Session: near, Welcome: &w, Transport: "pods-proxy"}, nil
}

func (m *manager) Addresses(context.Context, tunnelclient.Target) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr(apiServer)}, nil
}

func (m *manager) current() *tunnel.Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

func (m *manager) setRefusal(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = err
}

func runConnection(m *manager, resolv string) bustest.Run {
	return func(ctx context.Context, cfg bus.Config) error {
		conn, err := bus.Connect(ctx, cfg)
		if err != nil {
			return err
		}
		defer conn.Close()
		f, err := resolvconf.Open(resolv)
		if err != nil {
			return err
		}
		key, err := tunnel.NewIdentity()
		if err != nil {
			return err
		}
		return New(Config{
			ID: id, Version: "0.1.0", Identity: key, Bus: conn, Dialer: m, Resolver: resolvconf.Container{File: f},
			Interface: iface, MTU: 65520, Logger: slog.New(slog.DiscardHandler),
		}).Run(ctx)
	}
}

// rig is a running connection with its manager and bus.
type rig struct {
	*manager
	t      *testing.T
	conn   *bus.Conn
	facts  *bus.Tail
	resolv string
	stop   func() // and wait
}

func newRig(t *testing.T) *rig {
	nstest.Require(t)
	r := &rig{manager: newManager(t), t: t, resolv: filepath.Join(t.TempDir(), "resolv.conf")}
	if err := os.WriteFile(r.resolv, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	b := bustest.Start(t)
	r.conn = b.Tester()
	facts, err := r.conn.TailFacts(t.Context(), time.Time{}, subject.FactsOf(subject.Connection, id))
	if err != nil {
		t.Fatal(err)
	}
	r.facts = facts
	t.Cleanup(facts.Stop)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runConnection(r.manager, r.resolv)(ctx, b.VIF(id)) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(bustest.Patience):
			t.Error("not ended")
		}
	})
	t.Cleanup(r.stop)
	next[event.VIFStarted](r)
	return r
}

// next is the next fact, which must be a T.
func next[T event.Data](r *rig) T {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), bustest.Patience)
	defer cancel()
	env, err := r.facts.Next(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	v, ok := event.Decode[T](env)
	if !ok {
		r.t.Fatalf("got %s %s, want %s", env.Type, env.Data, event.TypeOf(v))
	}
	return v
}

var order1 = command.OpenTunnel{
	Access: command.Access{Kubeconfig: json.RawMessage(kubeconfig)}, ConnectionName: "c", Namespace: "shop",
	ManagerNamespace: "berth", Pin: "pin", AlsoProxy: []string{"10.200.0.0/24"}, NeverProxy: []string{"10.244.128.0/17"},
}

func (r *rig) open() command.Accepted {
	r.t.Helper()
	rep, err := bus.Call(r.t.Context(), r.conn, command.TunnelOpen, id, order1)
	if err != nil {
		r.t.Fatal(err)
	}
	return rep
}

func (r *rig) up() (event.InterfaceReady, event.DNSReady) {
	r.t.Helper()
	r.open()
	if o := next[event.TunnelOpened](r); o.Transport != "pods-proxy" {
		r.t.Errorf("%+v", o)
	}
	return next[event.InterfaceReady](r), next[event.DNSReady](r)
}

func echo(t *testing.T) uint16 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

func talk(t *testing.T, address string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, bustest.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(bustest.Patience))
	_, _ = c.Write([]byte("hello"))
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}

func linkIndex(t *testing.T) int {
	t.Helper()
	l, err := netlink.LinkByName(iface)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

func TestLife(t *testing.T) {
	r := newRig(t)
	ready, names := r.up()

	if slices.Contains(ready.Subnets, "10.96.0.0/24") || !slices.Contains(ready.Subnets, "10.96.0.128/25") || !slices.Contains(ready.Subnets, "10.96.0.0/32") {
		t.Errorf("%s is not cut out of %v", apiServer, ready.Subnets)
	}
	if !slices.Contains(ready.Subnets, "10.244.0.0/17") || !slices.Contains(ready.Subnets, "10.200.0.0/24") {
		t.Errorf("subnets %v", ready.Subnets)
	}
	if want := []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"}; !slices.Equal(names.Search, want) {
		t.Errorf("search %v", names.Search)
	}
	if data, _ := os.ReadFile(r.resolv); !strings.Contains(string(data), "\nnameserver "+names.Server+"\n") {
		t.Errorf("resolv.conf:\n%s", data)
	}

	m := new(dns.Msg)
	m.SetQuestion("backend.", dns.TypeA)
	for _, network := range []string{"udp", "tcp"} {
		ans, _, err := (&dns.Client{Net: network}).Exchange(m, net.JoinHostPort(names.Server, "53"))
		if err != nil || len(ans.Answer) != 2 {
			t.Fatalf("%s: %v, %v", network, ans, err)
		}
	}
	port := echo(t)
	service := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.7"), port).String()
	talk(t, service)

	if rep := r.open(); !rep.Already {
		t.Error("a second TunnelOpen is no repetition")
	}

	t.Run("state", func(t *testing.T) {
		st, err := bus.Call(t.Context(), r.conn, command.VIFState, id, command.None{})
		if err != nil || !st.TunnelUp || st.Transport != "pods-proxy" || !slices.Equal(st.Subnets, ready.Subnets) {
			t.Errorf("%+v, %v", st, err)
		}
	})

	t.Run("figures", func(t *testing.T) {
		f, err := bus.Call(t.Context(), r.conn, command.VIFFigures, id, command.None{})
		if err != nil || len(f.Processes) == 0 || f.Processes[0].Process != "vif" || f.Processes[0].Goroutines == 0 || f.Processes[0].Files == 0 || f.Processes[0].MemoryBytes == 0 {
			t.Errorf("%+v, %v", f, err)
		}
	})

	t.Run("engaged traffic", func(t *testing.T) {
		h := tunnel.Header{Kind: tunnel.KindTCP, Engagement: "e1", Dst: netip.AddrPortFrom(netip.Addr{}, 8080)}
		if _, err := r.current().Open(t.Context(), h); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("before engage: %v", err)
		}
		req := command.EngageHandler{Engagement: "e1", Ports: []event.Port{{Container: 8080, Handler: port, Protocol: "TCP"}}}
		if _, err := bus.Call(t.Context(), r.conn, command.Engage, id, req); err != nil {
			t.Fatal(err)
		}
		st, err := r.current().Open(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = st.Write([]byte("hello"))
		_ = st.CloseWrite()
		if b, err := io.ReadAll(st); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := bus.Call(t.Context(), r.conn, command.Disengage, id, command.EngagementRef{Engagement: "e1"}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.current().Open(t.Context(), h); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("after disengage: %v", err)
		}
	})

	t.Run("the volume plugin comes in while an engagement lets it", func(t *testing.T) {
		key, _ := tunnel.NewIdentity()
		st, err := bus.Call(t.Context(), r.conn, command.VIFState, id, command.None{})
		if err != nil {
			t.Fatal(err)
		}
		dial := func() (*tunnel.Session, error) {
			c, err := net.Dial("tcp", st.Door)
			if err != nil {
				t.Fatal(err)
			}
			s, _, err := tunnel.Dial(t.Context(), c, key, tunnel.Pin(st.DoorPin), tunnel.Hello{Role: files.RoleVolumes}, tunnel.Config{})
			return s, err
		}
		if _, err := dial(); err == nil {
			t.Error("let in before engage")
		}
		req := command.EngageHandler{Engagement: "e2", Volumes: &command.UseVolumes{Token: "secret", Pin: string(key.Pin())}}
		if _, err := bus.Call(t.Context(), r.conn, command.Engage, id, req); err != nil {
			t.Fatal(err)
		}
		s, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		token := func() (string, error) {
			a, err := tunnel.Call[files.TokenRequest, files.TokenAnswer](t.Context(), s, files.MethodToken, files.TokenRequest{Engagement: "e2"})
			return a.Token, err
		}
		if got, err := token(); got != "secret" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if _, err := tunnel.Call[files.LostRequest, files.LostAnswer](t.Context(), s, files.MethodLost, files.LostRequest{Engagement: "e2", Cause: "was killed"}); err != nil {
			t.Error(err)
		}
		if l := next[event.VolumesLost](r); l != (event.VolumesLost{Engagement: "e2", Cause: "was killed"}) {
			t.Errorf("%+v", l)
		}
		if _, err := bus.Call(t.Context(), r.conn, command.Disengage, id, command.EngagementRef{Engagement: "e2"}); err != nil {
			t.Fatal(err)
		}
		if got, err := token(); got != "" || err == nil {
			t.Errorf("after disengage: %q, %v", got, err)
		}
	})

	t.Run("the tunnel is lost and comes back", func(t *testing.T) {
		before := linkIndex(t)
		r.setRefusal(fault.New(fault.PermissionDenied, "", "not now"))
		_ = r.current().Close()
		if l := next[event.TunnelLost](r); l.Error.Stage != string(event.StageTunnel) {
			t.Errorf("%+v", l)
		}
		st, err := bus.Call(t.Context(), r.conn, command.VIFState, id, command.None{})
		if err != nil || st.TunnelUp {
			t.Errorf("%+v, %v", st, err)
		}
		r.setRefusal(nil)
		if _, err := bus.Call(t.Context(), r.conn, command.Credentials, id, order1.Access); err != nil {
			t.Error(err)
		}
		next[event.TunnelOpened](r)
		talk(t, service)
		if linkIndex(t) != before {
			t.Error("the TUN is another one")
		}
	})

	r.stop()
	if _, err := netlink.LinkByName(iface); err == nil {
		t.Error("the TUN is still there")
	}
	if data, _ := os.ReadFile(r.resolv); string(data) != original {
		t.Errorf("resolv.conf is not restored:\n%s", data)
	}
}

func TestTunnelFails(t *testing.T) {
	r := newRig(t)
	r.setRefusal(fault.New(fault.PermissionDenied, "ctl doctor", "may not"))
	r.open()
	if f := next[event.VIFFailed](r); f.Error.Stage != string(event.StageTunnel) || f.Error.Code != fault.PermissionDenied || f.Error.Hint == "" {
		t.Errorf("%+v", f)
	}
	r.setRefusal(nil)
	r.up()
}

func TestOverlap(t *testing.T) {
	r := newRig(t)
	other, err := tun.Create("eth-test", 1500)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	link, _ := netlink.LinkByName("eth-test")
	addr, _ := netlink.ParseAddr("10.96.0.3/24")
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if _, err := route.Up("eth-test"); err != nil {
		t.Fatal(err)
	}
	r.open()
	next[event.TunnelOpened](r)
	f := next[event.VIFFailed](r)
	if f.Error.Stage != string(event.StageVIF) || !strings.Contains(f.Error.Message, "eth-test") || !strings.Contains(f.Error.Message, "--vnat 10.96.0.0/24") {
		t.Errorf("%+v", f)
	}
	if _, err := netlink.LinkByName(iface); err == nil {
		t.Error("the TUN is still there")
	}
}

func TestDNSFails(t *testing.T) {
	r := newRig(t)
	r.welcome.DNS = []netip.Addr{netip.MustParseAddr("10.96.0.11")} // nobody there
	r.open()
	next[event.TunnelOpened](r)
	next[event.InterfaceReady](r)
	f := next[event.VIFFailed](r)
	if f.Error.Stage != string(event.StageDNS) || !strings.Contains(f.Error.Message, "10.96.0.11") {
		t.Errorf("%+v", f)
	}
	if data, _ := os.ReadFile(r.resolv); string(data) != original {
		t.Error("resolv.conf points at a server that is gone")
	}
	r.mu.Lock()
	r.welcome.DNS = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	r.mu.Unlock()
	r.up()
}

func TestConformance(t *testing.T) {
	nstest.Require(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte(original), 0o644); err != nil {
		t.Fatal(err)
	}
	bad := order1
	bad.Pin = ""
	plugin := order1
	plugin.Access.Kubeconfig = json.RawMessage(`{"kind":"Config"}`)
	cidr := order1
	cidr.NeverProxy = []string{"10.0.0.0/33"}
	bustest.Conformance(t, runConnection(newManager(t), resolv), bustest.Spec{
		Service: subject.VIF, Connection: id,
		Commands: []bustest.Command{
			{Verb: command.TunnelOpen.Verb, Valid: order1, Bad: []any{bad, plugin, cidr}},
			{Verb: command.Credentials.Verb, Valid: order1.Access, Bad: []any{plugin.Access}},
			{Verb: command.VIFState.Verb, Valid: command.None{}},
			{Verb: command.Engage.Verb, Valid: command.EngageHandler{Engagement: "e1", Ports: []event.Port{{Container: 80, Protocol: "TCP"}}},
				Bad: []any{command.EngageHandler{Engagement: "E 1"}, command.EngageHandler{Engagement: "e1", Address: "nowhere"}, command.EngageHandler{Engagement: "e1", Volumes: &command.UseVolumes{Pin: "p"}}, command.EngageHandler{Engagement: "e1", Ports: []event.Port{{Container: 80, Protocol: "SCTP"}}}}},
			{Verb: command.Disengage.Verb, Valid: command.EngagementRef{Engagement: "e1"}, Bad: []any{command.EngagementRef{}}},
		},
		Gone: func(t *testing.T) {
			if _, err := netlink.LinkByName(iface); err == nil {
				t.Error("the TUN is still there")
			}
			if data, _ := os.ReadFile(resolv); string(data) != original {
				t.Error("resolv.conf is not restored")
			}
		},
	})
}

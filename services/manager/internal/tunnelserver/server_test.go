package tunnelserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/discovery"
	"berth.dev/services/manager/internal/entrance"
	"berth.dev/services/manager/internal/hub"
	"berth.dev/tunnel"

	"k8s.io/client-go/kubernetes/fake"
)

// cluster has one connection, "c", and engagements of it: "e", whose agents show
// the token "pod" or, in another pod, "pod2", and "n", which has no volumes; "x"
// is another connection's.
type cluster struct{ pins []string }

func (c *cluster) Connection(_ context.Context, id string) (lease.ConnectionSpec, error) {
	if id != "c" {
		return lease.ConnectionSpec{}, &tunnel.RPCError{Code: "not_found", Message: "no connection"}
	}
	return lease.ConnectionSpec{Pins: c.pins}, nil
}

func (c *cluster) Engagement(id string) (lease.EngagementSpec, bool) {
	switch id {
	case "e":
		return lease.EngagementSpec{ID: id, Connection: "c", Kind: lease.Ingest, TokenHash: "hash"}, true
	case "n":
		return lease.EngagementSpec{ID: id, Connection: "c"}, true
	case "x":
		return lease.EngagementSpec{ID: id, Connection: "d", TokenHash: "hash"}, true
	}
	return lease.EngagementSpec{}, false
}

func (c *cluster) PodOf(_ context.Context, token string) (name, uid, engagement string, err error) {
	switch token {
	case "pod2":
		return "p2", "u2", "e", nil
	case "pod":
	default:
		return "", "", "", &tunnel.RPCError{Code: "permission_denied", Message: "bad token"}
	}
	return "p", "u", "e", nil
}

// Beside knows the agent "a" in pod "p" by its proof.
func (c *cluster) Beside(_ context.Context, id lease.AgentID, token string, from netip.Addr) (string, error) {
	if id.Name != "a" || token != "proof" || !from.IsLoopback() {
		return "", &tunnel.RPCError{Code: "permission_denied", Message: "bad proof"}
	}
	return "u", nil
}

type bench struct {
	t      *testing.T
	addr   string
	id     *tunnel.Identity // the manager's
	client *tunnel.Identity
	cancel context.CancelFunc
	ended  chan struct{}
	srv    *Server
}

// start serves over real TCP. The ports of loopback stand for the cluster, so
// the test's server takes them for its own cluster's.
func start(t *testing.T) *bench {
	t.Helper()
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	client, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	srv := &Server{Entrances: entrance.New(), Identity: id, Version: "1", InstallationID: "i", Resolver: discovery.Resolver{Domain: "cluster.local"}, Log: log,
		Cluster: &cluster{pins: []string{string(client.Pin())}}, Hub: hub.New(func(hub.Change) {}),
		Discovery: &discovery.Discovery{Client: fake.NewClientset(), PodIPs: func() []netip.Addr { return nil }, Log: log}}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: srv, BaseContext: func(net.Listener) context.Context { return ctx }}
	b := &bench{t: t, addr: l.Addr().String(), id: id, client: client, cancel: cancel, ended: make(chan struct{}), srv: srv}
	go func() {
		_ = h.Serve(l)
		srv.Wait()
		close(b.ended)
	}()
	context.AfterFunc(ctx, func() { h.Close() })
	t.Cleanup(b.stop)
	return b
}

func (b *bench) stop() {
	b.cancel()
	select {
	case <-b.ended:
	case <-time.After(5 * time.Second):
		b.t.Error("sessions outlive the server by five seconds")
	}
}

func (b *bench) dial(key *tunnel.Identity, hello tunnel.Hello) (*tunnel.Session, error) {
	conn, err := net.Dial("tcp", b.addr)
	if err != nil {
		return nil, err
	}
	up, err := tunnel.RequestUpgrade(b.t.Context(), conn, b.addr, tunnel.Path, nil)
	if err != nil {
		return nil, err
	}
	s, _, err := tunnel.Dial(b.t.Context(), up, key, b.id.Pin(), hello, tunnel.Config{})
	if err == nil {
		b.t.Cleanup(func() { s.Close() })
	}
	return s, err
}

func (b *bench) mustDial(key *tunnel.Identity, hello tunnel.Hello) *tunnel.Session {
	b.t.Helper()
	s, err := b.dial(key, hello)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func TestWhoMayCome(t *testing.T) {
	b := start(t)
	stranger, _ := tunnel.NewIdentity()
	for _, tt := range []struct {
		name  string
		key   *tunnel.Identity
		hello tunnel.Hello
		code  string
	}{
		{"a key that is not the connection's", stranger, tunnel.Hello{Role: "vif", ID: "c"}, "permission_denied"},
		{"no such connection", b.client, tunnel.Hello{Role: "vif", ID: "d"}, "not_found"},
		{"a wrong token", stranger, tunnel.Hello{Role: "agent", Token: "x"}, "permission_denied"},
		{"an unknown role", b.client, tunnel.Hello{Role: "root", ID: "c"}, "invalid_argument"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := b.dial(tt.key, tt.hello)
			var e *tunnel.RPCError
			if !errors.As(err, &e) || e.Code != tt.code {
				t.Errorf("%v, want code %s", err, tt.code)
			}
		})
	}
	b.mustDial(b.client, tunnel.Hello{Role: "vif", ID: "c"})
	b.mustDial(stranger, tunnel.Hello{Role: "agent", Token: "pod"})
}

func TestAllowedDestinations(t *testing.T) {
	s := &Server{Entrances: entrance.New(), Resolver: discovery.Resolver{Servers: []netip.Addr{netip.MustParseAddr("169.254.20.10")}}}
	for addr, want := range map[string]bool{
		"10.96.0.10": true, "fd00::1": true, "8.8.8.8": true, "169.254.20.10": true,
		"127.0.0.1": false, "::1": false, "169.254.169.254": false, "fe80::1": false, "0.0.0.0": false, "224.0.0.1": false, "::ffff:127.0.0.1": false,
	} {
		if got := s.allowed(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s allowed: %v", addr, got)
		}
	}
}

// An agent's flow arrives at the newest vif session; what that refuses is
// refused; without one it is unreachable.
func TestAgentFlowsGoToTheClient(t *testing.T) {
	b := start(t)
	agent := b.mustDial(b.client, tunnel.Hello{Role: "agent", Token: "pod"})
	open := func(port uint16) (*tunnel.Stream, error) {
		return agent.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Engagement: "e", Dst: netip.AddrPortFrom(netip.Addr{}, port)})
	}
	if _, err := open(80); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Fatalf("without a client: %v", err)
	}
	for round := range 2 { // the second session is newer
		vif := b.mustDial(b.client, tunnel.Hello{Role: "vif", ID: "c"})
		go func() {
			for {
				r, err := vif.Accept(context.Background())
				if err != nil {
					return
				}
				if r.Header.Dst.Port() != 80 {
					r.Refuse(tunnel.CodeRefused, "")
					continue
				}
				if s, err := r.Accept(); err == nil {
					fmt.Fprintf(s, "round %d\n", round)
					s.Close()
				}
			}
		}()
		// The server registers a session after the client has been welcomed.
		for b.srv.Hub.VIF("c") == nil || round == 1 && len(b.srv.Hub.Connections()) != 1 {
			time.Sleep(time.Millisecond)
		}
		var line string
		for deadline := time.Now().Add(5 * time.Second); line != fmt.Sprintf("round %d\n", round); {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: got %q", round, line)
			}
			s, err := open(80)
			if err != nil {
				t.Fatal(err)
			}
			line, _ = bufio.NewReader(s).ReadString('\n')
			s.Close()
		}
		if _, err := open(81); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("refused by the client: %v", err)
		}
	}
	if _, err := agent.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Engagement: "other", Dst: netip.AddrPortFrom(netip.Addr{}, 80)}); !errors.Is(err, syscall.EACCES) {
		t.Errorf("another engagement's flow: %v", err)
	}
}

func TestEnvironmentIsTheCallersOwn(t *testing.T) {
	b := start(t)
	vif := b.mustDial(b.client, tunnel.Hello{Role: "connector", ID: "c"})
	ask := func(e string) (lease.Environment, error) {
		return tunnel.Call[lease.EnvironmentRequest, lease.Environment](t.Context(), vif, lease.MethodEnvironment, lease.EnvironmentRequest{Engagement: e})
	}
	var rpc *tunnel.RPCError
	if _, err := ask("other"); !errors.As(err, &rpc) || rpc.Code != "not_found" {
		t.Errorf("another's engagement: %v", err)
	}
	if _, err := ask("e"); !errors.As(err, &rpc) || rpc.Code != "unavailable" {
		t.Errorf("before an agent has come: %v", err)
	}
	agent := b.mustDial(b.client, tunnel.Hello{Role: "agent", Token: "pod"})
	go func() {
		var reg tunnel.Registry
		tunnel.Handle(&reg, lease.MethodAgentEnv, func(context.Context, lease.EnvironmentRequest) (lease.Environment, error) {
			return lease.Environment{Env: [][]byte{[]byte("A=\xff")}, Mounts: []string{"/m"}}, nil
		})
		for {
			r, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			go tunnel.ServeRPC(context.Background(), r, &reg)
		}
	}()
	for len(b.srv.Hub.Agents("e")) == 0 {
		time.Sleep(time.Millisecond)
	}
	env, err := ask("e")
	if err != nil || len(env.Env) != 1 || string(env.Env[0]) != "A=\xff" || env.Mounts[0] != "/m" {
		t.Errorf("%+v, %v", env, err)
	}
}

// A client learns what the manager holds and its own agents, nobody else's.
func TestFigures(t *testing.T) {
	b := start(t)
	agent := b.mustDial(b.client, tunnel.Hello{Role: "agent", Token: "pod"})
	go func() {
		var reg tunnel.Registry
		tunnel.Handle(&reg, lease.MethodFigures, func(context.Context, struct{}) ([]lease.Figures, error) {
			return []lease.Figures{{Process: "agent", Goroutines: 7}}, nil
		})
		for {
			r, err := agent.Accept(context.Background())
			if err != nil {
				return
			}
			go tunnel.ServeRPC(context.Background(), r, &reg)
		}
	}()
	for len(b.srv.Hub.Agents("e")) == 0 {
		time.Sleep(time.Millisecond)
	}
	ask := func(connection string) []lease.Figures { return b.srv.figures(t.Context(), connection) }
	got := ask("c")
	if len(got) != 2 || got[0].Process != "manager" || got[0].Goroutines == 0 || got[0].Files == 0 || got[0].Memory == 0 || !strings.HasPrefix(got[1].Process, "agent ") || got[1].Goroutines != 7 {
		t.Errorf("%+v", got)
	}
	if got := ask("another"); len(got) != 1 {
		t.Errorf("another's: %+v", got)
	}
}

// A ping is answered, not refused: connector sends one every few seconds.
func TestPing(t *testing.T) {
	b := start(t)
	s := b.mustDial(b.client, tunnel.Hello{Role: "connector", ID: "c"})
	if _, err := tunnel.Call[struct{}, struct{}](t.Context(), s, lease.MethodPing, struct{}{}); err != nil {
		t.Error(err)
	}
}

// The server ends soon although flows are open and silent, on both sides.
func TestEndsWithOpenFlows(t *testing.T) {
	b := start(t)
	vif := b.mustDial(b.client, tunnel.Hello{Role: "vif", ID: "c"})
	go func() {
		for {
			r, err := vif.Accept(context.Background())
			if err != nil {
				return
			}
			if s, err := r.Accept(); err == nil {
				t.Cleanup(func() { s.Close() })
			}
		}
	}()
	for b.srv.Hub.VIF("c") == nil {
		time.Sleep(time.Millisecond)
	}
	agent := b.mustDial(b.client, tunnel.Hello{Role: "agent", Token: "pod"})
	for _, k := range []tunnel.Kind{tunnel.KindTCP, tunnel.KindUDP} {
		if _, err := agent.Open(t.Context(), tunnel.Header{Kind: k, Engagement: "e", Dst: netip.AddrPortFrom(netip.Addr{}, 80)}); err != nil {
			t.Fatal(err)
		}
	}
	udp, err := vif.Open(t.Context(), tunnel.Header{Kind: tunnel.KindUDP, Dst: netip.MustParseAddrPort("10.255.255.254:9")})
	if err != nil {
		t.Skipf("no route for a datagram: %v", err)
	}
	_ = udp
	began := time.Now()
	b.stop()
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if _, err := io.ReadAll(udp); err == nil {
		t.Error("a flow ended in good order although the server went away")
	}
}

// A client's files come from an agent of its own engagement, the same one for as
// long as it is there, which is told whose token to accept.
func TestFilesComeFromOneAgent(t *testing.T) {
	b := start(t)
	vif := b.mustDial(b.client, tunnel.Hello{Role: "vif", ID: "c"})
	open := func(engagement string) (*tunnel.Stream, error) {
		return vif.Open(t.Context(), tunnel.Header{Kind: tunnel.KindFiles, Engagement: engagement, Method: `{"tokenHash":"mine"}`})
	}
	for engagement, want := range map[string]error{
		"e": syscall.EHOSTUNREACH, "n": syscall.EACCES, "x": syscall.ENOENT, "none": syscall.ENOENT,
	} {
		if _, err := open(engagement); !errors.Is(err, want) {
			t.Errorf("engagement %s: %v, want %v", engagement, err, want)
		}
	}
	agent := func(token string) *tunnel.Session {
		key, _ := tunnel.NewIdentity()
		s := b.mustDial(key, tunnel.Hello{Role: "agent", Token: token})
		go func() {
			for {
				r, err := s.Accept(context.Background())
				if err != nil {
					return
				}
				if r.Header.Kind != tunnel.KindFiles {
					r.Refuse(tunnel.CodeDenied, "")
				} else if st, err := r.Accept(); err == nil {
					fmt.Fprintf(st, "%s %s %s", token, r.Header.Engagement, r.Header.Method)
					st.CloseWrite()
				}
			}
		}()
		return s
	}
	from := func(want string) {
		t.Helper()
		var got string
		for deadline := time.Now().Add(5 * time.Second); got != want+` e {"tokenHash":"hash","readOnly":true}`; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("want %s, got %q", want, got)
			}
			if s, err := open("e"); err == nil {
				all, _ := io.ReadAll(s)
				got = string(all)
				s.Close()
			}
		}
	}
	second := agent("pod2")
	from("pod2")
	agent("pod")
	for len(b.srv.Hub.Agents("e")) != 2 {
		time.Sleep(time.Millisecond)
	}
	from("pod2") // although the other one's name comes first
	second.Close()
	from("pod")
}

// An agent opens no files.
func TestAgentsOpenNoFiles(t *testing.T) {
	b := start(t)
	agent := b.mustDial(b.client, tunnel.Hello{Role: "agent", Token: "pod"})
	if _, err := agent.Open(t.Context(), tunnel.Header{Kind: tunnel.KindFiles, Engagement: "e"}); !errors.Is(err, syscall.EACCES) {
		t.Errorf("%v, want denied", err)
	}
}

// An agent beside a container opens flows of what it serves, to whose it is.
func TestFlowsOfAnAgentBeside(t *testing.T) {
	b := start(t)
	id := lease.Marshal(lease.AgentID{Namespace: "n", Pod: "p", Name: "a", Container: "app"})
	for hello, code := range map[tunnel.Hello]string{
		{Role: lease.RoleBeside, ID: id, Token: "x"}:       "permission_denied",
		{Role: lease.RoleBeside, ID: "{", Token: "proof"}:  "invalid_argument",
		{Role: lease.RoleBeside, ID: "{}", Token: "proof"}: "permission_denied",
	} {
		var e *tunnel.RPCError
		if _, err := b.dial(b.client, hello); !errors.As(err, &e) || e.Code != code {
			t.Errorf("%+v: %v, want %s", hello, err, code)
		}
	}
	agent := b.mustDial(b.client, tunnel.Hello{Role: lease.RoleBeside, ID: id, Token: "proof"})
	vif := b.mustDial(b.client, tunnel.Hello{Role: "vif", ID: "c"})
	go func() {
		for {
			r, err := vif.Accept(context.Background())
			if err != nil {
				return
			}
			if s, err := r.Accept(); err == nil {
				s.Close()
			}
		}
	}()
	for len(b.srv.Hub.Beside()["u"]) == 0 || b.srv.Hub.VIF("c") == nil {
		time.Sleep(time.Millisecond)
	}
	open := func(e string) error {
		s, err := agent.Open(t.Context(), tunnel.Header{Kind: tunnel.KindTCP, Engagement: e, Dst: netip.AddrPortFrom(netip.Addr{}, 80)})
		if err == nil {
			s.Close()
		}
		return err
	}
	if err := open("e"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("of what it does not serve: %v", err)
	}
	b.srv.Hub.Beside()["u"][0].Assign(map[string]string{"e": "c", "x": "gone"})
	if err := open("e"); err != nil {
		t.Error(err)
	}
	if err := open("x"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("of a client that is not there: %v", err)
	}
	if err := open(""); !errors.Is(err, syscall.EACCES) {
		t.Errorf("of no engagement: %v", err)
	}
}

// An agent's flows go on to the client in the order in which they came.
func TestOrder(t *testing.T) {
	b := start(t)
	agent := b.mustDial(b.client, tunnel.Hello{Role: "agent", Token: "pod"})
	vif := b.mustDial(b.client, tunnel.Hello{Role: "vif", ID: "c"})
	for b.srv.Hub.VIF("c") == nil { // registered after the client has been welcomed
		time.Sleep(time.Millisecond)
	}
	for i := range 200 {
		if _, err := agent.Begin(tunnel.Header{Kind: tunnel.KindTCP, Engagement: "e", Dst: netip.AddrPortFrom(netip.Addr{}, uint16(1000+i))}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		r, err := vif.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Header.Dst.Port(); got != uint16(1000+i) {
			t.Errorf("flow %d is number %d", got-1000, i)
		}
		r.Refuse(tunnel.CodeRefused, "")
	}
}

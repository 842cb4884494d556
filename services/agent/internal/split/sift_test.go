package split

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/lease"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// heard is a wiretap's handler that keeps what it is asked.
type heard struct {
	mu  sync.Mutex
	got []string
}

func (h *heard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	what := fmt.Sprintf("%s %s %s %s by %s", r.Method, r.RequestURI, r.Header.Get("X-Dev"), b, r.Proto)
	if len(r.Trailer) > 0 {
		what += " trailer " + r.Trailer.Get("X-Sum")
	}
	if err != nil {
		what += " " + err.Error()
	}
	h.mu.Lock()
	h.got = append(h.got, what)
	h.mu.Unlock()
	w.WriteHeader(http.StatusTeapot) // which nobody wants
}

// await waits until it has heard want, and nothing else, in any order.
func (h *heard) await(t *testing.T, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		h.mu.Lock()
		got = slices.Sorted(slices.Values(h.got))
		h.mu.Unlock()
		if len(got) >= len(want) {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("heard %.2000q, want %.2000q", got, want)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = nil
}

func (r *rig) tap(t testing.TB, routes []Route, taps ...Route) {
	t.Helper()
	if errs := r.Set(routes, taps, nil, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
}

// Wiretaps with filters have the requests that these match, each whole, of one
// connection with others too; beside one another, one without a filter, and an
// intercept. Who answers is who would without them.
func TestTapsByFilter(t *testing.T) {
	var app []http.Header
	var mu sync.Mutex
	r := newRig(t, server(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		app = append(app, q.Header)
		mu.Unlock()
		named("app").ServeHTTP(w, q)
	})))
	alice, api, whole := &heard{}, &heard{}, &sink{}
	r.handler("tap-alice", server(t, alice))
	r.handler("tap-api", server(t, api))
	r.handler("tap-whole", whole.listen(t))
	r.handler("alice", server(t, named("alice")))
	r.handler("rest", server(t, named("rest")))
	for name, routes := range map[string][]Route{"alone": nil, "beside a filter": {route("alice", "alice")}, "beside an intercept": {route("rest")}} {
		for proto, c := range map[string]*http.Client{"HTTP/1.1": client1(), "HTTP/2.0": client2()} {
			t.Run(name+" by "+proto, func(t *testing.T) {
				taps := []Route{route("tap-alice", "alice"), route("tap-api", "/api")}
				if proto == "HTTP/1.1" {
					taps = append(taps, route("tap-whole"))
				}
				r.tap(t, routes, taps...)
				who := map[string]string{"": "app", "alice": "app"}
				switch {
				case len(routes) == 0:
				case routes[0].Filter.Filtered():
					who["alice"] = "alice"
				default:
					who[""], who["alice"] = "rest", "rest"
				}
				long := strings.Repeat("z", 20<<10) // all together less than any bound
				for _, q := range []struct{ path, dev, body string }{
					{"/x?q=%20", "alice", "one"}, {"/x", "", "two"}, {"/api/y", "", "three"}, {"/api", "alice", long}, {"/apis", "bob", long}, {"/x", "alice", ""},
				} {
					// Of a length that is known, and of one that is not.
					for _, body := range []io.Reader{strings.NewReader(q.body), io.MultiReader(strings.NewReader(q.body))} {
						dev := q.dev
						if dev != "alice" {
							dev = ""
						}
						if got, _ := r.ask(t, c, q.path, q.dev, body); got != who[dev]+" POST "+q.path+" "+q.body {
							t.Errorf("%.100q", got)
						}
					}
				}
				c.CloseIdleConnections()
				twice := func(all ...string) (out []string) {
					for _, s := range all {
						out = append(out, s+" by "+proto, s+" by "+proto)
					}
					return out
				}
				alice.await(t, twice("POST /x?q=%20 alice one", "POST /api alice "+long, "POST /x alice ")...)
				api.await(t, twice("POST /api/y  three", "POST /api alice "+long)...)
			})
		}
	}
	whole.await(t, "POST /x?q=%20 HTTP/1.1", "X-Dev: bob")
	mu.Lock()
	defer mu.Unlock()
	for _, h := range app {
		if by := h.Get("X-Forwarded-For"); by != "" && h.Get("X-Dev") == "alice" {
			t.Errorf("the app's requests go through a proxy: %v", h)
		}
	}
}

// What holds is asked at each request, also of connections that are open.
func TestTapsByFilterChange(t *testing.T) {
	for proto, c := range map[string]*http.Client{"HTTP/1.1": client1(), "HTTP/2.0": client2()} {
		r := newRig(t, server(t, named("app")))
		one, two := &heard{}, &heard{}
		r.handler("one", server(t, one))
		r.handler("two", server(t, two))
		ask := func(path string) {
			t.Helper()
			if got, _ := r.ask(t, c, path, "alice", nil); got != "app POST "+path+" " {
				t.Errorf("%q", got)
			}
		}
		r.tap(t, nil, route("one", "alice"))
		ask("/1")
		one.await(t, "POST /1 alice  by "+proto)
		bad := Route{To: route("bad").To, Filter: lease.Filter{Headers: []lease.HeaderMatch{{Name: "X", Value: "("}}}}
		if errs := r.Set(nil, []Route{bad, route("two", "alice")}, nil, nil); len(errs) != 1 || errs["bad"] == nil {
			t.Errorf("a filter that cannot be: %v", errs)
		}
		ask("/2")
		two.await(t, "POST /2 alice  by "+proto)
		r.tap(t, nil)
		ask("/3")
		ask("/4")
		c.CloseIdleConnections()
		r.quiet(t)
		one.await(t)
		two.await(t)
	}
}

// quiet waits until no copies are made any more.
func (r *rig) quiet(t *testing.T) {
	t.Helper()
	left := -1
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		r.Port.mu.Lock()
		left = len(r.copies)
		r.Port.mu.Unlock()
		if left == 0 {
			return
		}
	}
	t.Errorf("%d copies are kept", left)
}

// Trailers and upgrades of a request are copied too.
func TestTapsByFilterTrailersAndUpgrades(t *testing.T) {
	up := func(name string, said chan<- string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+name+"\r\n\r\n")
			line, _ := rw.ReadString('\n')
			_, _ = io.WriteString(c, name+" "+line)
			rest, _ := io.ReadAll(rw)
			said <- line + string(rest)
		})
	}
	said, copied := make(chan string, 1), make(chan string, 1)
	r := newRig(t, server(t, up("app", said)))
	r.handler("tap", server(t, up("tap", copied)))
	r.handler("other", server(t, http.NotFoundHandler()))
	r.tap(t, nil, route("tap", "alice"), route("other", "bob"))
	c, err := net.Dial("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "GET /socket HTTP/1.1\r\nHost: x\r\nX-Dev: alice\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	br := bufio.NewReader(c)
	if res, err := http.ReadResponse(br, nil); err != nil || res.Header.Get("Upgrade") != "app" {
		t.Fatalf("%v, %v", res, err)
	}
	_, _ = io.WriteString(c, "\x81hello\n")
	if got, err := br.ReadString('\n'); err != nil || got != "app \x81hello\n" {
		t.Errorf("%q, %v", got, err)
	}
	_, _ = io.WriteString(c, "bye")
	_ = c.(*net.TCPConn).CloseWrite()
	for name, ch := range map[string]chan string{"app": said, "tap": copied} {
		select {
		case got := <-ch:
			if got != "\x81hello\nbye" {
				t.Errorf("%s heard %q", name, got)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s has not heard all", name)
		}
	}

	for proto, c := range map[string]*http.Client{"HTTP/1.1": client1(), "HTTP/2.0": client2()} {
		h := &heard{}
		r := newRig(t, server(t, named("app")))
		r.handler("tap", server(t, h))
		r.tap(t, nil, route("tap", "alice"))
		q, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.at+"/t", io.MultiReader(strings.NewReader("body")))
		q.Header.Set("X-Dev", "alice")
		q.Trailer = http.Header{"X-Sum": {"42"}}
		res, err := c.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		h.await(t, "POST /t alice body by "+proto+" trailer 42")
		c.CloseIdleConnections()
	}
}

// An offer to upgrade that the app does not take up leaves the connection as it was.
func TestTapsByFilterRefusedUpgrade(t *testing.T) {
	h := &heard{}
	r := newRig(t, server(t, named("app")))
	r.handler("tap", server(t, h))
	r.tap(t, nil, route("tap", "alice"))
	got := r.raw(t, "GET /a HTTP/1.1\r\nHost: x\r\nX-Dev: alice\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"+
		"GET /b HTTP/1.1\r\nHost: x\r\nX-Dev: bob\r\n\r\n"+
		"GET /c HTTP/1.1\r\nHost: x\r\nX-Dev: alice\r\nConnection: close\r\n\r\n", false)
	if strings.Count(got, "200 OK") != 3 {
		t.Fatalf("%q", got)
	}
	h.await(t, "GET /a alice  by HTTP/1.1", "GET /c alice  by HTTP/1.1")
}

// A request is copied when it has come, whether or not anything comes after it.
func TestTapsByFilterAtOnce(t *testing.T) {
	h := &heard{}
	r := newRig(t, server(t, named("app")))
	r.handler("tap", server(t, h))
	r.tap(t, nil, route("tap", "/"), route("whole"))
	if got := r.NotHTTP(); len(got) > 0 {
		t.Errorf("before anything has come: %v", got)
	}
	for _, what := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 5)} {
		c, err := net.Dial("tcp", r.at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, what); err != nil {
			t.Fatal(err)
		}
		h.await(t, slices.Repeat([]string{"GET /   by HTTP/1.1"}, strings.Count(what, "GET"))...)
		c.Close()
	}
}

// Of what is not HTTP wiretaps with filters have nothing; it goes its way.
func TestTapsByFilterNotHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	r := newRig(t, l.Addr().String())
	h := &heard{}
	r.handler("tap", server(t, h))
	r.tap(t, nil, route("tap", "/"))
	for _, what := range []string{
		"\x16\x03\x01\x02\x00 TLS", "PUT key 3\r\nabc\r\n", strings.Repeat("x", 1<<20), "GET " + strings.Repeat("x", 2<<20), "GET / HTTP/1.1\r\nno header\r\n\r\n",
		preface + "no frame", "",
	} {
		if got := r.raw(t, what, true); got != what {
			t.Errorf("%.40q comes back as %.40q, %d bytes", what, got, len(got))
		}
	}
	r.quiet(t)
	h.await(t)
	if lost := r.Lost()["tap"]; lost > 0 {
		t.Errorf("%d are counted as lost", lost)
	}
	if got := r.NotHTTP(); len(got) != 1 || got[0] != route("tap").To {
		t.Errorf("had nothing of what is not HTTP: %v", got)
	}
	r.tap(t, nil)
	if got := r.NotHTTP(); len(got) > 0 {
		t.Errorf("after its end: %v", got)
	}
}

// A handler that does not read, answer, or is not there, holds nobody up; what it
// loses is counted, and nothing of it stays.
func TestTapsByFilterHoldNobodyUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never reads
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for proto, c := range map[string]*http.Client{"HTTP/1.1": client1(), "HTTP/2.0": client2()} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, server(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				n, _ := io.Copy(io.Discard, q.Body)
				_, _ = io.WriteString(w, itoa(uint16(n>>20)))
			})))
			well := &heard{}
			r.handler("stuck", l.Addr().String())
			r.handler("well", server(t, well))
			r.tap(t, nil, route("stuck", "alice"), route("absent", "alice"), route("well", "/small"))
			for range 5 {
				if got, _ := r.ask(t, c, "/", "alice", strings.NewReader(strings.Repeat("x", 16<<20))); got != "16" {
					t.Fatalf("%q", got)
				}
			}
			for range 2 * copiesMost {
				r.ask(t, c, "/", "alice", nil)
			}
			c.CloseIdleConnections()
			r.quiet(t)
			for _, e := range []string{"stuck", "absent"} {
				r.Port.mu.Lock()
				k := r.taps[e]
				r.Port.mu.Unlock()
				if r.Lost()[e] == 0 || k.open.Load() != 0 {
					t.Errorf("%s: %d lost, %d open", e, k.lost.Load(), k.open.Load())
				}
			}
			if got, _ := r.ask(t, c, "/small", "", nil); got != "0" {
				t.Errorf("%q", got)
			}
			well.await(t, "POST /small   by "+proto)
			c.CloseIdleConnections()
		})
	}
}

// Of a handler that does not answer so many requests wait, and no more.
func TestTapsByFilterMost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []*http.Client{client1(), client2()} {
		r := newRig(t, server(t, named("app")))
		r.handler("tap", l.Addr().String())
		r.tap(t, nil, route("tap", "alice"))
		for range copiesMost + 10 {
			r.ask(t, c, "/", "alice", nil)
		}
		for deadline := time.Now().Add(10 * time.Second); r.Lost()["tap"] < 10 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		r.Port.mu.Lock()
		open := r.taps["tap"].open.Load()
		r.Port.mu.Unlock()
		if lost := r.Lost()["tap"]; lost != 10 || open != copiesMost {
			t.Errorf("%d are lost, %d are open", lost, open)
		}
		r.Cut("tap")
		r.quiet(t)
		c.CloseIdleConnections()
	}
}

// What is under way ends with its engagement.
func TestTapsByFilterAreCut(t *testing.T) {
	for _, c := range []*http.Client{client1(), client2()} {
		gone := make(chan struct{})
		asked := make(chan struct{})
		r := newRig(t, server(t, named("app")))
		r.handler("tap", server(t, http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
			close(asked)
			<-q.Context().Done()
			close(gone)
		})))
		r.tap(t, nil, route("tap", "alice"))
		r.ask(t, c, "/", "alice", nil)
		<-asked
		r.tap(t, nil)
		r.Cut("tap")
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Error("the copy outlives its engagement")
		}
		r.quiet(t)
		c.CloseIdleConnections()
	}
}

// Of the calls of one connection those come to a wiretap that its filter matches,
// with all that is said in them.
func TestTapsByFilterGRPC(t *testing.T) {
	r := newRig(t, grpcServer(t, &echo{"app", make(chan struct{}, 10)}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1000)
	srv := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		var m wrapperspb.StringValue
		var all []string
		for s.RecvMsg(&m) == nil {
			all = append(all, m.Value)
		}
		heard <- strings.Join(all, ", ")
		return nil
	}))
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	r.handler("tap", l.Addr().String())
	r.tap(t, nil, route("tap", "alice"), route("absent", "/test.Echo/Talk"))
	c, err := grpc.NewClient(r.at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var want []string
	for i := range 60 {
		dev, said := "", []string{}
		if i%3 == 0 {
			dev = "alice"
		}
		s, err := talk(ctx, c, "Talk", dev)
		if err != nil {
			t.Fatal(err)
		}
		for j := range 5 {
			what := fmt.Sprint(i, " ", j)
			if got, err := say(s, what); err != nil || got != "app "+what {
				t.Fatalf("%q, %v", got, err)
			}
			said = append(said, what)
		}
		_ = s.CloseSend()
		if err := s.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if dev == "alice" {
			want = append(want, strings.Join(said, ", "))
		}
	}
	var got []string
	for range want {
		select {
		case what := <-heard:
			got = append(got, what)
		case <-ctx.Done():
			t.Fatalf("heard only %q", got)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(heard) > 0 {
		t.Errorf("heard %q, want %q", got, want)
	}
}

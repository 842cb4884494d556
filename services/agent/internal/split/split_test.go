package split

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/lease"

	"github.com/gorilla/websocket"
)

// Requests that alternate on connections that are kept alive come to where their
// headers and paths say, each of them, by either version of HTTP.
func TestEachRequestBySelf(t *testing.T) {
	for name, client := range map[string]func() *http.Client{"HTTP/1.1": client1, "HTTP/2.0": client2} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, server(t, named("app")))
			r.handler("alice", server(t, named("alice")))
			r.handler("bob", server(t, named("bob")))
			r.hold(t, route("bob", "/bob"), route("alice", "alice|al"))
			c := client()
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() {
					for i := range 60 {
						dev, path, want := "", "/x", "app"
						switch (i + w) % 4 {
						case 0:
							dev, want = "alice", "alice"
						case 1:
							path, want = "/bob/y?q=1", "bob"
						case 2:
							dev, path, want = "al", "/bob", "alice" // a header before a path
						}
						body := fmt.Sprint("body ", w, i)
						got, res := r.ask(t, c, path, dev, strings.NewReader(body))
						if got != want+" POST "+path+" "+body || res.Header.Get("X-Proto") != name || res.Proto != name {
							t.Errorf("%s %s: %q by %s, %s", dev, path, got, res.Header.Get("X-Proto"), res.Proto)
						}
					}
				})
			}
			wg.Wait()
			// A filter that goes takes what is next to the app, on the same connections.
			r.hold(t, route("bob", "/bob"))
			if got, _ := r.ask(t, c, "/x", "alice", nil); !strings.HasPrefix(got, "app ") {
				t.Errorf("after its end: %q", got)
			}
			r.hold(t)
			if got, _ := r.ask(t, c, "/bob", "alice", nil); !strings.HasPrefix(got, "app ") {
				t.Errorf("after all have ended: %q", got)
			}
		})
	}
}

// The rest is the app's or of the engagement that has no filter.
func TestTheRest(t *testing.T) {
	r := newRig(t, server(t, named("app")))
	r.handler("all", server(t, named("all")))
	r.handler("alice", server(t, named("alice")))
	r.hold(t, route("all"), route("alice", "alice"))
	c := client1()
	for dev, want := range map[string]string{"": "all", "alice": "alice"} {
		if got, _ := r.ask(t, c, "/", dev, nil); !strings.HasPrefix(got, want+" ") {
			t.Errorf("%q: %q", dev, got)
		}
	}
	// kubelet's probes are the app's, whatever matches.
	if errs := r.Set([]Route{route("alice", "/")}, nil, []lease.Probe{{Kind: lease.ProbeHTTP, Path: "/well?x"}}, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
	for agent, want := range map[string]string{"kube-probe/1.34": "app", "curl": "alice"} {
		got := r.raw(t, "GET /well?x HTTP/1.1\r\nHost: h\r\nUser-Agent: "+agent+"\r\nConnection: close\r\n\r\n", false)
		if !strings.Contains(got, "X-Who: "+want) {
			t.Errorf("%s: %q", agent, got)
		}
	}
}

// What a client says and how it is answered is the same as without us.
func TestHTTP1Unharmed(t *testing.T) {
	r := newRig(t, server(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Path {
		case "/trailers":
			w.Header().Set("Trailer", "X-Announced")
			b, _ := io.ReadAll(q.Body)
			_, _ = w.Write(b)
			w.Header().Set("X-Announced", q.Trailer.Get("X-Sent"))
			w.Header().Set(http.TrailerPrefix+"X-Late", "late")
		case "/refuse":
			w.WriteHeader(http.StatusUnauthorized) // without "100 Continue"
		case "/bare":
			w.Header()["Date"], w.Header()["Content-Type"] = nil, nil
			_, _ = io.WriteString(w, "<html>")
		case "/close":
			w.Header().Set("Connection", "close")
		case "/slow":
			time.Sleep(100 * time.Millisecond)
			_, _ = io.WriteString(w, "slow")
		default:
			named("app").ServeHTTP(w, q)
		}
	})))
	r.hold(t, route("nobody", "nobody"))
	long := strings.Repeat("x", 200<<10)
	for _, tt := range []struct {
		name, say string
		half      bool
		want      []string
		not       string
	}{
		{"a target to the letter", "GET //a%2fb/../c;d?x;y=%zz&& HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, []string{"app GET //a%2fb/../c;d?x;y=%zz&& "}, ""},
		{"another to the letter", "GET /a%2fb/../c;d?x;y=%zz&& HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, []string{"app GET /a%2fb/../c;d?x;y=%zz&& "}, ""},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, []string{"200 OK"}, ""},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, []string{"X-Who: app"}, "app HEAD"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", false, []string{"app GET / "}, "chunked"},
		{"pipelined, and half-closed", "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nPOST /2 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi" + "GET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", true, []string{"app GET /1", "app POST /2 hi", "app GET /3"}, ""},
		{"half-closed before the answer", "GET /slow HTTP/1.1\r\nHost: h\r\n\r\n", true, []string{"slow"}, ""},
		{"chunks with trailers", "POST /trailers HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sent\r\n\r\n3\r\nabc\r\n0\r\nX-Sent: sent\r\n\r\n", false, []string{"abc", "X-Announced: sent", "X-Late: late"}, ""},
		{"100-continue", "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", false, []string{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", "app POST / hi"}, ""},
		{"100-continue, refused", "POST /refuse HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n", false, []string{"401"}, "100 Continue"},
		{"large headers", "GET / HTTP/1.1\r\nHost: h\r\nX-Long: " + long + "\r\nConnection: close\r\n\r\n", false, []string{"app GET /"}, ""},
		{"a long target", "GET /" + long[:60000] + " HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, []string{"app GET /xxx"}, ""},
		{"nothing is added", "GET /bare HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false, []string{"<html>"}, "ate:"},
		{"the app's own wish to end", "GET /close HTTP/1.1\r\nHost: h\r\n\r\n", false, []string{"Connection: close"}, ""},
		{"an offer of h2c", "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", false, []string{"HTTP/1.1 200 OK", "app GET /"}, "101"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := r.raw(t, tt.say, tt.half)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("answer %.300q, want %q", got, want)
				}
			}
			if tt.not != "" && strings.Contains(got, tt.not) {
				t.Errorf("answer %.300q has %q", got, tt.not)
			}
		})
	}
}

// Whose address the client has, and through whom it came, the far end can tell.
func TestForwardedFor(t *testing.T) {
	r := newRig(t, server(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = fmt.Fprint(w, q.Header["X-Forwarded-For"], q.Header["X-Forwarded-Proto"], q.Header["User-Agent"], q.Header["Accept-Encoding"])
	})))
	r.hold(t, route("nobody", "nobody"))
	for say, want := range map[string]string{
		"": "[127.0.0.1] [] [] []",
		"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n": "[192.0.2.1, 127.0.0.1] [https] [] []",
	} {
		if got := r.raw(t, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"+say+"\r\n", false); !strings.HasSuffix(got, want) {
			t.Errorf("%q: %q", say, got)
		}
	}
}

// What is not HTTP goes to the app from its first byte, whoever speaks first.
func TestNotHTTP(t *testing.T) {
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
			go func() { // an echo, which greets one who says nothing
				defer c.Close()
				_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
				buf := make([]byte, 1000)
				n, err := c.Read(buf)
				if n == 0 && err != nil {
					_, _ = io.WriteString(c, "220 welcome\r\n")
				}
				_ = c.SetReadDeadline(time.Time{})
				_, _ = c.Write(buf[:n])
				_, _ = io.Copy(c, c)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	r := newRig(t, l.Addr().String())
	r.hold(t, route("alice", "/"))
	for _, say := range []string{"\x16\x03\x01\x02\x00\x01\x00", "SSH-2.0-x\r\n", "GET key\r\n", "PING\r\n", "*1\r\n$4\r\nPING\r\n", "\x00", "PRI * HTTP/2.0\r\n\r\nno", "CONNECT h:1 HTTP/1.1\r\n\r\n", "HELO x HTTP/3\r\n", "GET /unfinished"} {
		if got := r.raw(t, say, true); got != say {
			t.Errorf("%q: %q", say, got)
		}
	}
	if got := r.NotHTTP(); len(got) != 1 || got[0] != route("alice").To {
		t.Errorf("had nothing of it: %v", got)
	}
	c, err := net.Dial("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := bufio.NewReader(c)
	if got, err := b.ReadString('\n'); err != nil || got != "220 welcome\r\n" {
		t.Errorf("who waits for the server's word: %q, %v", got, err)
	}
	if _, err := io.WriteString(c, "EHLO\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := b.ReadString('\n'); err != nil || got != "EHLO\n" {
		t.Errorf("and then speaks: %q, %v", got, err)
	}
	if r.opened["alice"] != 0 {
		t.Error("some of it came to the handler")
	}
}

// A connection that is opened early and used late is looked at all the same.
func TestSilentAtFirst(t *testing.T) {
	r := newRig(t, server(t, named("app")))
	r.handler("alice", server(t, named("alice")))
	r.hold(t, route("alice", "alice"))
	c, err := net.Dial("tcp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.Sleep(2 * silence)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\nX-Dev: alice\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "alice GET /") {
		t.Errorf("%q, %v", b, err)
	}
}

// A WebSocket goes where its request goes, and outlives the filters if that is the
// app; one with a handler ends with its engagement.
func TestWebSocket(t *testing.T) {
	echo := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			c, err := (&websocket.Upgrader{}).Upgrade(w, q, nil)
			if err != nil {
				return
			}
			defer c.Close()
			for {
				kind, b, err := c.ReadMessage()
				if err != nil || c.WriteMessage(kind, append([]byte(name+" "), b...)) != nil {
					return
				}
			}
		})
	}
	r := newRig(t, server(t, echo("app")))
	r.handler("alice", server(t, echo("alice")))
	r.hold(t, route("alice", "alice"))
	open := func(dev string) *websocket.Conn {
		c, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+r.at+"/", http.Header{"X-Dev": {dev}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	say := func(c *websocket.Conn) string {
		if err := c.WriteMessage(websocket.BinaryMessage, []byte("hi")); err != nil {
			return err.Error()
		}
		_, b, err := c.ReadMessage()
		if err != nil {
			return "ended"
		}
		return string(b)
	}
	app, alice := open("nobody"), open("alice")
	if got := say(app) + ", " + say(alice); got != "app hi, alice hi" {
		t.Fatal(got)
	}
	r.hold(t)
	r.Cut("alice")
	if got := say(app) + ", " + say(alice); got != "app hi, ended" {
		t.Error(got)
	}
}

// Streams go through as they come, both ways at once, and end when the client ends.
func TestStreaming(t *testing.T) {
	for name, client := range map[string]func() *http.Client{"HTTP/1.1": client1, "HTTP/2.0": client2} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan struct{}, 1)
			far := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				rc := http.NewResponseController(w)
				_ = rc.EnableFullDuplex()
				w.WriteHeader(http.StatusOK)
				_ = rc.Flush()
				lines := bufio.NewScanner(q.Body)
				for lines.Scan() {
					_, _ = io.WriteString(w, strings.ToUpper(lines.Text())+"\n")
					_ = rc.Flush()
				}
				<-q.Context().Done()
				gone <- struct{}{}
			})
			r := newRig(t, server(t, far))
			r.handler("alice", server(t, far))
			r.hold(t, route("alice", "alice"))
			for _, dev := range []string{"alice", "nobody"} {
				ctx, cancel := context.WithCancel(t.Context())
				body, say := io.Pipe()
				q, err := http.NewRequestWithContext(ctx, "POST", "http://"+r.at, body)
				if err != nil {
					t.Fatal(err)
				}
				q.Header.Set("X-Dev", dev)
				c := client()
				c.Timeout = 0
				res, err := c.Do(q)
				if err != nil {
					t.Fatal(err)
				}
				answer := bufio.NewReader(res.Body)
				for _, line := range []string{"one", "two"} {
					if _, err := io.WriteString(say, line+"\n"); err != nil {
						t.Fatal(err)
					}
					if got, err := answer.ReadString('\n'); err != nil || got != strings.ToUpper(line)+"\n" {
						t.Fatalf("%s: %q, %v", dev, got, err)
					}
				}
				cancel()
				_ = say.Close()
				select {
				case <-gone:
				case <-time.After(10 * time.Second):
					t.Errorf("%s: the far end does not hear that the client has gone", dev)
				}
			}
		})
	}
}

// A handler that does not listen is named; an engagement that has ended while its
// requests were on their way leaves them to the app.
func TestNobodyListens(t *testing.T) {
	r := newRig(t, server(t, named("app")))
	r.hold(t, route("alice", "alice"))
	c := client1()
	got, res := r.ask(t, c, "/", "alice", strings.NewReader("x"))
	if res.StatusCode != http.StatusBadGateway || !strings.Contains(got, "alice takes no connection") {
		t.Errorf("%d %q", res.StatusCode, got)
	}
	if got, _ := r.ask(t, c, "/", "", nil); !strings.HasPrefix(got, "app ") {
		t.Errorf("the next one: %q", got)
	}
	r.mu.Lock()
	r.refusing = func() { r.hold(t) }
	r.mu.Unlock()
	if got, _ := r.ask(t, c, "/", "alice", strings.NewReader("x")); !strings.HasPrefix(got, "app POST / x") {
		t.Errorf("%q", got)
	}
}

// The app's end of a connection that is kept alive is the client's.
func TestAppEndsIdleConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: named("app"), IdleTimeout: 50 * time.Millisecond}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	r := newRig(t, l.Addr().String())
	r.hold(t, route("alice", "alice"))
	if got := r.raw(t, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", false); !strings.Contains(got, "app GET /") {
		t.Errorf("%q", got)
	}
}

// Nothing is left of connections that are over.
func TestNothingStays(t *testing.T) {
	r := newRig(t, server(t, named("app")))
	r.handler("alice", server(t, named("alice")))
	r.hold(t, route("alice", "alice"))
	for range 20 {
		c := client1()
		r.ask(t, c, "/", "alice", nil)
		r.ask(t, c, "/", "", nil)
		c.CloseIdleConnections()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !r.set.Quiet(ctx) {
		t.Errorf("%d flows are open", r.set.Open())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Port.mu.Lock()
	defer r.Port.mu.Unlock()
	if len(r.own) != 0 || r.opened["alice"] != 20 {
		t.Errorf("%d flows to handlers are kept, %d were opened", len(r.own), r.opened["alice"])
	}
	for _, s := range r.sources {
		if !s.Addr().IsLoopback() || s.Port() == 0 {
			t.Errorf("source %v", s)
		}
	}
}

package split

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink keeps what comes over each connection, and answers what nobody wants.
type sink struct {
	mu  sync.Mutex
	got []string
}

func (s *sink) listen(t *testing.T) string {
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
				defer c.Close()
				_, _ = io.WriteString(c, "HTTP/1.1 500 of the tap\r\n\r\n")
				b, _ := io.ReadAll(c)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.got = append(s.got, string(b))
			}()
		}
	}()
	return l.Addr().String()
}

// await waits until what was kept has all of want.
func (s *sink) await(t *testing.T, want ...string) {
	t.Helper()
	var all string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		all = strings.Join(s.got, "|")
		s.mu.Unlock()
		missing := false
		for _, w := range want {
			missing = missing || !strings.Contains(all, w)
		}
		if !missing {
			return
		}
	}
	t.Errorf("copies %.500q, want %q", all, want)
}

// tapsOf has copies go to engagements beside what routes say.
func (r *rig) tapsOf(t *testing.T, routes []Route, engagements ...string) {
	t.Helper()
	var taps []Route
	for _, e := range engagements {
		taps = append(taps, route(e))
	}
	if errs := r.Set(routes, taps, nil, nil); len(errs) > 0 {
		t.Fatal(errs)
	}
}

// Taps have every byte that clients say, of HTTP and of anything else, beside an
// intercept too; answers are those of whose the request is.
func TestTapsHaveCopies(t *testing.T) {
	r := newRig(t, server(t, named("app")))
	one, two := &sink{}, &sink{}
	r.handler("one", one.listen(t))
	r.handler("two", two.listen(t))
	r.handler("alice", server(t, named("alice")))
	for _, routes := range [][]Route{nil, {route("alice", "alice")}} {
		r.tapsOf(t, routes, "one", "two")
		c := client1()
		for _, body := range []string{"first", "second"} { // of one connection
			if got, _ := r.ask(t, c, "/x", "", strings.NewReader(body)); got != "app POST /x "+body {
				t.Errorf("%q", got)
			}
		}
		want := "app"
		if routes != nil {
			want = "alice"
		}
		if got, _ := r.ask(t, c, "/y", "alice", strings.NewReader("third")); got != want+" POST /y third" {
			t.Errorf("%q", got)
		}
		c.CloseIdleConnections()
	}
	for _, s := range []*sink{one, two} {
		s.await(t, "POST /x HTTP/1.1", "first", "second", "POST /y HTTP/1.1", "X-Dev: alice", "third", "|")
	}
	r.tapsOf(t, nil)
	r.mu.Lock()
	before := r.opened["one"]
	r.mu.Unlock()
	r.ask(t, client1(), "/", "", nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opened["one"] != before {
		t.Error("copies are made after the end")
	}
}

// A handler that does not read, or is not there, holds nobody up; what it loses is
// counted, and nothing of it stays.
func TestTapsHoldNobodyUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never reads
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := newRig(t, server(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n, _ := io.Copy(io.Discard, q.Body)
		_, _ = io.WriteString(w, itoa(uint16(n>>20)))
	})))
	r.handler("stuck", l.Addr().String())
	r.tapsOf(t, nil, "stuck", "absent")
	c := client1()
	for range 5 {
		if got, _ := r.ask(t, c, "/", "", strings.NewReader(strings.Repeat("x", 16<<20))); got != "16" {
			t.Fatalf("%q", got)
		}
	}
	c.CloseIdleConnections()
	for _, e := range []string{"stuck", "absent"} {
		r.Port.mu.Lock()
		k := r.taps[e]
		r.Port.mu.Unlock()
		for deadline := time.Now().Add(10 * time.Second); k.open.Load() > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if r.Lost()[e] == 0 || k.open.Load() != 0 {
			t.Errorf("%s: %d lost, %d open", e, k.lost.Load(), k.open.Load())
		}
	}
	r.Port.mu.Lock()
	defer r.Port.mu.Unlock()
	if len(r.copies) != 0 {
		t.Errorf("%d copies are kept", len(r.copies))
	}
}

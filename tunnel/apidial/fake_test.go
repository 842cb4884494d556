package apidial

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/tunnel"
	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// fake is an API server in front of one manager pod. The pods/proxy path is
// the real handler of the real API server; port-forward is done by the same
// libraries that the kubelet uses.
type fake struct {
	*httptest.Server
	manager *httptest.Server
	id      *tunnel.Identity

	mu       sync.Mutex
	forbid   map[string]bool // "proxy", "portforward", "list"
	broken   map[string]bool // "proxy", "websocket": 502
	pods     []corev1.Pod
	requests []string
	tokens   []string
	upgraded http.Header // of the request that reached the manager
}

func newFake(t *testing.T) *fake {
	id, err := tunnel.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{id: id, forbid: map[string]bool{}, broken: map[string]bool{}}
	f.pods = []corev1.Pod{pod("starting", false), pod("manager-0", true)}
	f.manager = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != tunnel.Path {
			http.NotFound(w, r)
			return
		}
		f.mu.Lock()
		f.upgraded = r.Header.Clone()
		f.mu.Unlock()
		conn, err := tunnel.Upgrade(w, r)
		if err != nil {
			return
		}
		s, _, _, err := tunnel.Serve(r.Context(), conn, id, func(r *http.Request) func(ctx ctx, h tunnel.Hello, p tunnel.Pin) (*tunnel.Welcome, error) {
			return func(ctx, tunnel.Hello, tunnel.Pin) (*tunnel.Welcome, error) {
				return &tunnel.Welcome{InstallationID: "fake"}, nil
			}
		}(r), tunnel.Config{})
		if err != nil {
			return
		}
		defer s.Close()
		for {
			req, err := s.Accept(r.Context())
			if err != nil {
				return
			}
			st, err := req.Accept()
			if err != nil {
				continue
			}
			go func() { defer st.Close(); io.Copy(st, st) }()
		}
	}))
	f.Server = httptest.NewTLSServer(f)
	t.Cleanup(func() {
		f.Server.CloseClientConnections()
		f.Server.Close()
		f.manager.CloseClientConnections()
		f.manager.Close()
	})
	return f
}

func pod(name string, ready bool) corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "berth"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

func (f *fake) config() *rest.Config {
	return &rest.Config{
		Host:            f.URL,
		BearerToken:     "user-token",
		TLSClientConfig: rest.TLSClientConfig{CAData: pemOf(f.Certificate().Raw)},
	}
}

func (f *fake) dialer() *Dialer {
	return &Dialer{Config: f.config(), Namespace: "berth", Selector: "app=berth-manager", Port: 8443}
}

func (f *fake) set(m map[string]bool, key string, v bool) {
	f.mu.Lock()
	m[key] = v
	f.mu.Unlock()
}

func (f *fake) is(m map[string]bool, key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return m[key]
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	f.tokens = append(f.tokens, r.Header.Get("Authorization"))
	f.mu.Unlock()
	r.Header.Del("Authorization") // as the API server does
	const prefix = "/api/v1/namespaces/berth/pods"
	switch r.URL.Path {
	case prefix:
		if f.is(f.forbid, "list") {
			writeForbidden(w, "pods", "")
			return
		}
		if r.URL.Query().Get("labelSelector") != "app=berth-manager" {
			http.Error(w, "selector?", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: f.pods})
	case prefix + "/manager-0:8443/proxy" + tunnel.Path:
		switch {
		case f.is(f.forbid, "proxy"):
			writeForbidden(w, "pods/proxy", "manager-0:8443")
		case f.is(f.broken, "proxy"):
			http.Error(w, "no route to pod", http.StatusBadGateway)
		case f.is(f.broken, "hang"):
			<-r.Context().Done()
		default:
			u, _ := url.Parse(f.manager.URL + tunnel.Path)
			h := proxy.NewUpgradeAwareHandler(u, http.DefaultTransport, false, true, f)
			h.ServeHTTP(w, r)
		}
	case prefix + "/manager-0/portforward":
		switch {
		case f.is(f.forbid, "portforward"):
			writeForbidden(w, "pods/portforward", "manager-0")
		case r.Header.Get("Upgrade") == "websocket":
			if f.is(f.broken, "websocket") {
				http.Error(w, "what is a websocket?", http.StatusBadRequest)
				return
			}
			f.forwardWebSocket(w, r)
		default:
			f.forwardSPDY(w, r)
		}
	default:
		http.NotFound(w, r)
	}
}

// Error answers for the proxy handler.
func (f *fake) Error(w http.ResponseWriter, r *http.Request, err error) {
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

func writeForbidden(w http.ResponseWriter, resource, name string) {
	err := apierrors.NewForbidden(schema.GroupResource{Resource: resource}, name, fmt.Errorf("user has no such right"))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	s := err.Status()
	s.Kind, s.APIVersion = "Status", "v1"
	json.NewEncoder(w).Encode(s)
}

func (f *fake) forwardWebSocket(w http.ResponseWriter, r *http.Request) {
	up := websocket.Upgrader{Subprotocols: []string{overWebSocket}}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	newStreams, serve := f.streams()
	conn, err := spdy.NewServerConnection(portforward.NewTunnelingConnection("server", ws), newStreams)
	if err != nil {
		return
	}
	serve(conn)
}

func (f *fake) forwardSPDY(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{portForwardProtocol}); err != nil {
		return
	}
	newStreams, serve := f.streams()
	if conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, newStreams); conn != nil {
		serve(conn)
	}
}

// streams pairs error and data streams, and joins the data to the manager.
func (f *fake) streams() (httpstream.NewStreamHandler, func(httpstream.Connection)) {
	incoming := make(chan httpstream.Stream, 8)
	handler := func(s httpstream.Stream, _ <-chan struct{}) error { incoming <- s; return nil }
	return handler, func(conn httpstream.Connection) {
		defer conn.Close()
		var errs httpstream.Stream
		for {
			select {
			case <-conn.CloseChan():
				return
			case s := <-incoming:
				if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
					errs = s
					continue
				}
				if port := s.Headers().Get(corev1.PortHeader); port != "8443" {
					io.WriteString(errs, "nobody listens on "+port)
					errs.Close()
					continue
				}
				go f.join(s)
			}
		}
	}
}

func (f *fake) join(s httpstream.Stream) {
	defer s.Close()
	c, err := net.Dial("tcp", strings.TrimPrefix(f.manager.URL, "http://"))
	if err != nil {
		return
	}
	defer c.Close()
	done := make(chan struct{}, 2)
	go func() { io.Copy(c, s); done <- struct{}{} }()
	go func() { io.Copy(s, c); done <- struct{}{} }()
	<-done
}

// seen returns how many requests had path's end.
func (f *fake) seen(suffix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.HasSuffix(r, suffix) {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

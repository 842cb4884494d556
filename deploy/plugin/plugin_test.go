package plugin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// key is a private key as tunnel.Identity writes it.
func key(t *testing.T) []byte {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, x, x, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
}

// TestInstall installs the real binary on the real engine, twice, and removes it.
func TestInstall(t *testing.T) {
	socket := strings.TrimPrefix(cmp.Or(os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock"), "unix://")
	if c, err := net.Dial("unix", socket); err != nil {
		t.Skip("needs a Docker engine")
	} else {
		c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e := Unix(socket)
	s, err := e.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Installed {
		t.Skip("the plugin is installed already, by somebody who uses it")
	}
	bin := filepath.Join(t.TempDir(), "telemount")
	b := exec.Command("go", "build", "-o", bin, ".")
	b.Dir, b.Env = "../../services/telemount", append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := b.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Remove(context.Background()); err != nil {
			t.Error(err)
		}
		if s, err := e.State(context.Background()); err != nil || s.Installed {
			t.Errorf("after removal: %+v %v", s, err)
		}
	})
	c := Contents{Binary: data, Key: key(t), Version: "1", Pin: "p1"}
	for _, want := range []Status{{true, true, "1", "p1"}, {true, true, "1", "p1"}, {true, true, "2", "p1"}} {
		c.Version = want.Version
		if s, err := e.Install(ctx, c); err != nil || s != want {
			t.Fatalf("%+v, %v", s, err)
		}
		if s, err := e.State(ctx); err != nil || s != want {
			t.Errorf("after installation: %+v, %v", s, err)
		}
	}
	var raw json.RawMessage
	if err := e.call(ctx, "GET", "/plugins/"+Name+"/json", nil, &raw); err != nil || bytes.Contains(raw, bytes.Split(c.Key, []byte("\n"))[1]) {
		t.Errorf("the key is to be seen: %s, %v", raw, err)
	}
	// Two at once, of a version that is not there.
	c.Version = "3"
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if s, err := e.Install(ctx, c); err != nil || s.Version != "3" || !s.Enabled {
				t.Errorf("two at once: %+v, %v", s, err)
			}
		})
	}
	wg.Wait()
	// One that does not start is not left behind.
	if err := e.RemoveUnused(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Install(ctx, Contents{Binary: []byte("no program"), Version: "1", Pin: "p"}); !errors.Is(err, ErrRefused) {
		t.Errorf("a binary that is none: %v", err)
	}
	if s, err := e.State(ctx); err != nil || s.Installed {
		t.Errorf("after one that does not start: %+v, %v", s, err)
	}
}

// The engine holds the name while somebody else makes the plugin.
func TestInstallWhileAnotherDoes(t *testing.T) {
	var asked atomic.Int32
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := asked.Add(1); {
		case r.Method == http.MethodPost:
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"message":"ref telemount:latest locked for 315.783315ms (since then): unavailable"}`)
		case n < 4:
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = io.WriteString(w, `{"Id":"1","Enabled":true,"Config":{"Env":[{"Name":"BERTH_PLUGIN_VERSION","Value":"1"},{"Name":"BERTH_PLUGIN_PIN","Value":"theirs"}]}}`)
		}
	}))
	defer engine.Close()
	s, err := Engine{HTTP: engine.Client(), URL: engine.URL}.Install(t.Context(), Contents{Version: "1", Pin: "mine"})
	if want := (Status{true, true, "1", "theirs"}); err != nil || s != want {
		t.Errorf("%+v, %v, want %+v", s, err, want)
	}
}

func TestNoEngine(t *testing.T) {
	if _, err := Unix(t.TempDir()+"/none").Install(t.Context(), Contents{}); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
}

// An engine behind TCP is asked by TLS where it speaks that, whatever the client
// has put around its transport.
func TestOf(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Enabled":true}`) })
	plain, tls := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer tls.Close()
	for _, s := range []*httptest.Server{plain, tls} {
		c := *s.Client()
		c.Transport = wrapped{c.Transport}
		e, sure := Of(&c, "tcp://"+s.Listener.Addr().String())
		if e.URL != s.URL || !sure {
			t.Errorf("%s, %v, want %s", e.URL, sure, s.URL)
		}
		if st, err := e.State(t.Context()); err != nil || !st.Enabled {
			t.Errorf("%s: %+v, %v", s.URL, st, err)
		}
	}
	if e, sure := Of(http.DefaultClient, "unix:///var/run/docker.sock"); e.URL != "http://docker" || !sure {
		t.Errorf("a socket is reached at %s, %v", e.URL, sure)
	}
	plain.Close()
	if e, sure := Of(http.DefaultClient, "tcp://"+plain.Listener.Addr().String()); sure {
		t.Errorf("an engine that does not answer is reached at %s", e.URL)
	}
}

type wrapped struct{ http.RoundTripper }

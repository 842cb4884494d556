package cluster

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/fault"
)

// kubeconfigFor is one that trusts nobody in particular.
func kubeconfigFor(server string) []byte {
	return []byte(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],"clusters":[{"name":"c","cluster":{"server":"` + server + `"}}],"users":[{"name":"u","user":{"token":"t"}}]}`)
}

func serve(t *testing.T, tls bool, h http.HandlerFunc) string {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes are meant to fail
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestReachExplains calls real servers that are wrong in different ways.
func TestReachExplains(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	answer := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); _, _ = w.Write([]byte(body)) }
	}
	noName := strings.Repeat("x", 64) + ".invalid" // too long for a name of the DNS: none is asked
	for _, tc := range []struct {
		name, server, says string
		code               fault.Code
	}{
		{"refused", "https://" + closed.Addr().String(), "refuses the connection", fault.Unavailable},
		{"silent", "https://" + silent.Addr().String(), "did not answer in time", fault.Unavailable},
		{"unknown authority", "https://" + serve(t, true, answer(200, "{}")), "certificate authority did not sign", fault.Unavailable},
		{"no TLS", "https://" + serve(t, false, answer(200, "{}")), "TLS", fault.Unavailable},
		{"no such name", "https://" + noName, "cannot be found", fault.Unavailable},
		{"bad credentials", "http://" + serve(t, false, answer(401, "no")), "does not accept the credentials", fault.PermissionDenied},
		{"another service", "http://" + serve(t, false, answer(200, "{}")), "not as a Kubernetes API server does", fault.FailedPrecondition},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Open(kubeconfigFor(tc.server), "https://dev", "test")
			if err != nil {
				t.Fatal(err)
			}
			limit := time.Minute
			if tc.name == "silent" {
				limit = time.Second
			}
			_, err = c.Reach(context.Background(), limit)
			f := fault.From(err)
			if f == nil || f.Code != tc.code || !strings.Contains(f.Message, tc.says) || !strings.Contains(f.Message, "https://dev") || f.Hint == "" {
				t.Errorf("%#v, want %s %q", f, tc.code, tc.says)
			}
		})
	}
}

func TestKubeconfigIsRefused(t *testing.T) {
	good := string(kubeconfigFor("https://dev"))
	for name, tc := range map[string]struct{ from, to, says string }{
		"files":      {`"token":"t"`, `"tokenFile":"/x"`, "refers to files"},
		"plugin":     {`"token":"t"`, `"exec":{"apiVersion":"client.authentication.k8s.io/v1","command":"aws","interactiveMode":"Never"}`, `plugin "aws"`},
		"no context": {`"current-context":"c"`, `"current-context":"d"`, `no context "d"`},
		"no server":  {`"server":"https://dev"`, `"server":""`, "names no server"},
		"not one":    {good, "x", "cannot be read"},
	} {
		if _, err := Open([]byte(strings.Replace(good, tc.from, tc.to, 1)), "", "test"); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}

// TestWithToken: what a daemon container gets holds none of the user's own
// credentials.
func TestWithToken(t *testing.T) {
	out, err := withToken([]byte(strings.Replace(string(kubeconfigFor("https://dev")), `"token":"t"`, `"token":"users-own"`, 1)), "short-lived")
	if err != nil {
		t.Fatal(err)
	}
	if s := string(out); strings.Contains(s, "users-own") || !strings.Contains(s, "short-lived") || !strings.HasPrefix(s, "{") {
		t.Errorf("%s", out)
	}
	c, err := Open(out, "", "test")
	if err != nil || c.Config.BearerToken != "short-lived" || c.Config.Host != "https://dev" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRightNames(t *testing.T) {
	r := Right{Verb: "get", Resource: "pods", Subresource: "proxy", Namespace: "berth"}
	if r.String() != "get pods/proxy in the namespace berth" || r.hint() != "kubectl auth can-i get pods --subresource=proxy -n berth" {
		t.Errorf("%s; %s", r, r.hint())
	}
}

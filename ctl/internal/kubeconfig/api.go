package kubeconfig

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

// API is the few questions that `ctl doctor` asks the API server itself. The
// cluster is connector's business; but doctor is asked when nothing runs yet,
// and five requests do not need client-go.
type API struct {
	target *Target
	client *http.Client
	base   *url.URL
}

// API returns the API server at the address of the user's kubeconfig.
func (t *Target) API() (*API, error) {
	c, user := t.cluster(), t.user()
	base, err := url.Parse(c.Server)
	if err != nil {
		return nil, fault.At(string(event.StageAPIServer), err)
	}
	cfg := &tls.Config{ServerName: c.TLSServerName, InsecureSkipVerify: c.InsecureSkipTLSVerify, MinVersion: tls.VersionTLS12}
	if len(c.CertificateAuthorityData) > 0 {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM(c.CertificateAuthorityData)
	}
	if user != nil && len(user.ClientCertificateData) > 0 {
		pair, err := tls.X509KeyPair(user.ClientCertificateData, user.ClientKeyData)
		if err != nil {
			return nil, fault.New(fault.FailedPrecondition, "kubectl config view --minify", "the client certificate of context %s: %v", t.Context, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	tr := &http.Transport{TLSClientConfig: cfg, Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: dialTimeout}
	if c.ProxyURL != "" {
		p, err := url.Parse(c.ProxyURL)
		if err != nil {
			return nil, fault.New(fault.FailedPrecondition, "kubectl config view --minify", "proxy-url: %v", err)
		}
		tr.Proxy = http.ProxyURL(p)
	}
	return &API{target: t, base: base, client: &http.Client{Transport: tr, Timeout: 10 * time.Second}}, nil
}

// do sends a request and reads the JSON of the answer into v.
func (a *API) do(ctx context.Context, method, path string, body, v any) error {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base.JoinPath(path).String(), r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if u := a.target.user(); u != nil {
		switch {
		case u.Token != "":
			req.Header.Set("Authorization", "Bearer "+u.Token)
		case u.Username != "":
			req.SetBasicAuth(u.Username, u.Password)
		}
		if u.Impersonate != "" {
			req.Header.Set("Impersonate-User", u.Impersonate)
			for _, g := range u.ImpersonateGroups {
				req.Header.Add("Impersonate-Group", g)
			}
		}
	}
	res, err := a.client.Do(req)
	if err != nil {
		return a.target.unreachable(a.target.Server, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		return fmt.Errorf("read the answer to %s: %w", path, err)
	}
	if res.StatusCode/100 != 2 {
		return a.refused(res.StatusCode, b)
	}
	return json.Unmarshal(b, v)
}

// refused is the API server's own message; it names the user and the missing verb.
func (a *API) refused(code int, body []byte) error {
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &status) != nil || status.Message == "" {
		status.Message = strings.TrimSpace(string(body))
	}
	hint := "kubectl --context " + a.target.Context + " auth whoami"
	switch code {
	case http.StatusNotFound:
		return fault.New(fault.NotFound, "", "%s", status.Message)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.New(fault.PermissionDenied, hint, "%s", status.Message)
	}
	return fault.New(fault.Unavailable, hint, "the API server answered %d: %s", code, status.Message)
}

// Version is the API server's version.
func (a *API) Version(ctx context.Context) (string, error) {
	var v struct {
		GitVersion string `json:"gitVersion"`
	}
	err := a.do(ctx, http.MethodGet, "/version", nil, &v)
	return v.GitVersion, err
}

// ConfigMap is the value of a key in a ConfigMap.
func (a *API) ConfigMap(ctx context.Context, namespace, name, key string) (string, error) {
	var m struct {
		Data map[string]string `json:"data"`
	}
	err := a.do(ctx, http.MethodGet, "/api/v1/namespaces/"+namespace+"/configmaps/"+name, nil, &m)
	return m.Data[key], err
}

// Right is something that the user has to be allowed to do.
type Right struct {
	Namespace   string `json:"namespace,omitempty"`
	Verb        string `json:"verb"`
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	Name        string `json:"name,omitempty"`
}

// May is nil if the user has the right, else a fault that names the verb.
// https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/self-subject-access-review-v1/
func (a *API) May(ctx context.Context, r Right) error {
	var answer struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	review := map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": r},
	}
	if err := a.do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review, &answer); err != nil {
		return err
	}
	if answer.Status.Allowed {
		return nil
	}
	resource := r.Resource
	if r.Subresource != "" {
		resource += "/" + r.Subresource
	}
	if r.Group != "" {
		resource += "." + r.Group
	}
	return fault.New(fault.PermissionDenied, "kubectl auth can-i "+r.Verb+" "+resource+" -n "+r.Namespace, "may not %s %s in namespace %s", r.Verb, resource, r.Namespace)
}

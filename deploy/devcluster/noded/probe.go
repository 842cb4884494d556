package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// check is one thing that must hold before the cluster is of use. Each asks the
// thing itself: a status that the last run left behind in etcd proves nothing.
type check struct {
	name      string
	component string // whose log explains a failure
	probe     func(context.Context) error
}

// checkStatus is a check as `noded status` shows it.
type checkStatus struct {
	Name      string `json:"name"`
	Component string `json:"component"`
	Error     string `json:"error,omitempty"`
}

func checks(n node, all []*component) []check {
	var list []check
	started := map[string]func() time.Time{}
	for _, c := range all {
		started[c.name] = func() time.Time { return c.status().Started }
		if c.ready != nil {
			list = append(list, check{c.name, c.name, c.ready})
		}
	}
	return append(list,
		check{"node Ready", "kubelet", func(ctx context.Context) error { return nodeReady(ctx, n.name, started["kubelet"]()) }},
		check{"default service account", "controllers", func(ctx context.Context) error {
			return get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
		}},
		check{"CoreDNS ready", "kubelet", func(ctx context.Context) error {
			return ok(ctx, http.DefaultClient, "http://127.0.0.1:8181/ready")
		}},
		check{"cluster DNS through its service", "proxy", dnsAnswers},
	)
}

// runChecks runs all checks at once, in a bounded time.
func runChecks(ctx context.Context, list []check) []checkStatus {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	result := make([]checkStatus, len(list))
	var group sync.WaitGroup
	for i, c := range list {
		group.Go(func() {
			result[i] = checkStatus{Name: c.name, Component: c.component}
			if err := c.probe(ctx); err != nil {
				result[i].Error = err.Error()
			}
		})
	}
	group.Wait()
	return result
}

func containerdReady(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/run/containerd/containerd.sock")
	if err != nil {
		return err
	}
	return conn.Close()
}

func etcdReady(ctx context.Context) error {
	return ok(ctx, http.DefaultClient, "http://127.0.0.1:2379/health")
}

func apiserverReady(ctx context.Context) error { return get(ctx, "/readyz", nil) }

// nodeReady asks for a Ready condition that this run's kubelet vouches for, by
// having written it or renewed its lease: after a restart the last run's is
// there for a while. The first write comes at once on a new cluster, the first
// renewal on an old one; API times are in whole seconds.
func nodeReady(ctx context.Context, name string, since time.Time) error {
	if since.IsZero() {
		return errors.New("kubelet has not started")
	}
	var object struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
		}
	}
	if err := get(ctx, "/api/v1/nodes/"+name, &object); err != nil {
		return err
	}
	for _, c := range object.Status.Conditions {
		switch {
		case c.Type != "Ready":
			continue
		case c.Status != "True":
			return errors.New(c.Message)
		case !c.LastHeartbeatTime.Before(since.Truncate(time.Second)):
			return nil
		}
		var lease struct {
			Spec struct{ RenewTime time.Time }
		}
		if err := get(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+name, &lease); err != nil {
			return err
		}
		if lease.Spec.RenewTime.Before(since) {
			return errors.New("the kubelet has not reported yet")
		}
		return nil
	}
	return errors.New("the node has no Ready condition yet")
}

// dnsAnswers resolves a name by way of the DNS service's address, which takes
// CoreDNS, its connection to the apiserver and kube-proxy's rules.
func dnsAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, net.JoinHostPort(dnsIP, "53"))
	}}
	_, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	return err
}

// adminClient is made on first use: the certificates exist by then.
var adminClient = sync.OnceValues(func() (*http.Client, error) {
	ca, err := os.ReadFile(certFile("ca"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(certFile("admin"), keyFile("admin"))
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}},
	}}, nil
})

// get reads an object of the API as the administrator.
func get(ctx context.Context, path string, into any) error {
	client, err := adminClient()
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, adminURL+path, nil)
	if err != nil {
		return err
	}
	return fetch(client, request, into)
}

func ok(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return fetch(client, request, nil)
}

func fetch(client *http.Client, request *http.Request, into any) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", request.URL.Path, response.Status)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

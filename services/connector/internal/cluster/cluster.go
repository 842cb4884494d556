// Package cluster is the connector's way to one cluster: clients made of the
// kubeconfig that ctl sent, the checks that connecting needs, the Leases, and
// short-lived means for the tunnel.
//
// Every error that leaves it is a fault that names what could not be done, why,
// and a command that helps: "x509: certificate signed by unknown authority" is
// no answer to `ctl connect`. Refused rights name verb, resource and namespace.
//
// Credentials live in memory only. Exec credential plugins and files never are
// followed: they belong to the user's host, not to this container.
//
// A Cluster may be used concurrently and needs no closing.
package cluster

import (
	"context"
	"fmt"
	"time"

	"berth.dev/bus/fault"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Cluster is one cluster, as one user.
type Cluster struct {
	Kube   kubernetes.Interface
	Config *rest.Config
	// Server is the API server as the user knows it, for messages.
	Server     string
	kubeconfig []byte
}

// Open makes clients of a kubeconfig (JSON, minified, self-contained). It does
// not call the cluster. server is the URL that the user's own kubeconfig has.
func Open(kubeconfig []byte, server, userAgent string) (*Cluster, error) {
	cfg, err := restConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = userAgent
	// The client's own throttle is meant for controllers; here it would only
	// delay the handful of calls that a connect makes at once.
	cfg.QPS, cfg.Burst = 100, 200
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "kubectl config view --minify", "the kubeconfig cannot be used: %v", err)
	}
	if server == "" {
		server = cfg.Host
	}
	return &Cluster{Kube: kube, Config: cfg, Server: server, kubeconfig: kubeconfig}, nil
}

// restConfig reads kubeconfig and refuses what would have to be run or read on
// the user's host.
func restConfig(kubeconfig []byte) (*rest.Config, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.InvalidArgument, "kubectl config view --minify", format, args...)
	}
	raw, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return nil, bad("the kubeconfig cannot be read: %v", err)
	}
	cx := raw.Contexts[raw.CurrentContext]
	if cx == nil {
		return nil, bad("the kubeconfig has no context %q", raw.CurrentContext)
	}
	cl, user := raw.Clusters[cx.Cluster], raw.AuthInfos[cx.AuthInfo]
	switch {
	case cl == nil || cl.Server == "":
		return nil, bad("the kubeconfig names no server for the context %q", raw.CurrentContext)
	case user == nil:
		return nil, bad("the kubeconfig has no user %q", cx.AuthInfo)
	case user.Exec != nil:
		return nil, fault.New(fault.FailedPrecondition, "kubectl create token <serviceaccount> -n <namespace>",
			"the user %q of the kubeconfig gets its credentials from the plugin %q, which runs on the host only; use a context with a token or a certificate", cx.AuthInfo, user.Exec.Command)
	case user.AuthProvider != nil:
		return nil, fault.New(fault.FailedPrecondition, "kubectl create token <serviceaccount> -n <namespace>",
			"the user %q of the kubeconfig uses the auth provider %q, which Kubernetes has removed", cx.AuthInfo, user.AuthProvider.Name)
	case cl.CertificateAuthority != "" || user.ClientCertificate != "" || user.ClientKey != "" || user.TokenFile != "":
		return nil, bad("the kubeconfig refers to files; it must hold certificates and tokens itself (kubectl config view --minify --flatten)")
	}
	cfg, err := clientcmd.NewNonInteractiveClientConfig(*raw, raw.CurrentContext, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return nil, bad("the kubeconfig cannot be used: %v", err)
	}
	return cfg, nil
}

// withToken is the kubeconfig with the token in the place of the user's own
// credentials: what vif and the connector's own tunnel use.
func withToken(kubeconfig []byte, token string) ([]byte, error) {
	raw, err := clientcmd.Load(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	cx := raw.Contexts[raw.CurrentContext]
	out := clientcmdapi.NewConfig()
	out.Clusters["cluster"] = raw.Clusters[cx.Cluster]
	out.AuthInfos["tunnel"] = &clientcmdapi.AuthInfo{Token: token}
	out.Contexts["tunnel"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: "tunnel"}
	out.CurrentContext = "tunnel"
	return toJSON(out)
}

// toJSON is the kubeconfig as JSON, the form in which it rides the bus.
func toJSON(c *clientcmdapi.Config) ([]byte, error) {
	y, err := clientcmd.Write(*c)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	return yamlToJSON(y)
}

// Reach calls the API server and returns its version. It gives up after limit.
func (c *Cluster) Reach(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := discovery.ToServerVersionInterfaceWithContext(c.Kube.Discovery()).ServerVersionWithContext(ctx)
	if err != nil {
		return "", c.explain(err, Right{Verb: "get", Resource: "/version"})
	}
	if v.GitVersion == "" {
		return "", fault.New(fault.FailedPrecondition, "kubectl version", "%s answers, but not as a Kubernetes API server does", c.Server)
	}
	return v.GitVersion, nil
}

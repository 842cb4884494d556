package cluster

import (
	"context"
	"encoding/json"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TunnelAccount is the service account whose tokens open tunnels and nothing
// else (see deploy/manifests).
const TunnelAccount = "berth-tunnel"

// tokenLife is what is asked for; the API server may grant more or less.
const tokenLife = 30 * time.Minute

// Info reads what the manager publishes of itself.
func (c *Cluster) Info(ctx context.Context, namespace string) (lease.Info, error) {
	r := infoRight
	r.Namespace = namespace
	cm, err := c.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, lease.InfoConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return lease.Info{}, fault.New(fault.FailedPrecondition, "ctl install", "the cluster %s has no manager in the namespace %s", c.Server, namespace)
	case err != nil:
		return lease.Info{}, c.explain(err, r)
	}
	info, err := lease.Unmarshal[lease.Info](cm.Data[lease.InfoKey])
	if err != nil || info.Pin == "" {
		return lease.Info{}, fault.New(fault.FailedPrecondition, "ctl install", "the manager in the namespace %s has not published itself in a way that is understood (ConfigMap %s); it may be of another version", namespace, lease.InfoConfigMap)
	}
	return info, nil
}

// NamespaceExists fails with NotFound where it does not. Who may not look is
// believed: the Leases and workloads there will tell.
func (c *Cluster) NamespaceExists(ctx context.Context, namespace string) error {
	_, err := c.Kube.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fault.New(fault.NotFound, "kubectl get namespaces", "the cluster has no namespace %s", namespace)
	case apierrors.IsForbidden(err):
		return nil
	}
	return c.explain(err, Right{Verb: "get", Resource: "namespaces", Name: namespace})
}

// namespacesWithin bounds Namespaces, which nobody waits for in vain.
const namespacesWithin = 2 * time.Second

// Namespaces are the names of the cluster's, or none where the user may not list
// them: it is for convenience only.
func (c *Cluster) Namespaces(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, namespacesWithin)
	defer cancel()
	list, err := c.Kube.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	return names
}

// TunnelAccess makes the means to open tunnels: a token of the tunnel's account
// that lives for half an hour, or, where the user may not ask for one, the
// user's own credentials, if they suffice.
func (c *Cluster) TunnelAccess(ctx context.Context, namespace string) (command.Access, error) {
	seconds := int64(tokenLife.Seconds())
	tr, err := c.Kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, TunnelAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsForbidden(err):
		if err := c.DemandTunnel(ctx, namespace); err != nil {
			return command.Access{}, err
		}
		own, err := yamlToJSON(c.kubeconfig)
		if err != nil {
			return command.Access{}, err
		}
		return command.Access{Kubeconfig: own}, nil
	case apierrors.IsNotFound(err):
		return command.Access{}, fault.New(fault.FailedPrecondition, "ctl install", "the installation in the namespace %s has no service account %s; it is of another version", namespace, TunnelAccount)
	case err != nil:
		return command.Access{}, c.explain(err, Right{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Name: TunnelAccount, Namespace: namespace})
	}
	cfg, err := withToken(c.kubeconfig, tr.Status.Token)
	if err != nil {
		return command.Access{}, err
	}
	return command.Access{Kubeconfig: json.RawMessage(cfg), Expires: tr.Status.ExpirationTimestamp.Time}, nil
}

// yamlToJSON takes JSON as well.
func yamlToJSON(b []byte) ([]byte, error) {
	j, err := yaml.YAMLToJSON(b)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "kubectl config view --minify", "the kubeconfig cannot be read: %v", err)
	}
	return j, nil
}

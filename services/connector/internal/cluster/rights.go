package cluster

import (
	"context"
	"fmt"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/lease"

	"golang.org/x/sync/errgroup"
	authv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Right is what RBAC grants or not: a verb on a resource in a namespace.
type Right struct {
	Verb, Group, Resource, Subresource, Namespace, Name string
}

// String is the right in the words of kubectl auth can-i.
func (r Right) String() string {
	res := r.Resource
	if r.Subresource != "" {
		res += "/" + r.Subresource
	}
	if r.Group != "" {
		res += "." + r.Group
	}
	if r.Name != "" {
		res += " " + r.Name
	}
	if r.Namespace == "" {
		return r.Verb + " " + res
	}
	return fmt.Sprintf("%s %s in the namespace %s", r.Verb, res, r.Namespace)
}

// hint is the command that shows the same.
func (r Right) hint() string {
	var b strings.Builder
	fmt.Fprintf(&b, "kubectl auth can-i %s %s", r.Verb, r.Resource)
	if r.Group != "" {
		b.WriteString("." + r.Group)
	}
	if r.Name != "" {
		b.WriteString("/" + r.Name)
	}
	if r.Subresource != "" {
		b.WriteString(" --subresource=" + r.Subresource)
	}
	if r.Namespace != "" {
		b.WriteString(" -n " + r.Namespace)
	}
	return b.String()
}

func (r Right) denied(err error) error {
	msg := "you may not " + r.String()
	if err != nil && r.Verb == "" {
		msg = err.Error()
	}
	return fault.New(fault.PermissionDenied, r.hint(), "%s", msg)
}

// LeaseRights are what holding a Lease in the namespace takes.
func LeaseRights(namespace string) []Right {
	var rs []Right
	for _, v := range []string{"create", "get", "patch", "delete"} {
		rs = append(rs, Right{Verb: v, Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace})
	}
	return rs
}

// TunnelRights are what opening the tunnel with the user's own credentials
// takes: one of the two ways through the API server.
func TunnelRights(namespace string) (always []Right, oneOf []Right) {
	return []Right{{Verb: "list", Resource: "pods", Namespace: namespace}},
		[]Right{
			{Verb: "get", Resource: "pods", Subresource: "proxy", Namespace: namespace},
			{Verb: "create", Resource: "pods", Subresource: "portforward", Namespace: namespace},
		}
}

// May reports for each right whether the user has it.
func (c *Cluster) May(ctx context.Context, rights ...Right) ([]bool, error) {
	may := make([]bool, len(rights))
	g, ctx := errgroup.WithContext(ctx)
	for i, r := range rights {
		g.Go(func() error {
			rev, err := c.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authv1.SelfSubjectAccessReview{
				Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authv1.ResourceAttributes{
					Namespace: r.Namespace, Verb: r.Verb, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Name: r.Name,
				}},
			}, metav1.CreateOptions{})
			if err != nil {
				return c.explain(err, Right{Verb: "create", Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"})
			}
			may[i] = rev.Status.Allowed
			return nil
		})
	}
	return may, g.Wait()
}

// Demand fails with a PermissionDenied fault that names every right that is
// missing.
func (c *Cluster) Demand(ctx context.Context, rights ...Right) error {
	may, err := c.May(ctx, rights...)
	if err != nil {
		return err
	}
	var missing []string
	var first Right
	for i, ok := range may {
		if !ok {
			if len(missing) == 0 {
				first = rights[i]
			}
			missing = append(missing, rights[i].String())
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fault.New(fault.PermissionDenied, first.hint(), "you may not %s", strings.Join(missing, ", nor "))
}

// DemandTunnel fails where the user's own credentials do not suffice for the
// tunnel.
func (c *Cluster) DemandTunnel(ctx context.Context, namespace string) error {
	always, oneOf := TunnelRights(namespace)
	if err := c.Demand(ctx, always...); err != nil {
		return err
	}
	may, err := c.May(ctx, oneOf...)
	if err != nil {
		return err
	}
	for _, ok := range may {
		if ok {
			return nil
		}
	}
	return fault.New(fault.PermissionDenied, oneOf[0].hint(), "the tunnel to the manager needs one of: %s; %s", oneOf[0], oneOf[1])
}

var infoRight = Right{Verb: "get", Resource: "configmaps", Name: lease.InfoConfigMap}

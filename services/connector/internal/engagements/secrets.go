package engagements

import (
	"bytes"
	"context"
	"path"
	"slices"
	"strings"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/workload"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Secrets of the container would reach the developer with its environment and
// its volumes. Before an engagement is accepted the API server is asked, with the
// user's own credentials, whether the user may read each of them. What is masked
// is taken out here, before it reaches the handler, a file or a command.
//
// It keeps a developer from being handed what RBAC does not give him, and says in
// a fact which Secrets there were. It is no wall against a changed connector: who
// may create engagements in a namespace is RBAC's to say (docs/adr/0007-environment-and-secrets.md).

// masked stands for a value that is not given.
const masked = "masked"

// review is what was decided about the Secrets of a container.
type review struct {
	policy  string
	granted []string             // names
	masked  []workload.SecretUse // of what is not given
	// known are variables that are not a masked Secret's, where there is one
	// whose keys nobody here knows (envFrom).
	known map[string]bool
	env   []corev1.EnvVar // of the container's template
}

// reviewSecrets asks, and decides by the request's policy:
//
//	allow (or none)  every Secret; refused where the user may not read one
//	mask             those that the user may read; the others are masked
//	deny             none: all are masked
func reviewSecrets(ctx context.Context, c *cluster.Cluster, w workload.Workload, container corev1.Container, policy string) (*review, error) {
	uses := w.Secrets(container)
	if len(uses) == 0 {
		return nil, nil
	}
	r := &review{policy: policy, env: container.Env}
	if r.policy == "" {
		r.policy = command.SecretsAllow
	}
	may := make([]bool, len(uses))
	if r.policy != command.SecretsDeny {
		var rights []cluster.Right
		for _, u := range uses {
			rights = append(rights, cluster.Right{Verb: "get", Resource: "secrets", Name: u.Name, Namespace: w.Namespace})
		}
		var err error
		if may, err = c.May(ctx, rights...); err != nil {
			return nil, err
		}
	}
	var refused []string
	for i, u := range uses {
		switch {
		case may[i]:
			r.granted = append(r.granted, u.Name)
		case r.policy == command.SecretsAllow:
			refused = append(refused, u.Name)
		default:
			r.masked = append(r.masked, u)
		}
	}
	if len(refused) > 0 {
		return nil, fault.New(fault.PermissionDenied, "--secrets mask", "the container %s has Secrets that you may not read in the namespace %s: %s", container.Name, w.Namespace, strings.Join(refused, ", "))
	}
	if slices.ContainsFunc(r.masked, func(u workload.SecretUse) bool { return len(u.Prefixes) > 0 }) {
		r.learnKnown(ctx, c, w.Namespace, container)
	}
	return r, nil
}

// learnKnown finds out which variables are certainly no masked Secret's: those
// that the template names, and the keys of what may be read. What cannot be read
// is not known, and so is masked as well.
func (r *review) learnKnown(ctx context.Context, c *cluster.Cluster, namespace string, container corev1.Container) {
	r.known = map[string]bool{}
	for _, e := range container.Env {
		r.known[e.Name] = true
	}
	for _, f := range container.EnvFrom {
		switch {
		case f.ConfigMapRef != nil:
			if cm, err := c.Kube.CoreV1().ConfigMaps(namespace).Get(ctx, f.ConfigMapRef.Name, metav1.GetOptions{}); err == nil {
				for k := range cm.Data {
					r.known[f.Prefix+k] = true
				}
			}
		case f.SecretRef != nil && slices.Contains(r.granted, f.SecretRef.Name):
			if s, err := c.Kube.CoreV1().Secrets(namespace).Get(ctx, f.SecretRef.Name, metav1.GetOptions{}); err == nil {
				for k := range s.Data {
					r.known[f.Prefix+k] = true
				}
			}
		}
	}
}

// fact is the review as a fact: names only. nil where there was nothing to review.
func (r *review) fact() event.Data {
	if r == nil {
		return nil
	}
	f := event.SecretsReviewed{Policy: r.policy, Granted: r.granted, Masked: []string{}}
	if f.Granted == nil {
		f.Granted = []string{}
	}
	for _, u := range r.masked {
		f.Masked = append(f.Masked, u.Name)
	}
	return f
}

// mask takes out what is not given: values of variables, and mounts.
func (r *review) mask(env lease.Environment) lease.Environment {
	if r == nil || len(r.masked) == 0 {
		return env
	}
	hidden := r.hidden(env)
	out := env
	out.Env = make([][]byte, len(env.Env))
	for i, e := range env.Env {
		k, _, _ := bytes.Cut(e, []byte("="))
		if hidden[string(k)] {
			e = []byte(string(k) + "=" + masked)
		}
		out.Env[i] = e
	}
	out.Mounts = slices.DeleteFunc(slices.Clone(env.Mounts), r.hides)
	out.Volumes = slices.DeleteFunc(slices.Clone(env.Volumes), func(v lease.Volume) bool { return r.hides(v.Path) })
	return out
}

// hides reports whether a mount is of a masked Secret.
func (r *review) hides(mount string) bool {
	return slices.ContainsFunc(r.masked, func(u workload.SecretUse) bool {
		return slices.ContainsFunc(u.Paths, func(p string) bool { return path.Clean(p) == path.Clean(mount) })
	})
}

// hidden are the variables that are masked: those of masked Secrets, those whose
// value is made of one of them by $(NAME), and, where the keys of a masked Secret
// are not known, whatever else could be one of them.
func (r *review) hidden(env lease.Environment) map[string]bool {
	h := map[string]bool{}
	whole := false
	for _, u := range r.masked {
		for _, v := range u.Vars {
			h[v] = true
		}
		whole = whole || len(u.Prefixes) > 0
	}
	if whole {
		for _, e := range env.Env {
			k, _, _ := bytes.Cut(e, []byte("="))
			name := string(k)
			if r.known[name] || strings.HasPrefix(name, "KUBERNETES_") || !r.prefixed(name) {
				continue
			}
			h[name] = true
		}
	}
	for again := true; again; {
		again = false
		for _, e := range r.env {
			if h[e.Name] {
				continue
			}
			for name := range h {
				if strings.Contains(e.Value, "$("+name+")") {
					h[e.Name], again = true, true
				}
			}
		}
	}
	return h
}

// prefixed reports whether a name could be a key of a Secret that is masked whole.
func (r *review) prefixed(name string) bool {
	return slices.ContainsFunc(r.masked, func(u workload.SecretUse) bool {
		return slices.ContainsFunc(u.Prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
	})
}

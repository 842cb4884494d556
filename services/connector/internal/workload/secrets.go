package workload

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// SecretUse is how a container has a Secret.
type SecretUse struct {
	Name     string
	Vars     []string // variables that are keys of it
	Prefixes []string // of the variables that all of its keys become (envFrom); often ""
	Paths    []string // where it is mounted
}

// Secrets are those that a container has by its template, by name. Volumes that
// are a service account's token are no Secrets.
func (w Workload) Secrets(c corev1.Container) []SecretUse {
	uses := map[string]*SecretUse{}
	use := func(name string) *SecretUse {
		if uses[name] == nil {
			uses[name] = &SecretUse{Name: name}
		}
		return uses[name]
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			u := use(e.ValueFrom.SecretKeyRef.Name)
			u.Vars = append(u.Vars, e.Name)
		}
	}
	for _, f := range c.EnvFrom {
		if f.SecretRef != nil {
			u := use(f.SecretRef.Name)
			u.Prefixes = append(u.Prefixes, f.Prefix)
		}
	}
	for _, v := range w.Volumes {
		for _, name := range secretsOf(v) {
			for _, m := range c.VolumeMounts {
				if m.Name == v.Name {
					u := use(name)
					u.Paths = append(u.Paths, m.MountPath)
				}
			}
		}
	}
	all := []SecretUse{}
	for _, u := range uses {
		all = append(all, *u)
	}
	slices.SortFunc(all, func(a, b SecretUse) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// secretsOf are the Secrets whose content a volume is.
func secretsOf(v corev1.Volume) (names []string) {
	switch {
	case v.Secret != nil:
		return []string{v.Secret.SecretName}
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				names = append(names, s.Secret.Name)
			}
		}
	}
	return names
}

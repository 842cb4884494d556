// Package environment is what the engaged container would have had: the
// environment that kubelet made for it, which is the agent's own, since the
// agent was put into that container.
//
// BERTH_CONTAINER, BERTH_MOUNTS, BERTH_ROOT and BERTH_ENGAGEMENT_ID are not
// added here but by connector, which knows where volumes are mounted.
package environment

import (
	"slices"
	"strings"

	"berth.dev/lease"
)

// own are variables that belong to the image or the machine, not to the workload.
var own = []string{"HOME", "PATH", "HOSTNAME"}

// Read sorts environ (KEY=value) and leaves out the agent's own. It is taken
// once, at the start: a config map that changes later does not reach a running
// container either.
func Read(environ, mounts []string) lease.Environment {
	env := lease.Environment{Env: [][]byte{}, Mounts: mounts}
	kept := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return slices.Contains(own, key) || strings.HasPrefix(key, "BERTH_AGENT_")
	})
	slices.SortFunc(kept, func(a, b string) int {
		ka, _, _ := strings.Cut(a, "=")
		kb, _, _ := strings.Cut(b, "=")
		return strings.Compare(ka, kb)
	})
	for _, kv := range kept {
		env.Env = append(env.Env, []byte(kv))
	}
	return env
}

package tunnelserver

import (
	"bytes"
	"path"
	"slices"

	"berth.dev/lease"
)

// exclude takes the variables out of an environment that the installation keeps
// in the cluster; patterns are those of path.Match, checked when they were given.
func exclude(env lease.Environment, patterns []string) lease.Environment {
	env.Env = slices.DeleteFunc(env.Env, func(e []byte) bool {
		name, _, _ := bytes.Cut(e, []byte("="))
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, _ := path.Match(p, string(name))
			return ok
		})
	})
	return env
}

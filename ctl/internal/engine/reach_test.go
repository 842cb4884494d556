package engine

import (
	"strings"
	"testing"

	"berth.dev/bus/fault"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/system"
)

func TestReach(t *testing.T) {
	good := system.Info{OSType: "linux", IPv4Forwarding: true, OperatingSystem: "Debian GNU/Linux 12"}
	with := func(change func(*system.Info)) system.Info { i := good; change(&i); return i }
	for _, c := range []struct {
		name  string
		v     types.Version
		info  system.Info
		host  string
		says  []string
		fault string
	}{
		{"today's", types.Version{APIVersion: "1.51"}, good, "unix:///var/run/docker.sock", []string{"Docker Engine: everything"}, ""},
		{"20.10", types.Version{APIVersion: "1.41"}, good, "unix:///var/run/docker.sock", []string{"--mac-address", "default route"}, ""},
		{"25", types.Version{APIVersion: "1.44"}, good, "unix:///var/run/docker.sock", []string{"Docker Engine: a network", "default route"}, ""},
		{"Desktop", types.Version{APIVersion: "1.51"}, with(func(i *system.Info) { i.OperatingSystem = "Docker Desktop" }), "npipe:////./pipe/docker_engine", []string{"Docker Desktop: everything"}, ""},
		{"rootless", types.Version{APIVersion: "1.51"}, with(func(i *system.Info) {
			i.SecurityOptions = []string{"name=seccomp,profile=builtin", "name=rootless"}
			i.IPv4Forwarding = false
		}), "unix:///run/user/1/docker.sock", []string{"(rootless)", "not tested", "below 1024"}, ""},
		{"Podman", types.Version{APIVersion: "1.41", Components: []types.ComponentVersion{{Name: "Podman Engine"}}}, good, "unix:///run/podman/podman.sock", []string{"Podman: not far enough: Podman 4.3 was tried"}, ""},
		{"by ssh", types.Version{APIVersion: "1.51"}, good, "ssh://me@there", []string{"another machine (ssh://me@there)", "published ports"}, ""},
		{"too old", types.Version{APIVersion: "1.40"}, good, "", nil, "1.40"},
		{"Windows containers", types.Version{APIVersion: "1.51"}, with(func(i *system.Info) { i.OSType = "windows" }), "", nil, "windows containers"},
		{"no forwarding", types.Version{APIVersion: "1.51"}, with(func(i *system.Info) { i.IPv4Forwarding = false }), "", nil, "forward"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := reach(c.v, c.info, c.host)
			if c.fault != "" {
				if f := fault.From(err); f == nil || f.Code != fault.FailedPrecondition || f.Hint == "" || !strings.Contains(f.Message, c.fault) {
					t.Errorf("%+v", f)
				}
				return
			}
			for _, s := range c.says {
				if err != nil || !strings.Contains(r.String(), s) {
					t.Errorf("%q, %v does not say %q", r, err, s)
				}
			}
		})
	}
}

// The engine at hand.
func TestReachOfThisEngine(t *testing.T) {
	e, err := Open(t.Context())
	if err != nil {
		t.Fatalf("%s needs a Docker Engine: %v", t.Name(), err)
	}
	defer e.Close()
	if r, err := e.Reach(t.Context()); err != nil || r.Kind == "" {
		t.Errorf("%v, %v", r, err)
	}
}

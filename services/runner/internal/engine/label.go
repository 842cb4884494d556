package engine

import (
	"maps"

	"github.com/docker/docker/api/types/filters"
)

// Labels on everything that Berth creates on the engine. Whoever finds one on
// something whose owner is gone may remove it. Never a value of the remote
// environment in a label: `docker inspect` shows them to everybody.
const (
	LabelWorkspace  = "berth.dev/workspace"
	LabelComponent  = "berth.dev/component"
	LabelVersion    = "berth.dev/version"
	LabelConnection = "berth.dev/connection" // id
	LabelEngagement = "berth.dev/engagement" // id
	LabelPorts      = "berth.dev/ports"      // of a handler: 8080/TCP,53/UDP
	LabelGuest      = "berth.dev/guest"      // id that ties what docker-run needs to its container
	LabelPublished  = "berth.dev/published"  // 127.0.0.1:8080->80/tcp,…: held by a forwarder
	LabelNetworks   = "berth.dev/networks"   // that the daemon container joined for this one, by ID
)

// Values of LabelComponent.
const (
	Connector = "connector"
	Runner    = "runner"
	Daemon    = "daemon"
	Handler   = "handler"
	Curl      = "curl"
	DockerRun = "docker-run"
	Forwarder = "forwarder"
	Telemount = "telemount" // the volume plugin, where it runs in a container
)

// Labels are the labels of a new object: extra (a user's, a caller's), and ours,
// which win. Empty values are left out.
func (e *Engine) Labels(component, connection, engagement string, extra map[string]string) map[string]string {
	l := map[string]string{}
	maps.Copy(l, extra)
	for k, v := range map[string]string{
		LabelWorkspace: e.Workspace, LabelComponent: component, LabelVersion: e.Version,
		LabelConnection: connection, LabelEngagement: engagement,
	} {
		delete(l, k)
		if v != "" {
			l[k] = v
		}
	}
	return l
}

// Label is a condition on a label.
type Label struct{ key, value string }

// Is demands that label key has value.
func Is(key, value string) Label { return Label{key, value} }

// filter selects this workspace's objects that have all the labels.
func (e *Engine) filter(labels ...Label) filters.Args {
	f := filters.NewArgs(filters.Arg("label", LabelWorkspace+"="+e.Workspace))
	for _, l := range labels {
		f.Add("label", l.key+"="+l.value)
	}
	return f
}

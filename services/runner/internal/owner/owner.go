// Package owner says for whom something is held beside a container in a
// connection's network: published ports, networks that the daemon container
// joined. It is held from before that container is created until after it ended.
package owner

import (
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
)

// Owner is a handler or a container of docker-run.
type Owner struct {
	Connection string
	Engagement string // of a handler; else
	Guest      string // of a container of docker-run
	Name       string // the container's
}

// Key tells owners apart.
func (o Owner) Key() string { return o.Engagement + o.Guest }

// Hint is the command that ends an owner.
func (o Owner) Hint() string {
	if o.Engagement != "" {
		return "ctl leave " + o.Engagement
	}
	return "docker stop " + o.Name
}

// Of is the owner that a container's labels name, as owner or as what belongs to
// one; its Key is "" where there is none.
func Of(labels map[string]string) Owner {
	return Owner{Connection: labels[engine.LabelConnection], Engagement: labels[engine.LabelEngagement], Guest: labels[engine.LabelGuest]}
}

// Living are the containers of a list that own what their labels say, with their
// labels: handlers and containers of docker-run that have not ended.
func Living(list []container.Summary) (owners []Owner, labels []map[string]string) {
	for _, c := range list {
		switch c.Labels[engine.LabelComponent] {
		case engine.Handler, engine.DockerRun:
		default:
			continue
		}
		switch c.State {
		case container.StateExited, container.StateDead, container.StateRemoving:
			continue
		}
		o := Of(c.Labels)
		if o.Key() == "" {
			continue
		}
		o.Name = engine.NameOf(c)
		owners, labels = append(owners, o), append(labels, c.Labels)
	}
	return owners, labels
}

package engine

import (
	"context"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// remembering is the client, less what an engine lists and does not have.
type remembering struct{ client.APIClient }

// ContainerList leaves out what the engine has forgotten: a container whose end is
// noted while it is removed stays in the engine's list, without its name, until
// that is restarted (20.10; with several of ours not rare where an engine starts
// again). All that can be had of it is "no such container": it cannot be removed,
// and is not left.
func (r remembering) ContainerList(ctx context.Context, o container.ListOptions) ([]container.Summary, error) {
	l, err := r.APIClient.ContainerList(ctx, o)
	return slices.DeleteFunc(l, func(c container.Summary) bool {
		if len(c.Names) > 0 {
			return false
		}
		_, err := r.ContainerInspect(ctx, c.ID)
		return errdefs.IsNotFound(err)
	}), err
}

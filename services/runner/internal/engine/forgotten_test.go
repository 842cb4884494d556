package engine

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// forgetful lists a container that it does not have, as engines do.
type forgetful struct{ client.APIClient }

func (forgetful) ContainerList(context.Context, container.ListOptions) ([]container.Summary, error) {
	return []container.Summary{{ID: "gone"}, {ID: "dead"}, {ID: "there", Names: []string{"/there"}}}, nil
}

func (forgetful) ContainerInspect(_ context.Context, id string) (container.InspectResponse, error) {
	if id == "gone" {
		return container.InspectResponse{}, errdefs.ErrNotFound
	}
	return container.InspectResponse{}, nil
}

func TestForgotten(t *testing.T) {
	l, err := remembering{forgetful{}}.ContainerList(t.Context(), container.ListOptions{All: true})
	if err != nil || len(l) != 2 || l[0].ID != "dead" || l[1].ID != "there" {
		t.Errorf("%v, %v", l, err)
	}
}

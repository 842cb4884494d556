// Package beside holds what a container has beside the network that it shares
// with its connection's daemon container: ports that are published for it, and
// networks that are joined for it. Both come before the container and go after
// it; both or none.
package beside

import (
	"context"
	"strings"

	"berth.dev/bus/event"
	"berth.dev/services/runner/internal/engine"
	"berth.dev/services/runner/internal/network"
	"berth.dev/services/runner/internal/owner"
	"berth.dev/services/runner/internal/ports"

	"github.com/docker/go-connections/nat"
)

// Want is what a container is to have.
type Want struct {
	Ports    ports.Want
	Networks network.Want
}

// Has is what it has.
type Has struct {
	Published []event.Published
	Networks  []string // IDs
}

// Labels on the container by which a later runner knows what it has.
func (h Has) Labels() map[string]string {
	l := map[string]string{}
	if len(h.Published) > 0 {
		l[engine.LabelPublished] = ports.Label(h.Published)
	}
	if len(h.Networks) > 0 {
		l[engine.LabelNetworks] = strings.Join(h.Networks, ",")
	}
	return l
}

// Holder holds it.
type Holder struct {
	Ports    *ports.Set
	Networks *network.Attached
}

// Open makes what an owner wants; what it has already is fine. The ports come
// first: that one is busy is the likelier refusal.
func (h Holder) Open(ctx context.Context, o owner.Owner, w Want) (Has, error) {
	published, err := h.Ports.Open(ctx, o, w.Ports)
	if err != nil {
		return Has{}, err
	}
	ids, err := h.Networks.Join(ctx, o, w.Networks)
	if err != nil {
		h.Ports.CloseSoon(ctx, o)
		return Has{}, err
	}
	return Has{published, ids}, nil
}

// Close takes it all back. It outlives ctx for a while; what cannot be undone
// then is logged, and left to the next sweep.
func (h Holder) Close(ctx context.Context, o owner.Owner) {
	h.Ports.CloseSoon(ctx, o) // first: a port of the host may be waited for
	h.Networks.LeaveSoon(ctx, o)
}

// Clash refuses ports that another owner of the connection has.
func (h Holder) Clash(o owner.Owner, want nat.PortMap) error { return h.Ports.Clash(o, want) }

// Adopt takes over what an earlier runner left of living owners.
func (h Holder) Adopt(ctx context.Context) error {
	if err := h.Ports.Adopt(ctx); err != nil {
		return err
	}
	return h.Networks.Adopt(ctx)
}

// Holds reports whether a forwarder's container or volume, by its labels,
// belongs to somebody.
func (h Holder) Holds(labels map[string]string, known func(engagement string) bool) bool {
	return h.Ports.Holds(labels, known)
}

// Reconcile leaves networks that were joined for nobody who is left.
func (h Holder) Reconcile(ctx context.Context, known func(engagement string) bool) error {
	return h.Networks.Reconcile(ctx, known)
}

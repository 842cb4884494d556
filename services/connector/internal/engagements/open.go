package engagements

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/engage"
	"berth.dev/services/connector/internal/workload"

	corev1 "k8s.io/api/core/v1"
)

// validate checks what can be checked without anybody's help, and fills in what
// has a default.
func validate(req *command.OpenEngagement) error {
	bad := func(hint, format string, args ...any) error {
		return fault.New(fault.InvalidArgument, hint, format, args...)
	}
	switch {
	case !subject.Valid(req.ID):
		return bad("", "the engagement's id %q is not a token", req.ID)
	case !subject.Valid(req.Connection):
		return bad("", "the connection's id %q is not a token", req.Connection)
	case req.Workload == "":
		return bad("ctl list", "no workload is named")
	}
	switch lease.Kind(req.Kind) {
	case lease.Replace, lease.Intercept, lease.Wiretap:
	case lease.Ingest:
		if len(req.Ports) > 0 {
			return bad("ctl intercept "+req.Workload+" --port "+req.Ports[0], "an ingest has no traffic, so no ports")
		}
	default:
		return bad("", "%q is no kind of engagement: replace, intercept, ingest, wiretap", req.Kind)
	}
	if req.Service != "" && !lease.Kind(req.Kind).Diverts() {
		return bad("ctl intercept "+req.Workload, "--service belongs to an intercept or a wiretap")
	}
	if _, err := filterOf(*req); err != nil {
		return err
	}
	if _, err := workload.ToPod(req.ToPod, nil); err != nil {
		return err
	}
	if req.Address == "" {
		req.Address = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(req.Address); err != nil {
		return bad("--address 127.0.0.1", "--address %s: not an IP address", req.Address)
	}
	switch req.Wait {
	case "", command.WaitNone, command.WaitListening:
	case command.WaitHealthy:
		if req.Handler == nil {
			return bad("--wait listening", "--wait healthy needs a handler in a container")
		}
	default:
		return bad("--wait listening", "--wait is none, listening or healthy, not %q", req.Wait)
	}
	switch req.Secrets {
	case "", command.SecretsAllow, command.SecretsMask, command.SecretsDeny:
	default:
		return bad("--secrets mask", "--secrets is allow, mask or deny, not %q", req.Secrets)
	}
	if req.WaitMillis < 0 {
		return bad("", "the limit of the wait is negative")
	}
	if _, err := wishOf(*req); err != nil {
		return err
	}
	if req.VolumesPin != "" && req.Handler != nil {
		return bad("", "volumesPin is for a handler that is no container: whose volumes are mounted by the volume plugin")
	}
	if req.Holder != "" {
		// Its owner is asked whether it lives by a request: that must not become
		// a way to send commands in connector's name.
		rest, ok := strings.CutPrefix(req.Holder, subject.Root+".live.")
		service, id, two := strings.Cut(rest, ".")
		if !ok || !two || !subject.Valid(service) || !subject.Valid(id) {
			return bad("", "the holder %q is not a presence subject", req.Holder)
		}
	}
	return nil
}

// openWithin bounds all that could refuse an engagement. The longest of it is the
// engine's: the handler's ports are published. ctl waits for 30 s.
const openWithin = 25 * time.Second

// open checks everything that could refuse the engagement, and creates the Lease
// last: whoever is refused has touched nothing.
func (s *Set) open(ctx context.Context, req command.OpenEngagement, conn Connection) (live *Live, err error) {
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	ns := req.Namespace
	if ns == "" {
		ns = conn.Namespace
	}
	w, err := workload.Find(ctx, conn.Cluster, ns, req.Workload, lease.Kind(req.Kind))
	if err != nil {
		return nil, err
	}
	if o := w.Obstacle(lease.Kind(req.Kind)); o != nil {
		return nil, o
	}
	c, ports, err := choose(ctx, conn, w, req)
	if err != nil {
		return nil, err
	}
	filter, err := filterOf(req)
	if err != nil {
		return nil, err
	}
	if err := shareable(lease.EngagementSpec{Kind: lease.Kind(req.Kind), Filter: filter, Ports: ports}, conn); err != nil {
		return nil, err
	}
	secrets, err := reviewSecrets(ctx, conn.Cluster, w, c, req.Secrets)
	if err != nil {
		return nil, err
	}
	reach, err := workload.ToPod(req.ToPod, ports)
	if err != nil {
		return nil, err
	}
	name := w.EngagementName(c.Name)
	p := plan{
		req: req, conn: conn, secrets: secrets, ports: eventPorts(ports),
		handlerName: workload.HandlerName(name, ports),
	}
	switch { // of which there may be several
	case lease.Kind(req.Kind) == lease.Ingest:
		p.handlerName = workload.IngestName(name, req.ID)
	case filter.Filtered(), lease.Kind(req.Kind) == lease.Wiretap:
		p.handlerName += "-" + req.ID
	}
	p.spec = lease.EngagementSpec{
		ID: req.ID, Connection: conn.ID, Client: conn.Client, Kind: lease.Kind(req.Kind),
		WorkloadKind: w.Kind, Workload: w.Name, Container: c.Name, Ports: ports, ToPod: reach, Filter: filter,
	}
	if err := conn.Cluster.Conflict(ctx, ns, p.spec); err != nil {
		return nil, err
	}
	requested := event.EngagementRequested{
		Name: name, Connection: conn.ID, Kind: req.Kind, Namespace: ns,
		WorkloadKind: w.Kind, Workload: w.Name, Container: c.Name, Filter: filter.String(),
	}
	mode := engage.Caller
	if req.Handler == nil && req.VolumesPin != "" {
		want, err := wishOf(req)
		if err != nil {
			return nil, err
		}
		if !want.off {
			p.volumes = &volumes{wish: want, plugin: command.VolumePlugin{Pin: req.VolumesPin}, token: rand.Text()}
		}
	}
	if h := req.Handler; h != nil {
		mode = engage.Detached
		if h.Attach {
			mode = engage.Attach
		}
		// Not err anew: what is deferred here looks at the function's own.
		var want wish
		if want, err = wishOf(req); err != nil {
			return nil, err
		}
		var checked command.CheckedHandler
		checked, err = bus.Call(ctx, s.w.Bus, command.HandlerCheck, "", command.CheckHandler{
			Connection: conn.ID, Handler: *h, Name: p.handlerName, Ports: p.ports, Engagement: req.ID, Volumes: !want.off,
		})
		if err != nil {
			return nil, err
		}
		defer func() { // the ports that the handler publishes are its own from here on
			if err != nil {
				s.giveUpHandler(req.ID)
			}
		}()
		requested.Image, p.forwarded = checked.Image, checked.Forwarded
		if p.volumes, requested.NoVolumes, err = newVolumes(want, checked.Volumes); err != nil {
			return nil, err
		}
	}
	p.spec.TokenHash = p.volumes.hash()
	ref, version, err := conn.Cluster.HoldEngagement(ctx, ns, p.spec)
	if err != nil {
		return nil, err
	}
	if err := s.w.Bus.State(ctx, req.ID, requested); err != nil {
		undo, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if derr := conn.Cluster.Drop(undo, ref); derr != nil {
			s.w.Log.Warn("the engagement's lease is left to the manager", "engagement", req.ID, "err", derr)
		}
		return nil, fmt.Errorf("state that the engagement was requested: %w", err)
	}
	if f := secrets.fact(); f != nil {
		if err := s.w.Bus.State(ctx, req.ID, f); err != nil {
			s.w.Log.Error("the review of Secrets could not be stated", "engagement", req.ID, "err", err)
		}
	}
	p.ref, p.version = ref, version
	return newLive(s.w, p, engage.Begin(req.ID, requested, mode, p.ports, time.Now())), nil
}

// choose finds container and ports, as the kind of engagement understands them.
func choose(ctx context.Context, conn Connection, w workload.Workload, req command.OpenEngagement) (c corev1.Container, ports []lease.Port, err error) {
	if lease.Kind(req.Kind).Diverts() {
		services, err := workload.Services(ctx, conn.Cluster, w)
		if err != nil {
			return c, nil, err
		}
		return w.Intercept(req.Container, req.Ports, services, req.Service)
	}
	if c, err = w.Container(req.Container); err != nil || lease.Kind(req.Kind) == lease.Ingest {
		return c, nil, err
	}
	ports, err = workload.Ports(c, req.Ports)
	return c, ports, err
}

// giveUpHandler has runner let go of what it holds for a handler that will not be
// created.
func (s *Set) giveUpHandler(engagement string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := bus.Call(ctx, s.w.Bus, command.HandlerStop, "", command.EngagementRef{Engagement: engagement}); err != nil {
		s.w.Log.Warn("what runner holds for a handler that was refused is left to its sweep", "engagement", engagement, "err", err)
	}
}

// eventPorts are the Lease's ports as facts have them.
func eventPorts(ports []lease.Port) []event.Port {
	out := []event.Port{}
	for _, p := range ports {
		h := p.Handler
		if h == 0 {
			h = p.Container
		}
		out = append(out, event.Port{Container: p.Container, Handler: h, Protocol: p.Protocol, Name: p.Name})
	}
	return out
}

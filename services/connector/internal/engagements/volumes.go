package engagements

import (
	"context"
	"crypto/rand"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/lease"
)

// How the volumes of the engaged container come to the handler: each directory
// is a Docker volume of telemount's, which runner creates with the handler and
// removes after it. Telemount reaches it through vif (its door), the manager and
// an agent, with a token that connector makes for this engagement: only its hash
// is in the Lease, and only vif is told the token itself.

// wish is what --mount and --docker-mount ask for.
type wish struct {
	off      bool          // nothing is to be mounted
	asked    bool          // it was said that it is: without a volume plugin the engagement is refused
	readOnly bool          // whatever the kind of engagement
	timeout  time.Duration // 0: the volume plugin's default
	root     string        // folder below which the volumes are mounted; / is each at its own path
}

// wishOf reads the two flags.
func wishOf(req command.OpenEngagement) (wish, error) {
	bad := func(hint, format string, args ...any) (wish, error) {
		return wish{}, fault.New(fault.InvalidArgument, hint, format, args...)
	}
	w := wish{root: "/", asked: req.Mount != "" || req.DockerMount != "", timeout: time.Duration(req.MountTimeoutMillis) * time.Millisecond}
	if w.timeout != 0 && (w.timeout < command.MountTimeoutMin || w.timeout > command.MountTimeoutMax) {
		return bad("--mount-timeout 30s", "--mount-timeout %v: it is %v to %v", w.timeout, command.MountTimeoutMin, command.MountTimeoutMax)
	}
	what := req.Mount
	if rest, ro := strings.CutSuffix(what, ":ro"); ro {
		what, w.readOnly = rest, true
	}
	switch {
	case what == "" && w.readOnly:
		return bad("--mount true:ro", "--mount %s names no folder", req.Mount)
	case what == "" || what == "true":
	case what == "false" && !w.readOnly:
		if req.DockerMount != "" {
			return bad("", "--mount false and --docker-mount exclude each other")
		}
		return wish{off: true, root: "/"}, nil
	case !path.IsAbs(what):
		return bad("--mount true", "--mount %s: it is true, false, or an absolute path in the handler, with :ro behind it for read-only", req.Mount)
	default:
		w.root = path.Clean(what)
	}
	if d := req.DockerMount; d != "" {
		if !path.IsAbs(d) {
			return bad("--docker-mount /remote", "--docker-mount %s: not an absolute path in the handler", d)
		}
		w.root = path.Clean(d)
	}
	return w, nil
}

// volumes is how they are mounted for one engagement.
type volumes struct {
	wish
	plugin command.VolumePlugin
	token  string // a secret
}

// newVolumes decides whether there are any; without, why says the reason.
func newVolumes(w wish, p *command.VolumePlugin) (v *volumes, why string, err error) {
	if w.off {
		return nil, "", nil
	}
	why = "runner does not say whether there is a volume plugin"
	if p != nil {
		why = p.Reason
	}
	if p != nil && p.Pending { // rather than to go on without them
		return nil, why, fault.New(fault.Unavailable, "ctl status", "%s: try again, or do without the remote volumes (--mount false)", why)
	}
	if p == nil || p.Kind == "" || p.Pin == "" {
		if w.asked {
			return nil, why, fault.New(fault.FailedPrecondition, "ctl doctor", "the remote volumes cannot be mounted: %s", why)
		}
		return nil, why, nil
	}
	return &volumes{wish: w, plugin: *p, token: rand.Text()}, "", nil
}

// use is what vif is told; nil without volumes.
func (v *volumes) use() *command.UseVolumes {
	if v == nil {
		return nil
	}
	return &command.UseVolumes{Token: v.token, Pin: v.plugin.Pin}
}

func (v *volumes) hash() string {
	if v == nil {
		return ""
	}
	return lease.TokenHash(v.token)
}

// target is where a remote path is in the handler.
func (v *volumes) target(p string) string { return path.Join(v.root, p) }

// readOnlyFor reports whether r may only be read.
func (v *volumes) readOnlyFor(kind lease.Kind, r lease.Volume) bool {
	return r.ReadOnly || v.readOnly || kind.ReadOnly()
}

// door is where the volumes come in, as vif says.
func (l *Live) door(ctx context.Context) (command.VIFStatus, error) {
	door, err := bus.Call(ctx, l.w.Bus, command.VIFState, l.plan.conn.ID, command.None{})
	if err == nil && door.Door == "" {
		err = fault.New(fault.FailedPrecondition, "ctl quit && ctl connect --docker", "the daemon container does not serve volumes")
	}
	return door, err
}

// forCaller is what a caller needs who mounts the volumes himself; nil if he does
// not.
func (l *Live) forCaller(ctx context.Context, found []lease.Volume) (*command.RemoteVolumes, error) {
	v := l.plan.volumes
	if v == nil || l.plan.req.VolumesPin == "" {
		return nil, nil
	}
	// The caller may be quicker than the redirection that is on its way.
	if err := l.redirect(ctx); err != nil {
		return nil, err
	}
	door, err := l.door(ctx)
	if err != nil {
		return nil, err
	}
	all := &command.RemoteVolumes{Engagement: l.plan.spec.ID, Door: door.Door, DoorPin: door.DoorPin, TimeoutMillis: v.timeout.Milliseconds(), Mounts: []command.RemoteVolume{}}
	for _, r := range found {
		all.Mounts = append(all.Mounts, command.RemoteVolume{Path: path.Clean(r.Path), ReadOnly: v.readOnlyFor(l.plan.spec.Kind, r)})
	}
	return all, nil
}

// mounts are the Docker volumes of spec's container. Kubernetes orders mounts as
// they are written, Docker by their paths: nested ones come out the same.
func (v *volumes) mounts(spec lease.EngagementSpec, remote []lease.Volume, door command.VIFStatus) []command.Mount {
	var all []command.Mount
	for _, r := range remote {
		if r.File {
			continue
		}
		m := command.Mount{
			Volume: fmt.Sprintf("berth-%s-%d", spec.ID, len(all)), Path: v.target(r.Path), Driver: v.plugin.Driver,
			ReadOnly: v.readOnlyFor(spec.Kind, r),
			Options: map[string]string{
				"engagement": spec.ID, "container": spec.Container, "path": path.Clean(r.Path), "door": door.Door, "pin": door.DoorPin,
			},
		}
		if v.timeout != 0 {
			m.Options["timeout"] = v.timeout.String()
		}
		if m.ReadOnly {
			m.Options["ro"] = strconv.FormatBool(true)
		}
		all = append(all, m)
	}
	return all
}

// env is BERTH_MOUNTS and BERTH_ROOT: the remote mount paths, each of which is
// found at its path below the root. Nothing is mounted where v is nil.
func (v *volumes) env(remote lease.Environment) (mounts []string, root string) {
	if v == nil {
		return nil, "/"
	}
	for _, r := range remote.Volumes {
		mounts = append(mounts, r.Path)
	}
	return mounts, v.root
}

// remote is what was read of the engaged container.
type remote struct {
	env   lease.Environment
	files []command.File
}

// read asks for the environment, and for those volumes that are single files.
func (l *Live) read(ctx context.Context) (r remote, err error) {
	if r.env, err = l.environment(ctx); err != nil || l.plan.volumes == nil {
		return r, err
	}
	for _, v := range r.env.Volumes {
		if !v.File {
			continue
		}
		f, err := l.plan.conn.Link.File(ctx, l.plan.req.ID, l.plan.volumes.token, v.Path)
		if err != nil {
			return r, err
		}
		f.Path = l.plan.volumes.target(v.Path)
		if l.plan.volumes.readOnlyFor(l.plan.spec.Kind, v) {
			f.Mode &^= 0o222
		}
		r.files = append(r.files, f)
	}
	return r, nil
}

// environment asks for what the container has, without what is not to be given,
// and with the cluster's addresses as they are here.
func (l *Live) environment(ctx context.Context) (lease.Environment, error) {
	env, err := l.plan.conn.Link.Environment(ctx, l.plan.req.ID)
	env = l.plan.secrets.mask(env)
	env.Env = translateEnv(env.Env, l.plan.conn.Virtual)
	return env, err
}

// createHandler is the command, complete.
func (l *Live) createHandler(ctx context.Context, r remote) (command.CreateHandler, error) {
	mounts, root := l.plan.volumes.env(r.env)
	req := command.CreateHandler{
		Engagement: l.plan.req.ID, Connection: l.plan.conn.ID, Name: l.plan.handlerName, Handler: l.current(), Again: l.snapshot().Generation > 0,
		Env: handlerEnv(r.env, l.plan.spec, mounts, root), Ports: l.snapshot().Ports, Files: r.files, Resolver: l.plan.conn.Resolver,
	}
	if v := l.plan.volumes; v != nil && slices.ContainsFunc(r.env.Volumes, func(v lease.Volume) bool { return !v.File }) {
		door, err := l.door(ctx)
		if err != nil {
			return req, err
		}
		req.Mounts = v.mounts(l.plan.spec, r.env.Volumes, door)
	}
	return req, nil
}

// volumeGrace is how long the cluster's half of the undoing waits for a handler
// with volumes: what it writes while it ends is still to reach its pod, and the
// workload's own container is not to find two writers. `docker stop` takes 10 s
// at most by default.
const volumeGrace = 15 * time.Second

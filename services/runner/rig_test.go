package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/nat"
)

// These tests run on the real Docker Engine, on images of their own that are
// imported from a static binary (testdata/puppet) and removed afterwards, so
// that nothing is pulled. All that a test makes carries a workspace of its own.

// docker is the engine, or why there is none.
type docker struct {
	api   *client.Client
	image string // puppet and runner, with EXPOSE 8080
	bin   string // runner itself, for tests that kill it
	err   error
}

var theDocker docker // set up by TestMain

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "berth-runner-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	theDocker.err = theDocker.prepare(dir)
	if theDocker.image != "" {
		defer theDocker.api.ImageRemove(context.Background(), theDocker.image, image.RemoveOptions{Force: true, PruneChildren: true})
	}
	return m.Run()
}

func (d *docker) prepare(dir string) (err error) {
	if d.api, err = client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation()); err != nil {
		return err
	}
	if _, err := d.api.Ping(context.Background()); err != nil {
		return err
	}
	puppet := filepath.Join(dir, "puppet")
	d.bin = filepath.Join(dir, "runner")
	forwarder := filepath.Join(dir, "forwarder")
	for out, pkg := range map[string]string{puppet: "./testdata/puppet", d.bin: ".", forwarder: "."} {
		cmd := exec.Command("go", "build", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		if out == forwarder { // a module of its own: the image has it, nothing imports it
			cmd.Dir = "../forwarder"
		}
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, file := range map[string]string{"puppet": puppet, "bin/vif": puppet, "bin/runner": d.bin, "bin/forwarder": forwarder} {
		exe, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(exe))}); err != nil {
			return err
		}
		if _, err := w.Write(exe); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	ref := "berth-runner-test:" + strings.ToLower(rand.Text()[:10])
	rd, err := d.api.ImageImport(context.Background(), image.ImportSource{Source: &b, SourceName: "-"}, ref, image.ImportOptions{
		Changes: []string{`ENTRYPOINT ["/puppet"]`, "EXPOSE 8080", "ENV FROM_IMAGE=yes"},
	})
	if err != nil {
		return err
	}
	defer rd.Close()
	if _, err := io.Copy(io.Discard, rd); err != nil {
		return err
	}
	if _, err := d.api.ImageInspect(context.Background(), ref); err != nil {
		return err
	}
	d.image = ref
	return nil
}

func needDocker(t testing.TB) {
	t.Helper()
	switch {
	case theDocker.err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("%s needs a Docker Engine: %v", t.Name(), theDocker.err)
	default:
		t.Skipf("%s needs a Docker Engine: %v", t.Name(), theDocker.err)
	}
}

// rig is a workspace of the test's own: a bus, a stand-in for connector that
// answers state-get, a network, and runner.
type rig struct {
	t    *testing.T
	bus  *bustest.Bus
	conn *bus.Conn // of the test, with connector's rights
	cfg  config
	ws   string

	mu    sync.Mutex
	state command.State

	end   context.CancelFunc
	ended chan struct{}
	err   error
}

// newRig makes a workspace without a runner.
func newRig(t *testing.T) *rig {
	t.Helper()
	needDocker(t)
	ws := "t-" + strings.ToLower(rand.Text()[:10])
	r := &rig{t: t, ws: ws, bus: bustest.Start(t)}
	r.conn = r.bus.Tester()
	r.cfg = config{workspace: ws, network: "berth-" + ws, image: theDocker.image, volumeDriver: "local", bus: r.bus.Config(subject.Runner)}
	t.Cleanup(r.clean)
	r.network(r.cfg.network, map[string]string{engine.LabelComponent: "network"})
	svc, err := r.bus.Connect(subject.Connector).Serve(subject.Connector, version)
	if err != nil {
		t.Fatal(err)
	}
	err = bus.Handle(svc, command.StateGet, "", func(context.Context, command.None) (command.State, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.state, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(svc.Stop)
	return r
}

// start is newRig with a runner that runs in this process until the test ends.
func start(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.run()
	return r
}

// run starts runner in this process and waits until it serves.
func (r *rig) run() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	r.end, r.ended = cancel, ended
	log := slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	go func() {
		defer close(ended)
		r.err = serve(ctx, r.cfg, log)
	}()
	r.t.Cleanup(func() { cancel(); <-ended })
	r.ready()
}

// ready waits until runner answers.
func (r *rig) ready() {
	r.t.Helper()
	until(r.t, "runner answers", func() bool {
		_, err := bus.Call(r.t.Context(), r.conn, command.HandlerStop, "", command.EngagementRef{Engagement: "nobody"})
		return err == nil
	})
}

// process starts runner as a process of its own, to be killed.
func (r *rig) process() *exec.Cmd {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "bus.json")
	raw, err := json.Marshal(r.cfg.bus)
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(theDocker.bin, "--workspace", r.ws, "--network", r.cfg.network, "--image", r.cfg.image, "--volume-driver", "local", "--bus-config", file, "--log-level", "debug")
	cmd.Stderr = r.t.Output()
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	r.ready()
	return cmd
}

// clean removes all that carries the workspace's label.
func (r *rig) clean() {
	ctx := context.Background()
	for _, c := range r.containers() {
		_ = theDocker.api.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}
	until(r.t, "containers are gone", func() bool { return len(r.containers()) == 0 })
	for _, v := range r.volumes() {
		_ = theDocker.api.VolumeRemove(ctx, v.Name, true)
	}
	for _, n := range r.networks() {
		_ = theDocker.api.NetworkRemove(ctx, n.ID)
	}
}

func (r *rig) filter() filters.Args {
	return filters.NewArgs(filters.Arg("label", engine.LabelWorkspace+"="+r.ws))
}

func (r *rig) containers() []container.Summary {
	l, err := theDocker.api.ContainerList(context.Background(), container.ListOptions{All: true, Filters: r.filter()})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

func (r *rig) volumes() []*volume.Volume {
	l, err := theDocker.api.VolumeList(context.Background(), volume.ListOptions{Filters: r.filter()})
	if err != nil {
		r.t.Fatal(err)
	}
	return l.Volumes
}

func (r *rig) networks() []network.Summary {
	l, err := theDocker.api.NetworkList(context.Background(), network.ListOptions{Filters: r.filter()})
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// network makes a Docker network of the workspace.
func (r *rig) network(name string, labels map[string]string) string {
	r.t.Helper()
	all := map[string]string{engine.LabelWorkspace: r.ws}
	for k, v := range labels {
		all[k] = v
	}
	n, err := theDocker.api.NetworkCreate(context.Background(), name, network.CreateOptions{Labels: all})
	if err != nil {
		r.t.Fatal(err)
	}
	return n.ID
}

// container creates and starts a container behind runner's back.
func (r *rig) container(name string, labels map[string]string, cmd ...string) string {
	r.t.Helper()
	cfg := &container.Config{Image: theDocker.image, Cmd: cmd, Labels: labels}
	c, err := theDocker.api.ContainerCreate(context.Background(), cfg, &container.HostConfig{NetworkMode: "none"}, nil, nil, name)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = theDocker.api.ContainerRemove(context.Background(), c.ID, container.RemoveOptions{Force: true})
	})
	if len(cmd) > 0 {
		if err := theDocker.api.ContainerStart(context.Background(), c.ID, container.StartOptions{}); err != nil {
			r.t.Fatal(err)
		}
	}
	return c.ID
}

func (r *rig) ours(component string, more ...string) map[string]string {
	l := map[string]string{engine.LabelWorkspace: r.ws, engine.LabelComponent: component}
	for i := 0; i < len(more); i += 2 {
		l[more[i]] = more[i+1]
	}
	return l
}

// connection makes a connection that connector knows, and its daemon container.
func (r *rig) connection() string {
	r.t.Helper()
	id := "c-" + strings.ToLower(rand.Text()[:10])
	r.knows(command.Connection{ID: id})
	call(r.t, r.conn, command.DaemonStart, r.daemon(id))
	bustest.Wait[event.DaemonStarted](r.t, r.conn, id)
	return id
}

func (r *rig) daemon(id string) command.StartDaemon {
	return command.StartDaemon{Connection: id, Name: r.ws + "-" + id, Bus: json.RawMessage(`{"seed":"SECRETSEED"}`)}
}

// knows lets connector know connections and engagements.
func (r *rig) knows(things ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range things {
		switch x := x.(type) {
		case command.Connection:
			r.state.Connections = append(r.state.Connections, x)
		case command.Engagement:
			r.state.Engagements = append(r.state.Engagements, x)
		}
	}
}

// create is a HandlerCreate of a new engagement that connector knows.
func (r *rig) create(connection string, cmd ...string) command.CreateHandler {
	id := "e-" + strings.ToLower(rand.Text()[:10])
	r.knows(command.Engagement{ID: id, Connection: connection, Phase: "prepared"})
	return command.CreateHandler{
		Engagement: id, Connection: connection, Name: "intercept-" + r.ws + "/" + id + "-8080",
		Handler: dockerRun(container.Config{Image: theDocker.image, Cmd: cmd}, container.HostConfig{}),
	}
}

// dockerRun is a handler as Docker's command line delivers one: with what it
// fills in where nothing was given.
func dockerRun(cfg container.Config, host container.HostConfig) command.Handler {
	cfg.AttachStdout, cfg.AttachStderr = true, true
	if cfg.Volumes == nil {
		cfg.Volumes = map[string]struct{}{}
	}
	if cfg.Labels == nil {
		cfg.Labels = map[string]string{}
	}
	if host.NetworkMode == "" {
		host.NetworkMode = network.NetworkDefault
	}
	if host.DNS == nil {
		host.DNS, host.DNSOptions, host.DNSSearch = []string{}, []string{}, []string{}
	}
	if host.RestartPolicy.Name == "" {
		host.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if host.PortBindings == nil {
		host.PortBindings = nat.PortMap{}
	}
	nets := network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{network.NetworkDefault: {}}}
	return command.Handler{Config: marshal(cfg), HostConfig: marshal(host), Networking: marshal(nets)}
}

func marshal(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// play creates and starts a handler and returns how it ended.
func (r *rig) play(req command.CreateHandler) event.HandlerExited {
	r.t.Helper()
	r.started(req)
	return bustest.Wait[event.HandlerExited](r.t, r.conn, req.Engagement)
}

// started creates and starts a handler.
func (r *rig) started(req command.CreateHandler) event.HandlerCreated {
	r.t.Helper()
	call(r.t, r.conn, command.HandlerCreate, req)
	made := bustest.Wait[event.HandlerCreated](r.t, r.conn, req.Engagement)
	call(r.t, r.conn, command.HandlerStart, command.EngagementRef{Engagement: req.Engagement})
	return made
}

// facts are the types of all facts about an engagement or connection so far,
// in short. A mark tells where "so far" is.
func (r *rig) facts(scope subject.Scope, id string) []string {
	r.t.Helper()
	mark := rand.Text()
	var err error
	if scope == subject.Engagement {
		err = r.conn.State(r.t.Context(), id, event.Restoring{Cause: mark})
	} else {
		err = r.conn.State(r.t.Context(), id, event.Disconnected{Cause: mark})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, e := range bustest.Collect(r.t, r.conn, scope, id, func(e event.Envelope) bool { return bytes.Contains(e.Data, []byte(mark)) }) {
		if e.Source == "/services/runner" {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(e.Type, "dev.berth."+string(scope)+".runner."), ".v1"))
		}
	}
	return names
}

// output is what the stream OUTPUT has of an engagement whose handler has ended.
func (r *rig) output(engagement string) (stdout, stderr string) {
	r.t.Helper()
	ctx := bustest.Within(r.t, bustest.Patience)
	tail, err := r.conn.TailOutput(ctx, engagement)
	if err != nil {
		r.t.Fatal(err)
	}
	defer tail.Stop()
	all := map[string]string{}
	for {
		p, err := tail.Next(ctx)
		if err == io.EOF {
			return all[bus.Stdout], all[bus.Stderr]
		}
		if err != nil {
			r.t.Fatalf("output of %s: %v; so far %q", engagement, err, all)
		}
		all[p.Stream] += string(p.Data)
	}
}

// says waits until a handler has written word.
func (r *rig) says(engagement, word string) {
	r.t.Helper()
	ctx := bustest.Within(r.t, bustest.Patience)
	tail, err := r.conn.TailOutput(ctx, engagement)
	if err != nil {
		r.t.Fatal(err)
	}
	defer tail.Stop()
	for said := ""; !strings.Contains(said, word); {
		p, err := tail.Next(ctx)
		if err != nil {
			r.t.Fatalf("%s never said %q: %v", engagement, word, err)
		}
		said += string(p.Data)
	}
}

// call sends a command that must be accepted.
func call[Req, Rep any](t *testing.T, c *bus.Conn, s command.Spec[Req, Rep], req Req) Rep {
	t.Helper()
	rep, err := bus.Call(t.Context(), c, s, "", req)
	if err != nil {
		t.Fatalf("%s: %v", s.Verb, err)
	}
	return rep
}

// refused sends a command that must be refused.
func refused[Req, Rep any](t *testing.T, c *bus.Conn, s command.Spec[Req, Rep], req Req, code fault.Code, words ...string) *fault.Error {
	t.Helper()
	_, err := bus.Call(t.Context(), c, s, "", req)
	f := fault.From(err)
	if f == nil || f.Code != code {
		t.Fatalf("%s: %v, want %s", s.Verb, err, code)
	}
	for _, w := range words {
		if !strings.Contains(f.Message+" "+f.Hint, w) {
			t.Errorf("%s: %q (hint %q) does not say %q", s.Verb, f.Message, f.Hint, w)
		}
	}
	return f
}

// until waits for a condition of the outside world.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(bustest.Patience); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func exists(t testing.TB, id string) bool {
	t.Helper()
	_, err := theDocker.api.ContainerInspect(context.Background(), id)
	if err != nil && !cerrdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

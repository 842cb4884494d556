package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/docker/go-connections/nat"
)

// Runner is killed with kill -9 and started anew: it goes on with what runs,
// and tells what ended meanwhile.
func TestKilledRunnerIsResumed(t *testing.T) {
	r := newRig(t)
	first := r.process()
	c := r.connection()
	running, ended, made := r.create(c, "after", "6s", "7"), r.create(c, "after", "1s", "8"), r.create(c, "exit", "9")
	r.started(running)
	r.started(ended)
	call(t, r.conn, command.HandlerCreate, made)
	bustest.Wait[event.HandlerCreated](t, r.conn, made.Engagement)
	for _, x := range []command.CreateHandler{running, ended} {
		bustest.Wait[event.HandlerStarted](t, r.conn, x.Engagement)
	}
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	r.mu.Lock()
	for i := range r.state.Engagements { // as connector knows them by now
		r.state.Engagements[i].Phase, r.state.Engagements[i].Handler = "created", "handler"
	}
	r.mu.Unlock()
	until(t, "the second handler has ended", func() bool {
		return !slices.ContainsFunc(r.containers(), func(c container.Summary) bool {
			return c.Labels[engine.LabelEngagement] == ended.Engagement
		})
	})

	r.process()
	call(t, r.conn, command.HandlerStart, command.EngagementRef{Engagement: made.Engagement})
	for _, x := range []struct {
		req  command.CreateHandler
		code int
	}{{ended, 8}, {made, 9}, {running, 7}} {
		if got := bustest.Wait[event.HandlerExited](t, r.conn, x.req.Engagement); got.ExitCode != x.code {
			t.Errorf("exit code %d, want %d", got.ExitCode, x.code)
		}
	}
	if a := call(t, r.conn, command.DaemonStart, r.daemon(c)); !a.Already {
		t.Error("the daemon container was not adopted")
	}
	call(t, r.conn, command.DaemonStop, command.StopDaemon{Connection: c})
	bustest.Wait[event.DaemonExited](t, r.conn, c)
}

// Connector is dead: nothing labelled ours remains.
func TestLostBusUndoesEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("TestLostBusUndoesEverything takes more than ten seconds: skipped with -short")
	}
	r := start(t)
	c := r.connection()
	handler := r.create(c)
	two := 2
	handler.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"stubborn"}, StopTimeout: &two}, container.HostConfig{PortBindings: nat.PortMap{"81/tcp": {{HostIP: "127.0.0.1"}}}})
	handler.Mounts = []command.Mount{{Volume: r.ws + "-data", Path: "/data"}}
	r.started(handler)
	made := r.create(c, "wait")
	call(t, r.conn, command.HandlerCreate, made)
	bustest.Wait[event.HandlerCreated](t, r.conn, made.Engagement)
	r.says(handler.Engagement, "ready")
	guest := call(t, r.conn, command.ContainerCreate, command.CreateContainer{Connection: c, Component: "docker-run", Handler: dockerRun(container.Config{Cmd: []string{"wait"}}, container.HostConfig{PortBindings: nat.PortMap{"82/udp": {{HostIP: "127.0.0.1"}}}})})
	if err := theDocker.api.ContainerStart(t.Context(), guest.ContainerID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := len(r.containers()); n != 8 {
		t.Fatalf("%d containers, want daemon, two handlers, a guest, and two forwarders of two", n)
	}
	r.bus.Stop()
	select {
	case <-r.ended:
	case <-time.After(bus.GiveUp + 10*time.Second):
		t.Fatal("runner goes on without a bus")
	}
	if r.err != nil {
		t.Errorf("runner ended with %v", r.err)
	}
	if c, v, n := r.containers(), r.volumes(), r.networks(); len(c)+len(v)+len(n) != 0 {
		t.Errorf("left: containers %v, volumes %v, networks %v", c, v, n)
	}
}

// SIGTERM: the same for what belongs to connections, and it is told.
func TestEndStatesWhatItEnds(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c, "stubborn")
	r.started(req)
	r.says(req.Engagement, "ready")
	begun := time.Now()
	r.end()
	<-r.ended
	if d := time.Since(begun); d > 9*time.Second {
		t.Errorf("took %v, docker stop grants 10 s", d)
	}
	if got := bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement); got.ExitCode != 137 {
		t.Errorf("exit code %d", got.ExitCode)
	}
	if got := bustest.Wait[event.DaemonExited](t, r.conn, c); got.Error != nil {
		t.Errorf("the daemon container was stopped, and died of %v", got.Error)
	}
	if l := r.containers(); len(l) != 0 {
		t.Errorf("left: %v", l)
	}
	if len(r.networks()) != 1 {
		t.Error("the network is ctl's to remove")
	}
}

// What belongs to no connection and no engagement goes, the rest stays.
func TestSweep(t *testing.T) {
	r := newRig(t)
	r.knows(command.Connection{ID: "known"}, command.Engagement{ID: "known", Connection: "known", Phase: "prepared"})
	orphans := []string{
		r.container(r.ws+"-a", r.ours(engine.Daemon, engine.LabelConnection, "gone"), "wait"),
		r.container(r.ws+"-b", r.ours(engine.Handler, engine.LabelConnection, "known", engine.LabelEngagement, "gone"), "wait"),
		r.container(r.ws+"-c", r.ours(engine.Handler, engine.LabelConnection, "known", engine.LabelEngagement, "gone-too")),
		r.container(r.ws+"-d", r.ours(engine.Curl, engine.LabelConnection, "gone"), "wait"),
	}
	kept := []string{
		r.container(r.ws+"-e", r.ours(engine.Daemon, engine.LabelConnection, "known"), "wait"),
		r.container(r.ws+"-f", r.ours(engine.Handler, engine.LabelConnection, "known", engine.LabelEngagement, "known"), "wait"),
		r.container(r.ws+"-g", r.ours(engine.Curl, engine.LabelConnection, "known")),
		r.container(r.ws+"-h", r.ours(engine.Connector), "wait"),
	}
	r.network(r.ws+"-gone", map[string]string{engine.LabelConnection: "gone"})
	for name, e := range map[string]string{"-gone": "gone", "-known": "known"} {
		if _, err := theDocker.api.VolumeCreate(t.Context(), volume.CreateOptions{Name: r.ws + name, Labels: r.ours(engine.Handler, engine.LabelEngagement, e)}); err != nil {
			t.Fatal(err)
		}
	}
	r.run()
	until(t, "orphans are swept", func() bool {
		return !slices.ContainsFunc(orphans, func(id string) bool { return exists(t, id) }) && len(r.volumes()) == 1 && len(r.networks()) == 1
	})
	for _, id := range kept {
		if !exists(t, id) {
			t.Errorf("container %s has an owner and was removed", id)
		}
	}
	// Later, the end of a container is what triggers a sweep.
	r.mu.Lock()
	r.state.Engagements = nil
	r.mu.Unlock()
	if err := theDocker.api.ContainerRemove(t.Context(), kept[2], container.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	until(t, "the handler of an engagement that is over is swept", func() bool { return !exists(t, kept[1]) && len(r.volumes()) == 0 })
	if f := r.facts(subject.Engagement, "known"); slices.Contains(f, "handler-exited") {
		t.Errorf("facts about an engagement that is over: %q", f)
	}
}

func TestGuest(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := command.CreateContainer{Connection: c, Component: "curl", Handler: dockerRun(container.Config{Cmd: []string{"exit", "6", "hello"}}, container.HostConfig{})}
	made := call(t, r.conn, command.ContainerCreate, req)
	in, err := theDocker.api.ContainerInspect(t.Context(), made.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	if in.Config.Labels[engine.LabelComponent] != "curl" || in.Config.Labels[engine.LabelConnection] != c || !in.HostConfig.AutoRemove || !in.HostConfig.NetworkMode.IsContainer() {
		t.Errorf("labels %v, auto-remove %v, network %s", in.Config.Labels, in.HostConfig.AutoRemove, in.HostConfig.NetworkMode)
	}
	// The caller attaches, starts and waits, as ctl does.
	att, err := theDocker.api.ContainerAttach(t.Context(), made.ContainerID, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer att.Close()
	done, errs := theDocker.api.ContainerWait(t.Context(), made.ContainerID, container.WaitConditionNextExit)
	if err := theDocker.api.ContainerStart(t.Context(), made.ContainerID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case x := <-done:
		if x.StatusCode != 6 {
			t.Errorf("exit code %d", x.StatusCode)
		}
	case err := <-errs:
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, io.Discard, att.Reader); err != nil || out.String() != "hello\n" {
		t.Errorf("output %q, %v", out.String(), err)
	}

	req.Component = "handler"
	refused(t, r.conn, command.ContainerCreate, req, fault.InvalidArgument, "handler")
	req.Component, req.Connection = "docker-run", "c-unknown"
	refused(t, r.conn, command.ContainerCreate, req, fault.FailedPrecondition, "c-unknown")

	// Guests end with their connection.
	req.Connection = c
	req.Handler = dockerRun(container.Config{Cmd: []string{"wait"}}, container.HostConfig{})
	long := call(t, r.conn, command.ContainerCreate, req)
	if err := theDocker.api.ContainerStart(t.Context(), long.ContainerID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	call(t, r.conn, command.DaemonStop, command.StopDaemon{Connection: c})
	until(t, "the guest is gone", func() bool { return !exists(t, long.ContainerID) })
}

// The engine goes away in the middle: commands say so, and what it did
// meanwhile is told when it is back. The fake is only the cut: a socket in
// front of the real engine.
func TestEngineGoesAway(t *testing.T) {
	needDocker(t)
	p := newCut(t)
	t.Setenv("DOCKER_HOST", "unix://"+p.path)
	r := start(t)
	c := r.connection()
	req := r.create(c, "after", "2s", "11")
	r.started(req)
	bustest.Wait[event.HandlerStarted](t, r.conn, req.Engagement)
	p.set(false)
	check := command.CheckHandler{Connection: c, Handler: req.Handler, Name: r.ws + "-check"}
	refused(t, r.conn, command.HandlerCheck, check, fault.Unavailable, "Docker Engine does not answer", "ctl doctor")
	refused(t, r.conn, command.DaemonStart, r.daemon("c-two"), fault.Unavailable, "ctl doctor")
	until(t, "the handler has ended", func() bool {
		return !slices.ContainsFunc(r.containers(), func(c container.Summary) bool { return c.Labels[engine.LabelEngagement] != "" })
	})
	p.set(true)
	if got := bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement); got.ExitCode != 11 {
		t.Errorf("exit code %d", got.ExitCode)
	}
	call(t, r.conn, command.HandlerCheck, check)
}

// cut is a socket in front of the engine's that can be cut.
type cut struct {
	path  string
	mu    sync.Mutex
	open  bool
	conns []net.Conn
}

func newCut(t *testing.T) *cut {
	c := &cut{path: filepath.Join(t.TempDir(), "docker.sock"), open: true}
	l, err := net.Listen("unix", c.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.set(false) })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go c.pass(in)
		}
	}()
	return c
}

func (c *cut) pass(in net.Conn) {
	defer in.Close()
	out, err := theDocker.api.Dialer()(context.Background())
	if err != nil {
		return
	}
	defer out.Close()
	c.mu.Lock()
	if !c.open {
		c.mu.Unlock()
		return
	}
	c.conns = append(c.conns, in, out)
	c.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			if w, ok := way[0].(interface{ CloseWrite() error }); ok {
				_ = w.CloseWrite()
			}
			done <- struct{}{}
		}()
	}
	<-done
	<-done
}

func (c *cut) set(open bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = open
	if !open {
		for _, x := range c.conns {
			x.Close()
		}
		c.conns = nil
	}
}

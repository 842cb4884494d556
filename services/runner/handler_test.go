package main

import (
	"archive/tar"
	"context"
	"slices"
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

	"github.com/docker/docker/api/types/container"
)

func TestHandlerLife(t *testing.T) {
	r := start(t)
	c := r.connection()
	for _, x := range []struct {
		cmd  []string
		code int
	}{
		{[]string{"exit", "0", "hello", "world"}, 0},
		{[]string{"exit", "3"}, 3},
		{[]string{"exit", "137"}, 137},
	} {
		t.Run(strings.Join(x.cmd, " "), func(t *testing.T) {
			req := r.create(c, x.cmd...)
			if got := call(t, r.conn, command.HandlerCheck, command.CheckHandler{Connection: c, Handler: req.Handler, Name: req.Name}); !strings.HasPrefix(got.Image, "sha256:") || got.Name != engine.Name(req.Name) {
				t.Errorf("checked %+v", got)
			}
			got := r.play(req)
			if got.ExitCode != x.code || got.OOMKilled || got.Container != engine.Name(req.Name) {
				t.Errorf("exited %+v, want code %d", got, x.code)
			}
			if f := r.facts(subject.Engagement, req.Engagement); !slices.Equal(f, []string{"handler-created", "handler-started", "handler-exited"}) {
				t.Errorf("facts %q", f)
			}
			out, errs := r.output(req.Engagement)
			if want := strings.Join(append(x.cmd[2:], ""), "\n"); out != want || errs != "bye\n" {
				t.Errorf("output %q and %q, want %q", out, errs, want)
			}
			// A stop that finds it ended answers when nothing is left.
			if a := call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement}); !a.Already {
				t.Error("stop after the end is not already done")
			}
			made := bustest.Wait[event.HandlerCreated](t, r.conn, req.Engagement)
			if exists(t, made.ContainerID) {
				t.Error("the container is left")
			}
		})
	}
}

// A container that lives for a moment has an exit code and output like any
// other: who waits for it or attaches to it after the start comes too late.
func TestShortLivedHandlersLoseNothing(t *testing.T) {
	r := start(t)
	c := r.connection()
	for range 8 {
		req := r.create(c, "exit", "42", "a last word")
		if got := r.play(req); got.ExitCode != 42 {
			t.Fatalf("exit code %d", got.ExitCode)
		}
		if out, _ := r.output(req.Engagement); out != "a last word\n" {
			t.Fatalf("output %q", out)
		}
	}
}

func TestHandlerContainer(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c, "wait")
	req.Handler.Name = r.ws + "-mine"
	req.Labels = map[string]string{"team": "blue", engine.LabelWorkspace: "stolen"}
	req.Ports = []event.Port{{Container: 8080, Protocol: "TCP"}, {Container: 53, Handler: 5353, Protocol: "UDP"}}
	req.Env = [][]byte{[]byte("PASSWORD=geheim")}
	made := r.started(req)
	bustest.Wait[event.HandlerStarted](t, r.conn, req.Engagement)
	in, err := theDocker.api.ContainerInspect(t.Context(), made.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := theDocker.api.ContainerInspect(t.Context(), "berth-"+r.daemon(c).Name)
	if err != nil {
		t.Fatal(err)
	}
	if in.Name != "/"+r.ws+"-mine" {
		t.Errorf("the user's name is not honoured: %s", in.Name)
	}
	if !in.HostConfig.AutoRemove || in.HostConfig.NetworkMode != container.NetworkMode("container:"+daemon.ID) {
		t.Errorf("auto-remove %v, network %s", in.HostConfig.AutoRemove, in.HostConfig.NetworkMode)
	}
	for k, v := range map[string]string{
		engine.LabelWorkspace: r.ws, engine.LabelComponent: "handler", engine.LabelConnection: c, engine.LabelEngagement: req.Engagement,
		engine.LabelVersion: version, engine.LabelPorts: "8080/TCP,5353/UDP", "team": "blue",
	} {
		if in.Config.Labels[k] != v {
			t.Errorf("label %s is %q, want %q", k, in.Config.Labels[k], v)
		}
	}
	for k, v := range in.Config.Labels {
		if strings.Contains(v, "geheim") {
			t.Errorf("label %s holds a value of the environment", k)
		}
	}
}

// The remote environment arrives whole; what the user gave wins, as does his
// `-e KEY` of a variable that is not set, which unsets it.
func TestEnvironment(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c)
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"env"}, Env: []string{"BOTH=mine", "UNSET", "OWN=1"}}, container.HostConfig{})
	req.Env = [][]byte{[]byte("BOTH=remote"), []byte("UNSET=remote"), []byte("LINES=one\ntwo\n"), []byte("EMPTY="), []byte("EQUALS=a=b"), []byte("UMLAUT=ä")}
	if got := r.play(req); got.ExitCode != 0 {
		t.Fatalf("exit code %d", got.ExitCode)
	}
	out, _ := r.output(req.Engagement)
	for _, want := range []string{`"BOTH=mine"`, `"LINES=one\ntwo\n"`, `"EMPTY="`, `"EQUALS=a=b"`, `"UMLAUT=ä"`, `"OWN=1"`, `"FROM_IMAGE=yes"`} {
		if strings.Count(out, want+"\n") != 1 {
			t.Errorf("environment lacks %s:\n%s", want, out)
		}
	}
	for _, not := range []string{"BOTH=remote", "UNSET"} {
		if strings.Contains(out, not) {
			t.Errorf("environment has %s:\n%s", not, out)
		}
	}
}

func TestStop(t *testing.T) {
	r := start(t)
	c := r.connection()
	short := 1
	t.Run("heeds SIGTERM", func(t *testing.T) {
		req := r.create(c, "wait")
		r.started(req)
		r.says(req.Engagement, "ready")
		ref := command.EngagementRef{Engagement: req.Engagement}
		call(t, r.conn, command.HandlerStop, ref)
		call(t, r.conn, command.HandlerStop, ref)
		if got := bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement); got.ExitCode != 0 {
			t.Errorf("exit code %d", got.ExitCode)
		}
	})
	t.Run("ignores SIGTERM", func(t *testing.T) {
		req := r.create(c)
		req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"stubborn"}, StopTimeout: &short}, container.HostConfig{})
		r.started(req)
		r.says(req.Engagement, "ready")
		begun := time.Now()
		call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
		if got := bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement); got.ExitCode != 137 || got.OOMKilled {
			t.Errorf("exited %+v", got)
		}
		if d := time.Since(begun); d < time.Second || d > 6*time.Second {
			t.Errorf("killed after %v, its own time is 1s", d)
		}
	})
	t.Run("never started", func(t *testing.T) {
		req := r.create(c, "wait")
		call(t, r.conn, command.HandlerCreate, req)
		made := bustest.Wait[event.HandlerCreated](t, r.conn, req.Engagement)
		call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
		if got := bustest.Wait[event.HandlerFailed](t, r.conn, req.Engagement); got.Error.Code != fault.FailedPrecondition {
			t.Errorf("failed with %v", got.Error)
		}
		if exists(t, made.ContainerID) {
			t.Error("the container is left")
		}
		refused(t, r.conn, command.HandlerStart, command.EngagementRef{Engagement: req.Engagement}, fault.FailedPrecondition)
	})
	t.Run("right after create", func(t *testing.T) {
		req := r.create(c, "wait")
		call(t, r.conn, command.HandlerCreate, req)
		call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
		bustest.Wait[event.HandlerFailed](t, r.conn, req.Engagement)
	})
	t.Run("of nobody", func(t *testing.T) {
		if a := call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: "nobody"}); !a.Already {
			t.Error("not already done")
		}
	})
}

func TestRepeatedCommandsAreHarmless(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c, "after", "300ms", "5")
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := bus.Call(t.Context(), r.conn, command.HandlerCreate, "", req); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	bustest.Wait[event.HandlerCreated](t, r.conn, req.Engagement)
	for range 5 {
		wg.Go(func() {
			if _, err := bus.Call(t.Context(), r.conn, command.HandlerStart, "", command.EngagementRef{Engagement: req.Engagement}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement); got.ExitCode != 5 {
		t.Errorf("exit code %d", got.ExitCode)
	}
	if a := call(t, r.conn, command.HandlerCreate, req); !a.Already {
		t.Error("a handler that has ended was created again")
	}
	call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
	if f := r.facts(subject.Engagement, req.Engagement); !slices.Equal(f, []string{"handler-created", "handler-started", "handler-exited"}) {
		t.Errorf("facts %q", f)
	}
}

func TestNames(t *testing.T) {
	r := start(t)
	c := r.connection()
	check := func(name string) command.CheckHandler {
		h := r.create(c, "wait").Handler
		h.Name = name
		return command.CheckHandler{Connection: c, Handler: h}
	}
	t.Run("somebody else's", func(t *testing.T) {
		name := r.ws + "-foreign"
		r.container(name, nil, "wait")
		refused(t, r.conn, command.HandlerCheck, check(name), fault.AlreadyExists, name, theDocker.image, "running since 20", "docker rm -f "+name)
		dead := r.ws + "-foreign-dead"
		id := r.container(dead, nil, "exit", "0")
		until(t, "it is dead", func() bool {
			in, err := theDocker.api.ContainerInspect(context.Background(), id)
			return err == nil && in.State.Status == container.StateExited
		})
		refused(t, r.conn, command.HandlerCheck, check(dead), fault.AlreadyExists, dead)
		if !exists(t, id) {
			t.Error("somebody else's container was removed")
		}
	})
	t.Run("ours, dead", func(t *testing.T) {
		name := r.ws + "-dead"
		r.knows(command.Engagement{ID: "dead-one", Phase: "restoring"})
		id := r.container(name, r.ours(engine.Handler, engine.LabelEngagement, "dead-one"), "exit", "0")
		until(t, "it is dead", func() bool {
			in, err := theDocker.api.ContainerInspect(context.Background(), id)
			return err == nil && in.State.Status == container.StateExited
		})
		call(t, r.conn, command.HandlerCheck, check(name))
		if exists(t, id) {
			t.Error("the dead container of ours is left")
		}
	})
	t.Run("ours, alive", func(t *testing.T) {
		req := r.create(c, "wait")
		req.Handler.Name = r.ws + "-alive"
		r.started(req)
		bustest.Wait[event.HandlerStarted](t, r.conn, req.Engagement)
		refused(t, r.conn, command.HandlerCheck, check(req.Handler.Name), fault.AlreadyExists, "ctl leave "+req.Engagement)
		// A create that was not checked says the same as a fact.
		late := r.create(c, "wait")
		late.Handler.Name = req.Handler.Name
		call(t, r.conn, command.HandlerCreate, late)
		if got := bustest.Wait[event.HandlerFailed](t, r.conn, late.Engagement); got.Error.Code != fault.AlreadyExists || !strings.Contains(got.Error.Message, "running since") {
			t.Errorf("failed with %v", got.Error)
		}
	})
	t.Run("none that Docker takes", func(t *testing.T) {
		refused(t, r.conn, command.HandlerCheck, check("no/name"), fault.InvalidArgument, "no/name")
	})
}

func TestCheckRefuses(t *testing.T) {
	r := start(t)
	c := r.connection()
	with := func(cfg container.Config, host container.HostConfig) command.CheckHandler {
		if cfg.Image == "" {
			cfg.Image = theDocker.image
		}
		return command.CheckHandler{Connection: c, Handler: dockerRun(cfg, host), Name: r.ws + "-check"}
	}
	refused(t, r.conn, command.HandlerCheck, with(container.Config{Image: "berth-no-such-image:1"}, container.HostConfig{}), fault.NotFound, "berth-no-such-image:1", "docker pull", "docker build")
	refused(t, r.conn, command.HandlerCheck, with(container.Config{Hostname: "me"}, container.HostConfig{}), fault.InvalidArgument, "--hostname")
	refused(t, r.conn, command.HandlerCheck, with(container.Config{}, container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}), fault.InvalidArgument, "--restart", "--rm")
	lost := with(container.Config{}, container.HostConfig{})
	lost.Connection = "c-unknown"
	refused(t, r.conn, command.HandlerCheck, lost, fault.FailedPrecondition, "c-unknown", "ctl status")

	req := r.create(c, "wait")
	req.Ports = []event.Port{{Container: 8080, Protocol: "TCP"}}
	r.started(req)
	bustest.Wait[event.HandlerStarted](t, r.conn, req.Engagement)
	clash := with(container.Config{}, container.HostConfig{})
	clash.Ports = []event.Port{{Container: 80, Handler: 8080, Protocol: "TCP"}}
	refused(t, r.conn, command.HandlerCheck, clash, fault.AlreadyExists, "8080/TCP", engine.Name(req.Name), "ctl leave "+req.Engagement)
	other := r.create(c, "wait")
	other.Ports = clash.Ports
	refused(t, r.conn, command.HandlerCreate, other, fault.AlreadyExists, "8080/TCP")
	clash.Ports[0].Protocol = "UDP"
	call(t, r.conn, command.HandlerCheck, clash)
	if n := len(r.containers()); n != 2 {
		t.Errorf("checks left %d containers, want daemon and handler", n)
	}
}

// What the engine refuses only at the start is told by a fact, and leaves nothing.
func TestHandlerThatCannotStart(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c)
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Entrypoint: []string{"/no/such/program"}}, container.HostConfig{})
	made := r.started(req)
	got := bustest.Wait[event.HandlerFailed](t, r.conn, req.Engagement)
	if got.Error.Code != fault.InvalidArgument || !strings.Contains(got.Error.Message, "/no/such/program") {
		t.Errorf("failed with %+v", got.Error)
	}
	if exists(t, made.ContainerID) {
		t.Error("the container is left")
	}
	if f := r.facts(subject.Engagement, req.Engagement); !slices.Equal(f, []string{"handler-created", "handler-failed"}) {
		t.Errorf("facts %q", f)
	}
}

func TestOutOfMemory(t *testing.T) {
	r := start(t)
	info, err := theDocker.api.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !info.MemoryLimit {
		t.Skip("TestOutOfMemory needs an engine that can limit memory")
	}
	c := r.connection()
	req := r.create(c)
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"eat"}}, container.HostConfig{Resources: container.Resources{Memory: 24 << 20, MemorySwap: 24 << 20}})
	if got := r.play(req); got.ExitCode != 137 || !got.OOMKilled {
		t.Errorf("exited %+v", got)
	}
}

// A single file is in the handler before its program starts, unless something of
// the user's, or a volume, is at its place.
func TestFilesAreInTheHandler(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c)
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"read", "/etc/app/one.conf"}}, container.HostConfig{Tmpfs: map[string]string{"/own": ""}})
	req.Mounts = []command.Mount{{Volume: r.ws + "-data", Path: "/data"}}
	req.Files = []command.File{
		{Path: "/etc/app/one.conf", Mode: 0o640, UID: 7, GID: 8, Content: []byte("a=1\n")},
		{Path: "/own/two.conf", Content: []byte("no")},
		{Path: "/data/three.conf", Content: []byte("no")},
	}
	call(t, r.conn, command.HandlerCreate, req)
	made := bustest.Wait[event.HandlerCreated](t, r.conn, req.Engagement)
	for name, want := range map[string]bool{"/etc/app/one.conf": true, "/data/three.conf": false} {
		rd, st, err := theDocker.api.CopyFromContainer(t.Context(), made.ContainerID, name)
		if (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			h, herr := tar.NewReader(rd).Next()
			if herr != nil || st.Size != 4 || st.Mode.Perm() != 0o640 || h.Uid != 7 || h.Gid != 8 {
				t.Errorf("%s: %+v, %+v", name, st, h)
			}
			rd.Close()
		}
	}
	call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
}

// The seam to telemount, tried with Docker's own driver.
func TestVolumesComeAndGoWithTheHandler(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c)
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"write", "/data/file"}}, container.HostConfig{Tmpfs: map[string]string{"/own": ""}})
	req.Mounts = []command.Mount{{Volume: r.ws + "-data", Path: "/data"}, {Volume: r.ws + "-own", Path: "/own/"}}
	call(t, r.conn, command.HandlerCreate, req)
	bustest.Wait[event.HandlerCreated](t, r.conn, req.Engagement)
	if v := r.volumes(); len(v) != 1 || v[0].Name != r.ws+"-data" || v[0].Labels[engine.LabelEngagement] != req.Engagement {
		t.Errorf("volumes %+v", v)
	}
	call(t, r.conn, command.HandlerStart, command.EngagementRef{Engagement: req.Engagement})
	if got := bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement); got.ExitCode != 0 {
		t.Errorf("exit code %d", got.ExitCode)
	}
	call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
	if v := r.volumes(); len(v) != 0 {
		t.Errorf("volumes are left: %+v", v[0])
	}
}

// Another handler takes the place of an engagement's, under the same name, once
// that has ended; connector tells them apart by their containers.
func TestHandlerAgain(t *testing.T) {
	r := start(t)
	c := r.connection()
	req := r.create(c, "wait")
	first := r.started(req)
	bustest.Wait[event.HandlerStarted](t, r.conn, req.Engagement)
	ref := command.EngagementRef{Engagement: req.Engagement}
	if h := call(t, r.conn, command.HandlerHealth, ref); !h.Running || h.Health != "" {
		t.Errorf("health %+v of one without HEALTHCHECK", h)
	}
	again := req
	again.Again = true
	refused(t, r.conn, command.HandlerCreate, again, fault.FailedPrecondition, "has not ended")
	check := command.CheckHandler{Connection: c, Handler: req.Handler, Name: req.Name}
	refused(t, r.conn, command.HandlerCheck, check, fault.AlreadyExists, "is taken")
	check.Engagement, check.Again = req.Engagement, true
	call(t, r.conn, command.HandlerCheck, check)

	for !call(t, r.conn, command.HandlerStop, ref).Already {
	}
	call(t, r.conn, command.HandlerCreate, again)
	var made []event.HandlerCreated
	until(t, "the next one is created", func() bool {
		made = nil
		bustest.Collect(t, r.conn, subject.Engagement, req.Engagement, func(e event.Envelope) bool {
			if f, ok := event.Decode[event.HandlerCreated](e); ok {
				made = append(made, f)
			}
			return len(made) == 2
		})
		return len(made) == 2
	})
	if made[1].ContainerID == first.ContainerID || made[1].Container != first.Container {
		t.Errorf("created %+v after %+v", made[1], first)
	}
	call(t, r.conn, command.HandlerStart, ref)
	bustest.Collect(t, r.conn, subject.Engagement, req.Engagement, func(e event.Envelope) bool {
		f, ok := event.Decode[event.HandlerStarted](e)
		return ok && f.ContainerID == made[1].ContainerID
	})
}

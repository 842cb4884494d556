package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/docker/go-connections/nat"
)

func TestDaemonContainer(t *testing.T) {
	r := start(t)
	r.network(r.ws+"-api", nil)
	req := r.daemon("c-one")
	req.Networks = []string{r.ws + "-api", r.cfg.network}
	req.Hostname = "dock"
	req.Expose = []string{"127.0.0.1::8080", "9090/udp"}
	r.knows(command.Connection{ID: "c-one"})
	call(t, r.conn, command.DaemonStart, req)
	made := bustest.Wait[event.DaemonStarted](t, r.conn, "c-one")
	if made.Container != "berth-"+req.Name {
		t.Errorf("started %+v", made)
	}
	in, err := theDocker.api.ContainerInspect(t.Context(), made.ContainerID)
	if err != nil {
		t.Fatal(err)
	}
	h := in.HostConfig
	if !h.AutoRemove || h.Privileged || !slices.Equal(h.CapDrop, []string{"ALL"}) || len(h.CapAdd) != 1 || !strings.HasSuffix(h.CapAdd[0], "NET_ADMIN") {
		t.Errorf("auto-remove %v, privileged %v, capabilities -%v +%v", h.AutoRemove, h.Privileged, h.CapDrop, h.CapAdd)
	}
	if !slices.Contains(h.SecurityOpt, "no-new-privileges:true") || len(h.Devices) != 1 || h.Devices[0].PathInContainer != "/dev/net/tun" || len(h.Binds)+len(h.Mounts)+len(in.Mounts) != 0 {
		t.Errorf("security %v, devices %v, mounts %v", h.SecurityOpt, h.Devices, in.Mounts)
	}
	for _, n := range []string{r.cfg.network, r.ws + "-api"} {
		if ep := in.NetworkSettings.Networks[n]; ep == nil || ep.IPAddress == "" {
			t.Errorf("not on network %s", n)
		}
	}
	if len(in.NetworkSettings.Networks) != 2 || in.Config.Hostname != "dock" {
		t.Errorf("networks %v, host name %s", in.NetworkSettings.Networks, in.Config.Hostname)
	}
	if p := in.NetworkSettings.Ports[nat.Port("8080/tcp")]; len(p) != 1 || p[0].HostIP != "127.0.0.1" || p[0].HostPort == "" {
		t.Errorf("8080 is published as %v", p)
	}
	if !slices.Equal(in.Args, []string{"--connection", "c-one", bus.FilesArg}) || in.Path != "vif" {
		t.Errorf("runs %s %q", in.Path, in.Args)
	}
	for k, v := range map[string]string{engine.LabelWorkspace: r.ws, engine.LabelComponent: "daemon", engine.LabelConnection: "c-one", engine.LabelVersion: version} {
		if in.Config.Labels[k] != v {
			t.Errorf("label %s is %q, want %q", k, in.Config.Labels[k], v)
		}
	}
	if raw, err := json.Marshal(in); err != nil || bytes.Contains(raw, []byte("SECRETSEED")) {
		t.Errorf("docker inspect shows the seed (%v)", err)
	}

	// The same again is the same.
	if a := call(t, r.conn, command.DaemonStart, req); !a.Already {
		t.Error("a second daemon-start did something")
	}
	// One default route, by the workspace's network.
	if got := defaultRoutes(t, r.inside(made.ContainerID, "net")); len(got) != 1 {
		t.Errorf("default routes %v", got)
	}
	call(t, r.conn, command.DaemonStop, command.StopDaemon{Connection: "c-one"})
	if got := bustest.Wait[event.DaemonExited](t, r.conn, "c-one"); got.ExitCode != 0 || got.Error != nil {
		t.Errorf("exited %+v: it was asked to", got)
	}
	until(t, "it is gone", func() bool { return !exists(t, made.ContainerID) })
	if a := call(t, r.conn, command.DaemonStop, command.StopDaemon{Connection: "c-one"}); !a.Already {
		t.Error("a second daemon-stop did something")
	}
	if f := r.facts(subject.Connection, "c-one"); !slices.Equal(f, []string{"daemon-started", "daemon-exited"}) {
		t.Errorf("facts %q", f)
	}
}

// inside runs puppet in a container's network and returns what it says.
func (r *rig) inside(id string, cmd ...string) string {
	r.t.Helper()
	ctx := r.t.Context()
	c, err := theDocker.api.ContainerCreate(ctx, &container.Config{Image: theDocker.image, Cmd: cmd, Labels: r.ours("probe")}, &container.HostConfig{NetworkMode: container.NetworkMode("container:" + id)}, nil, nil, "")
	if err != nil {
		r.t.Fatal(err)
	}
	defer theDocker.api.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true})
	done, errs := theDocker.api.ContainerWait(ctx, c.ID, container.WaitConditionNextExit)
	if err := theDocker.api.ContainerStart(ctx, c.ID, container.StartOptions{}); err != nil {
		r.t.Fatal(err)
	}
	select {
	case <-done:
	case err := <-errs:
		r.t.Fatal(err)
	}
	rd, err := theDocker.api.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		r.t.Fatal(err)
	}
	defer rd.Close()
	var b bytes.Buffer
	if _, err := stdcopy.StdCopy(&b, &b, rd); err != nil && err != io.EOF {
		r.t.Fatal(err)
	}
	return b.String()
}

// defaultRoutes are the interfaces of the default routes in /proc/net/route.
func defaultRoutes(t *testing.T, text string) (dev []string) {
	_, routes, ok := strings.Cut(text, "/proc/net/route:")
	if !ok {
		t.Fatalf("no routes in %q", text)
	}
	for l := range strings.Lines(routes) {
		if f := strings.Fields(l); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			dev = append(dev, f[0])
		}
	}
	return dev
}

func TestDaemonThatDies(t *testing.T) {
	r := start(t)
	r.knows(command.Connection{ID: "dies-1"})
	call(t, r.conn, command.DaemonStart, r.daemon("dies-1"))
	got := bustest.Wait[event.DaemonExited](t, r.conn, "dies-1")
	if got.ExitCode != 4 || got.Error == nil || got.Error.Code != fault.Unavailable || !strings.Contains(got.Error.Message, "code 4: create tun: no such device") {
		t.Errorf("exited %+v: %v", got, got.Error)
	}
	if f := r.facts(subject.Connection, "dies-1"); !slices.Equal(f, []string{"daemon-started", "daemon-exited"}) {
		t.Errorf("facts %q", f)
	}
}

func TestDaemonStartRefuses(t *testing.T) {
	r := start(t)
	base := r.daemon("c-one")
	with := func(f func(*command.StartDaemon)) command.StartDaemon { x := base; f(&x); return x }
	refused(t, r.conn, command.DaemonStart, with(func(x *command.StartDaemon) { x.Networks = []string{"berth-no-such-network"} }), fault.NotFound, "berth-no-such-network", "docker network ls")
	refused(t, r.conn, command.DaemonStart, with(func(x *command.StartDaemon) { x.Expose = []string{"eighty"} }), fault.InvalidArgument, "--expose", "eighty")
	refused(t, r.conn, command.DaemonStart, with(func(x *command.StartDaemon) { x.Bus = nil }), fault.InvalidArgument)

	foreign := with(func(x *command.StartDaemon) { x.Name = r.ws + "-foreign" })
	r.container("berth-"+foreign.Name, nil, "wait")
	refused(t, r.conn, command.DaemonStart, foreign, fault.AlreadyExists, "berth-"+foreign.Name, "running since")

	c := r.connection()
	same := with(func(x *command.StartDaemon) { x.Name = r.daemon(c).Name })
	refused(t, r.conn, command.DaemonStart, same, fault.AlreadyExists, "ctl quit")

	// A dead one of ours is in nobody's way.
	r.knows(command.Connection{ID: "c-old"})
	dead := r.container("berth-"+base.Name, r.ours(engine.Daemon, engine.LabelConnection, "c-old"), "exit", "0")
	until(t, "it is dead", func() bool {
		in, err := theDocker.api.ContainerInspect(context.Background(), dead)
		return err == nil && in.State.Status == container.StateExited
	})
	r.knows(command.Connection{ID: "c-one"})
	call(t, r.conn, command.DaemonStart, base)
	bustest.Wait[event.DaemonStarted](t, r.conn, "c-one")
	if exists(t, dead) {
		t.Error("the dead container of ours is left")
	}
}

func TestDaemonOnABusyPort(t *testing.T) {
	r := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	req := r.daemon("c-one")
	req.Expose = []string{"127.0.0.1:" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port) + ":80"}
	r.knows(command.Connection{ID: "c-one"})
	call(t, r.conn, command.DaemonStart, req)
	got := bustest.Wait[event.DaemonExited](t, r.conn, "c-one")
	if got.Error == nil || got.Error.Code != fault.AlreadyExists || !strings.Contains(got.Error.Message, "--expose") {
		t.Errorf("exited %+v: %v", got, got.Error)
	}
	if l := r.containers(); len(l) != 0 {
		t.Errorf("%d containers are left", len(l))
	}
	if f := r.facts(subject.Connection, "c-one"); !slices.Equal(f, []string{"daemon-exited"}) {
		t.Errorf("facts %q", f)
	}
}

func TestNetworkJoin(t *testing.T) {
	r := start(t)
	name := r.ws + "-api"
	r.network(name, nil)
	join := command.JoinNetwork{Component: "connector", Network: name}
	refused(t, r.conn, command.NetworkJoin, join, fault.NotFound, "connector")
	c, err := theDocker.api.ContainerCreate(t.Context(), &container.Config{Image: theDocker.image, Cmd: []string{"wait"}, Labels: r.ours(engine.Connector)}, &container.HostConfig{NetworkMode: container.NetworkMode(r.cfg.network)}, nil, nil, r.ws+"-connector")
	if err == nil {
		err = theDocker.api.ContainerStart(t.Context(), c.ID, container.StartOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if a := call(t, r.conn, command.NetworkJoin, join); a.Already {
		t.Error("joined already")
	}
	if a := call(t, r.conn, command.NetworkJoin, join); !a.Already {
		t.Error("joined twice")
	}
	in, err := theDocker.api.ContainerInspect(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.NetworkSettings.Networks) != 2 || in.NetworkSettings.Networks[name] == nil {
		t.Errorf("networks %v", in.NetworkSettings.Networks)
	}
	refused(t, r.conn, command.NetworkJoin, command.JoinNetwork{Component: "connector", Network: "berth-no-such-network"}, fault.NotFound, "berth-no-such-network", "docker network ls")
	refused(t, r.conn, command.NetworkJoin, command.JoinNetwork{Component: "vif", Network: name}, fault.InvalidArgument, "vif")
}

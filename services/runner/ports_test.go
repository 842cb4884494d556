package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
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
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
)

// ask tells an echo server of this machine something, and returns what comes back.
func ask(proto string, p event.Published, text string) (string, error) {
	ip := netip.MustParseAddr(p.HostIP)
	switch ip {
	case netip.IPv4Unspecified():
		ip = netip.MustParseAddr("127.0.0.1")
	case netip.IPv6Unspecified():
		ip = netip.IPv6Loopback()
	}
	c, err := net.DialTimeout(proto, netip.AddrPortFrom(ip, p.HostPort).String(), 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// guest creates and starts a container of docker-run.
func (r *rig) guest(connection string, cfg container.Config, host container.HostConfig, nets map[string]*network.EndpointSettings) command.CreatedContainer {
	r.t.Helper()
	c := call(r.t, r.conn, command.ContainerCreate, r.guestRequest(connection, cfg, host, nets))
	r.startGuest(c)
	return c
}

func (r *rig) guestRequest(connection string, cfg container.Config, host container.HostConfig, nets map[string]*network.EndpointSettings) command.CreateContainer {
	if cfg.Image == "" {
		cfg.Image = theDocker.image
	}
	h := dockerRun(cfg, host)
	if nets != nil {
		h.Networking = marshal(network.NetworkingConfig{EndpointsConfig: nets})
	}
	return command.CreateContainer{Connection: connection, Component: engine.DockerRun, Handler: h}
}

func (r *rig) startGuest(c command.CreatedContainer) {
	r.t.Helper()
	if err := theDocker.api.ContainerStart(r.t.Context(), c.ContainerID, container.StartOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) kill(id string) {
	r.t.Helper()
	if err := theDocker.api.ContainerKill(r.t.Context(), id, "KILL"); err != nil {
		r.t.Fatal(err)
	}
}

// forwarders are the containers and volumes of forwarders.
func (r *rig) forwarders() (containers []container.Summary, volumes int) {
	for _, c := range r.containers() {
		if c.Labels[engine.LabelComponent] == engine.Forwarder {
			containers = append(containers, c)
		}
	}
	for _, v := range r.volumes() {
		if v.Labels[engine.LabelComponent] == engine.Forwarder {
			volumes++
		}
	}
	return containers, volumes
}

func (r *rig) noForwarders(when string) {
	r.t.Helper()
	until(r.t, "no forwarder is left "+when, func() bool { c, v := r.forwarders(); return len(c)+v == 0 })
}

func (r *rig) daemonID(connection string) string {
	r.t.Helper()
	in, err := theDocker.api.ContainerInspect(r.t.Context(), "berth-"+r.daemon(connection).Name)
	if err != nil {
		r.t.Fatal(err)
	}
	return in.ID
}

// freePort is a port of this machine that nobody has, of both protocols.
func freePort(t *testing.T) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, p, _ := net.SplitHostPort(l.Addr().String())
		if c, err := net.ListenPacket("udp", ":"+p); err == nil {
			c.Close()
			return p
		}
	}
}

func bind(bs ...nat.PortBinding) []nat.PortBinding { return bs }

// The matrix: every form of a published port, against programs that listen on
// loopback alone, on every address, and on IPv6.
func TestPublish(t *testing.T) {
	r := start(t)
	c := r.connection()
	fixed, ranged := freePort(t), freePort(t)
	n, _ := strconv.Atoi(ranged)
	servers := []string{
		"tcp4/127.0.0.1:81", "udp4/127.0.0.1:81", "tcp4/0.0.0.0:82", "udp4/0.0.0.0:82", "tcp4/127.0.0.1:83", "udp4/127.0.0.1:83",
		"tcp4/127.0.0.1:84", "tcp4/127.0.0.1:85", "tcp4/127.0.0.1:86",
	}
	want := nat.PortMap{
		"81/tcp": bind(nat.PortBinding{}), "81/udp": bind(nat.PortBinding{}),
		"82/tcp": bind(nat.PortBinding{HostPort: fixed}), "82/udp": bind(nat.PortBinding{HostPort: fixed}),
		"83/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1", HostPort: "0"}), "83/udp": bind(nat.PortBinding{HostIP: "127.0.0.1"}),
		"84/tcp": bind(nat.PortBinding{HostPort: fmt.Sprintf("%d-%d", n, n+20)}),
		"85/tcp": bind(nat.PortBinding{HostIP: "::1"}),
		"86/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1"}, nat.PortBinding{HostIP: "127.0.0.2"}),
	}
	if hasIPv6() {
		servers = append(servers, "tcp6/[::1]:87", "udp6/[::1]:87")
		want["87/tcp"], want["87/udp"] = bind(nat.PortBinding{}), bind(nat.PortBinding{})
	} else {
		t.Logf("%s: this kernel has no IPv6: ::1 is not tried", t.Name())
		delete(want, "85/tcp")
	}
	exposed := nat.PortSet{}
	for p := range want {
		exposed[p] = struct{}{}
	}
	made := r.guest(c, container.Config{Cmd: append([]string{"serve"}, servers...), ExposedPorts: exposed}, container.HostConfig{PortBindings: want}, nil)
	seen := map[string]int{}
	for _, p := range made.Published {
		seen[fmt.Sprintf("%d/%s", p.Container, p.Protocol)]++
		text := fmt.Sprintf("%v?", p)
		until(t, "an answer through "+text, func() bool {
			got, err := ask(p.Protocol, p, text)
			if err != nil {
				t.Logf("%s: %v", text, err)
			}
			return got == text
		})
	}
	for p, b := range want {
		if seen[string(p)] < len(b) {
			t.Errorf("%s is published %d times of %d: %v", p, seen[string(p)], len(b), made.Published)
		}
	}
	for _, p := range made.Published {
		switch {
		case p.Container == 82 && strconv.Itoa(int(p.HostPort)) != fixed,
			p.Container == 83 && p.HostIP != "127.0.0.1",
			p.Container == 84 && (int(p.HostPort) < n || int(p.HostPort) > n+20),
			p.Container == 85 && p.HostIP != "::1":
			t.Errorf("published %+v", p)
		}
	}
	in, err := theDocker.api.ContainerInspect(t.Context(), made.ContainerID)
	if err != nil || in.Config.Labels[engine.LabelPublished] == "" || in.HostConfig.NetworkMode != container.NetworkMode("container:"+r.daemonID(c)) {
		t.Errorf("labels %v, network %s, %v", in.Config.Labels, in.HostConfig.NetworkMode, err)
	}
	r.kill(made.ContainerID)
	r.noForwarders("after the container was killed")
	for _, p := range made.Published {
		if p.Protocol != "tcp" {
			continue
		}
		if got, err := ask("tcp", p, "x"); err == nil {
			t.Errorf("%v still answers %q", p, got)
		}
	}
}

func hasIPv6() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		l.Close()
	}
	return err == nil
}

// -P publishes what the image exposes, and what --expose adds.
func TestPublishAll(t *testing.T) {
	r := start(t)
	made := r.guest(r.connection(), container.Config{Cmd: []string{"serve", "tcp/127.0.0.1:8080", "udp/127.0.0.1:9"}, ExposedPorts: nat.PortSet{"9/udp": {}}}, container.HostConfig{PublishAllPorts: true}, nil)
	var got []string
	for _, p := range made.Published {
		if s := fmt.Sprintf("%d/%s", p.Container, p.Protocol); !slices.Contains(got, s) {
			got = append(got, s)
		}
		until(t, "an answer", func() bool { s, _ := ask(p.Protocol, p, "x"); return s == "x" })
	}
	if !slices.Equal(got, []string{"9/udp", "8080/tcp"}) {
		t.Errorf("published %v", made.Published)
	}
}

// Whatever of a forwarder dies, it comes back with the same ports.
func TestForwarderThatDies(t *testing.T) {
	r := start(t)
	made := r.guest(r.connection(), container.Config{Cmd: []string{"serve", "tcp/127.0.0.1:81"}}, container.HostConfig{PortBindings: nat.PortMap{"81/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1"})}}, nil)
	p := made.Published[0]
	for i := range 2 {
		parts, _ := r.forwarders()
		if len(parts) != 2 {
			t.Fatalf("%d parts", len(parts))
		}
		dead := parts[i].ID
		r.kill(dead)
		until(t, "two other parts", func() bool {
			now, _ := r.forwarders()
			return len(now) == 2 && now[0].ID != dead && now[1].ID != dead
		})
		until(t, "an answer again", func() bool { s, _ := ask("tcp", p, "again"); return s == "again" })
	}
	r.kill(made.ContainerID)
	r.noForwarders("after the container was killed")
}

// While it was dead, somebody took its port: that is told, and its return too.
func TestPortTakenMeanwhile(t *testing.T) {
	r := start(t)
	req := r.create(r.connection())
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"serve", "tcp/127.0.0.1:81"}},
		container.HostConfig{PortBindings: nat.PortMap{"81/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1"})}})
	p := r.started(req).Published[0]
	parts, _ := r.forwarders()
	for _, c := range parts {
		if len(c.Ports) > 0 {
			r.kill(c.ID)
		}
	}
	var thief net.Listener
	until(t, "the port is stolen", func() (ok bool) {
		var err error
		thief, err = net.Listen("tcp4", net.JoinHostPort(p.HostIP, strconv.Itoa(int(p.HostPort))))
		return err == nil
	})
	closed := bustest.Wait[event.PortsClosed](t, r.conn, req.Engagement)
	if closed.Error.Code != fault.AlreadyExists || !slices.Equal(closed.Published, []event.Published{p}) {
		t.Errorf("closed %+v", closed)
	}
	thief.Close()
	if opened := bustest.Wait[event.PortsOpened](t, r.conn, req.Engagement); !slices.Equal(opened.Published, closed.Published) {
		t.Errorf("opened %+v", opened)
	}
	until(t, "an answer again", func() bool { s, _ := ask("tcp", p, "x"); return s == "x" })
}

// Each clash is found before anything is made, and names who has the port.
func TestPortClashes(t *testing.T) {
	r := start(t)
	c := r.connection()
	busy := freePort(t)
	publish := func(host string, port nat.Port) command.CreateContainer {
		return r.guestRequest(c, container.Config{Cmd: []string{"serve", "tcp/127.0.0.1:" + port.Port()}}, container.HostConfig{PortBindings: nat.PortMap{port: bind(nat.PortBinding{HostIP: "127.0.0.1", HostPort: host})}}, nil)
	}
	nothingMore := func(t *testing.T, before []container.Summary) {
		t.Helper()
		if now := r.containers(); len(now) != len(before) {
			t.Errorf("%d containers became %d", len(before), len(now))
		}
	}
	t.Run("a process of this machine", func(t *testing.T) {
		before := r.containers()
		l, err := net.Listen("tcp4", "127.0.0.1:"+busy)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refused(t, r.conn, command.ContainerCreate, publish(busy, "81/tcp"), fault.AlreadyExists, "port "+busy, "taken", "ss -tulpn")
		nothingMore(t, before)
	})
	t.Run("somebody else's container", func(t *testing.T) {
		name := r.ws + "-other"
		o, err := theDocker.api.ContainerCreate(t.Context(), &container.Config{Image: theDocker.image, Cmd: []string{"wait"}, ExposedPorts: nat.PortSet{"1/tcp": {}}},
			&container.HostConfig{PortBindings: nat.PortMap{"1/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1", HostPort: busy})}}, nil, nil, name)
		if err == nil {
			defer theDocker.api.ContainerRemove(context.Background(), o.ID, container.RemoveOptions{Force: true})
			err = theDocker.api.ContainerStart(t.Context(), o.ID, container.StartOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		before := r.containers()
		refused(t, r.conn, command.ContainerCreate, publish(busy, "81/tcp"), fault.AlreadyExists, busy, name, theDocker.image, "docker stop "+name)
		nothingMore(t, before)
	})
	t.Run("another container of docker-run", func(t *testing.T) {
		req := publish(busy, "81/tcp")
		req.Handler.Name = r.ws + "-first"
		first := call(t, r.conn, command.ContainerCreate, req)
		r.startGuest(first)
		before := r.containers()
		refused(t, r.conn, command.ContainerCreate, publish(busy, "82/tcp"), fault.AlreadyExists, busy, r.ws+"-first", "docker stop "+r.ws+"-first")
		refused(t, r.conn, command.ContainerCreate, publish("", "81/tcp"), fault.AlreadyExists, "81/tcp", r.ws+"-first", "share one network")
		h := r.create(c, "wait")
		refused(t, r.conn, command.HandlerCheck, command.CheckHandler{Connection: c, Engagement: h.Engagement, Handler: h.Handler, Name: h.Name, Ports: []event.Port{{Container: 81, Protocol: "TCP"}}}, fault.AlreadyExists, "81/tcp", r.ws+"-first")
		nothingMore(t, before)
		// The same again at once, as soon as the first has ended.
		r.kill(first.ContainerID)
		until(t, "the first is gone", func() bool { return !exists(t, first.ContainerID) })
		again := call(t, r.conn, command.ContainerCreate, req)
		r.startGuest(again)
		r.kill(again.ContainerID)
		r.noForwarders("after both")
	})
	t.Run("a handler", func(t *testing.T) {
		h := r.create(c, "wait")
		h.Ports = []event.Port{{Container: 81, Protocol: "TCP"}}
		r.started(h)
		refused(t, r.conn, command.ContainerCreate, publish("", "81/tcp"), fault.AlreadyExists, "81/TCP", "ctl leave "+h.Engagement)
		call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: h.Engagement})
		bustest.Wait[event.HandlerExited](t, r.conn, h.Engagement)
	})
	t.Run("one that did not say so", func(t *testing.T) {
		silent := r.guest(c, container.Config{Cmd: []string{"serve", "tcp/0.0.0.0:81"}}, container.HostConfig{}, nil)
		until(t, "it is seen", func() bool {
			f, ok := bus.Call(t.Context(), r.conn, command.ContainerCreate, "", publish("", "81/tcp"))
			if ok == nil {
				_ = theDocker.api.ContainerRemove(t.Context(), f.ContainerID, container.RemoveOptions{Force: true}) // came before it listened
				r.noForwarders("of one too early")
			}
			return ok != nil && strings.Contains(ok.Error(), "81/tcp") && strings.Contains(ok.Error(), "listened on already")
		})
		r.kill(silent.ContainerID)
	})
	t.Run("not an address of this machine, not TCP or UDP", func(t *testing.T) {
		req := r.guestRequest(c, container.Config{}, container.HostConfig{PortBindings: nat.PortMap{"81/tcp": bind(nat.PortBinding{HostIP: "192.0.2.77"})}}, nil)
		refused(t, r.conn, command.ContainerCreate, req, fault.InvalidArgument, "192.0.2.77")
		req = r.guestRequest(c, container.Config{}, container.HostConfig{PortBindings: nat.PortMap{"81/sctp": bind(nat.PortBinding{})}}, nil)
		refused(t, r.conn, command.ContainerCreate, req, fault.InvalidArgument, "81/sctp", "TCP and UDP")
	})
	r.noForwarders("after all that was refused")
}

// A handler has its ports from the check on, and they are told with its creation.
func TestHandlerPublishes(t *testing.T) {
	r := start(t)
	c := r.connection()
	busy := freePort(t)
	publish := container.HostConfig{PortBindings: nat.PortMap{"8080/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1", HostPort: busy})}}
	newReq := func() (command.CheckHandler, command.CreateHandler) {
		req := r.create(c)
		req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"serve", "tcp/127.0.0.1:8080"}}, publish)
		req.Ports = []event.Port{{Container: 8080, Protocol: "TCP"}}
		return command.CheckHandler{Connection: c, Engagement: req.Engagement, Handler: req.Handler, Name: req.Name, Ports: req.Ports}, req
	}
	check, req := newReq()
	call(t, r.conn, command.HandlerCheck, check)
	if l, err := net.Listen("tcp4", "127.0.0.1:"+busy); err == nil {
		l.Close()
		t.Error("the port is not held from the check on")
	}
	other, _ := newReq()
	refused(t, r.conn, command.HandlerCheck, other, fault.AlreadyExists, "8080/tcp", "ctl leave "+req.Engagement)
	made := r.started(req)
	if len(made.Published) != 1 || strconv.Itoa(int(made.Published[0].HostPort)) != busy {
		t.Fatalf("published %v", made.Published)
	}
	until(t, "an answer", func() bool { s, _ := ask("tcp", made.Published[0], "x"); return s == "x" })
	call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
	bustest.Wait[event.HandlerExited](t, r.conn, req.Engagement)
	until(t, "stopped", func() bool {
		return call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement}).Already
	})
	if c, v := r.forwarders(); len(c)+v > 0 {
		t.Errorf("left when the stop is done: %v and %d volumes", c, v)
	}

	// Another handler takes the place of the first: the port stays the same,
	// although the engine chose it.
	publish.PortBindings = nat.PortMap{"8080/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1"})}
	check, req = newReq()
	call(t, r.conn, command.HandlerCheck, check)
	made = r.started(req)
	parts, _ := r.forwarders()
	check.Again, req.Again = true, true
	call(t, r.conn, command.HandlerCheck, check)
	for !call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement}).Already {
	}
	call(t, r.conn, command.HandlerCreate, req)
	var next event.HandlerCreated
	bustest.Collect(t, r.conn, subject.Engagement, req.Engagement, func(e event.Envelope) bool {
		f, ok := event.Decode[event.HandlerCreated](e)
		next = f
		return ok && f.ContainerID != made.ContainerID
	})
	call(t, r.conn, command.HandlerStart, command.EngagementRef{Engagement: req.Engagement})
	if !slices.Equal(next.Published, made.Published) {
		t.Errorf("published %v, after %v", next.Published, made.Published)
	}
	if now, _ := r.forwarders(); len(now) != 2 || len(parts) != 2 || now[0].ID != parts[0].ID {
		t.Errorf("the forwarder was made anew: %v, %v", parts, now)
	}
	until(t, "an answer from the next", func() bool { s, _ := ask("tcp", next.Published[0], "x"); return s == "x" })
	for !call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement}).Already {
	}
	if c, v := r.forwarders(); len(c)+v > 0 {
		t.Errorf("left after the second: %v and %d volumes", c, v)
	}

	// Checked and then given up.
	check, req = newReq()
	call(t, r.conn, command.HandlerCheck, check)
	call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: req.Engagement})
	if c, v := r.forwarders(); len(c)+v > 0 {
		t.Errorf("left after a check that was given up: %v and %d volumes", c, v)
	}

	// It cannot start.
	check, req = newReq()
	req.Handler = dockerRun(container.Config{Image: theDocker.image, Entrypoint: []string{"/nothing"}}, publish)
	call(t, r.conn, command.HandlerCheck, check)
	r.started(req)
	bustest.Wait[event.HandlerFailed](t, r.conn, req.Engagement)
	r.noForwarders("of a handler that could not start")
}

// Runner is killed while ports are published: they go on, the next one takes
// them over, and what ended meanwhile is undone.
func TestPortsSurviveRunner(t *testing.T) {
	r := newRig(t)
	first := r.process()
	c := r.connection()
	net1 := r.ws + "-net"
	r.network(net1, nil)
	host := container.HostConfig{PortBindings: nat.PortMap{"81/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1"})}, NetworkMode: container.NetworkMode(net1)}
	stays := r.guest(c, container.Config{Cmd: []string{"serve", "tcp/127.0.0.1:81"}}, host, map[string]*network.EndpointSettings{net1: {}})
	host.PortBindings = nat.PortMap{"82/tcp": bind(nat.PortBinding{HostIP: "127.0.0.1"})}
	host.NetworkMode = network.NetworkDefault
	goes := r.guest(c, container.Config{Cmd: []string{"serve", "tcp/127.0.0.1:82"}}, host, nil)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if s, err := ask("tcp", stays.Published[0], "alone"); s != "alone" {
		t.Errorf("without runner: %q, %v", s, err)
	}
	r.kill(goes.ContainerID)
	parts, _ := r.forwarders()
	for _, p := range parts { // one half of the one that stays
		if p.Labels[engine.LabelGuest] == label(t, stays.ContainerID, engine.LabelGuest) && strings.HasPrefix(p.HostConfig.NetworkMode, "container:") {
			r.kill(p.ID)
		}
	}
	r.run()
	until(t, "one forwarder is left", func() bool { c, v := r.forwarders(); return len(c) == 2 && v == 1 })
	until(t, "the other half is back", func() bool { s, _ := ask("tcp", stays.Published[0], "back"); return s == "back" })
	if on := r.networksOf(c); !slices.Contains(on, net1) {
		t.Errorf("the network was left: %v", on)
	}
	r.kill(stays.ContainerID)
	r.noForwarders("after the end of one that was adopted")
	until(t, "the network is left", func() bool { return !slices.Contains(r.networksOf(c), net1) })
}

func label(t *testing.T, id, key string) string {
	t.Helper()
	in, err := theDocker.api.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return in.Config.Labels[key]
}

// networksOf are the names of the networks that a connection's daemon container is on.
func (r *rig) networksOf(connection string) []string {
	r.t.Helper()
	in, err := theDocker.api.ContainerInspect(r.t.Context(), r.daemonID(connection))
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for n, is := range in.NetworkSettings.Networks {
		if is.EndpointID != "" { // else one that an old engine keeps of a join that failed
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// askFrom runs a container on a network that asks an echo server by name.
func (r *rig) askFrom(network, at, text string) string {
	r.t.Helper()
	out, err := exec.CommandContext(r.t.Context(), "docker", "run", "--rm", "--network", network, "--label", engine.LabelWorkspace+"="+r.ws, theDocker.image, "ask", at, text).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// Networks are joined for a container, with its names and its address, and left
// when the last that needs them has ended.
func TestNetworks(t *testing.T) {
	r := start(t)
	c := r.connection()
	one, two, fixed := r.ws+"-one", r.ws+"-two", r.ws+"-fixed"
	r.network(one, nil)
	r.network(two, nil)
	sub := r.subnet(fixed)
	ip := sub.Addr().Next().Next().Next().Next().Next().String()
	serve := container.Config{Cmd: []string{"serve", "tcp/0.0.0.0:81"}}
	first := r.guest(c, serve, container.HostConfig{NetworkMode: container.NetworkMode(one)}, map[string]*network.EndpointSettings{
		one: {Aliases: []string{"web", "www"}}, two: {}, fixed: {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: ip}},
	})
	name := nameOf(t, first.ContainerID)
	for _, x := range [][2]string{{one, "web"}, {one, "www"}, {one, name}, {two, name}, {fixed, ip}} {
		until(t, x[1]+" answers in "+x[0], func() bool { return r.askFrom(x[0], "tcp/"+x[1]+":81", "hello") == "hello" })
	}
	second := r.guest(c, container.Config{Cmd: []string{"serve", "tcp/0.0.0.0:82"}}, container.HostConfig{NetworkMode: container.NetworkMode(one)}, map[string]*network.EndpointSettings{one: {Aliases: []string{"api"}}})
	until(t, "api answers", func() bool { return r.askFrom(one, "tcp/api:82", "hello") == "hello" })
	until(t, "web still answers", func() bool { return r.askFrom(one, "tcp/web:81", "hello") == "hello" })

	t.Run("refused", func(t *testing.T) {
		with := func(name string, e *network.EndpointSettings) command.CreateContainer {
			return r.guestRequest(c, serve, container.HostConfig{NetworkMode: container.NetworkMode(name)}, map[string]*network.EndpointSettings{name: e})
		}
		before := r.networksOf(c)
		refused(t, r.conn, command.ContainerCreate, with(r.ws+"-none", nil), fault.NotFound, r.ws+"-none", "docker network create")
		refused(t, r.conn, command.ContainerCreate, with(r.cfg.network, &network.EndpointSettings{Aliases: []string{"me"}}), fault.FailedPrecondition, "connection itself", "me")
		far := &network.EndpointIPAMConfig{IPv4Address: sub.Addr().Next().Next().Next().Next().Next().Next().String()}
		refused(t, r.conn, command.ContainerCreate, with(fixed, &network.EndpointSettings{IPAMConfig: far}), fault.AlreadyExists, name, "one address", ip)
		refused(t, r.conn, command.ContainerCreate, with(two, &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: "192.0.2.9"}}), fault.AlreadyExists, "192.0.2.9")
		refused(t, r.conn, command.ContainerCreate, with("host", nil), fault.InvalidArgument, "--network host", "publish")
		if now := r.networksOf(c); !slices.Equal(before, now) {
			t.Errorf("the networks changed: %v, %v", before, now)
		}
	})
	t.Run("an address that another container has", func(t *testing.T) {
		other := r.ws + "-third"
		sub := r.subnet(other)
		taken := sub.Addr().Next().Next().Next().String()
		o, err := theDocker.api.ContainerCreate(t.Context(), &container.Config{Image: theDocker.image, Cmd: []string{"wait"}, Labels: r.ours("probe")}, &container.HostConfig{NetworkMode: container.NetworkMode(other)},
			&network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{other: {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: taken}}}}, nil, r.ws+"-sitter")
		if err == nil {
			err = theDocker.api.ContainerStart(t.Context(), o.ID, container.StartOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		req := r.guestRequest(c, container.Config{Cmd: []string{"serve", "tcp/0.0.0.0:83"}}, container.HostConfig{NetworkMode: container.NetworkMode(other)}, map[string]*network.EndpointSettings{other: {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: taken}}})
		refused(t, r.conn, command.ContainerCreate, req, fault.AlreadyExists, taken, r.ws+"-sitter")
		if err := theDocker.api.ContainerRemove(t.Context(), o.ID, container.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		again := call(t, r.conn, command.ContainerCreate, req)
		r.startGuest(again)
		until(t, "it answers there", func() bool { return r.askFrom(other, "tcp/"+taken+":83", "hello") == "hello" })
		r.kill(again.ContainerID)
	})

	r.kill(first.ContainerID)
	until(t, "two networks are left, and the third is still needed", func() bool {
		on := r.networksOf(c)
		return slices.Contains(on, one) && !slices.Contains(on, two) && !slices.Contains(on, fixed)
	})
	if got := r.askFrom(one, "tcp/api:82", "hello"); got != "hello" {
		t.Errorf("the second lost its network: %s", got)
	}
	r.kill(second.ContainerID)
	until(t, "only the connection's own is left", func() bool { return slices.Equal(r.networksOf(c), []string{r.cfg.network}) })
}

// subnet makes a network with a subnet of its own choice.
func (r *rig) subnet(name string) netip.Prefix {
	r.t.Helper()
	for i := range 200 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(55 + i), 0}), 24)
		_, err := theDocker.api.NetworkCreate(r.t.Context(), name, network.CreateOptions{
			Labels: map[string]string{engine.LabelWorkspace: r.ws}, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: p.String()}}},
		})
		if err == nil {
			return p
		}
	}
	r.t.Fatal("no free subnet")
	return netip.Prefix{}
}

func nameOf(t *testing.T, id string) string {
	t.Helper()
	in, err := theDocker.api.ContainerInspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(in.Name, "/")
}

// Sixteen connections and fifty handlers at once, some with ports: all come up,
// all answer, all end, and nothing is left.
func TestMany(t *testing.T) {
	if testing.Short() {
		t.Skip("TestMany starts some ninety containers: skipped with -short")
	}
	r := start(t)
	const connections, handlers = 16, 50
	ids := make([]string, connections)
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = fmt.Sprintf("c-%d-%s", i, strings.ToLower(rand.Text()[:8]))
		r.knows(command.Connection{ID: ids[i]})
		call(t, r.conn, command.DaemonStart, r.daemon(ids[i]))
	}
	for _, id := range ids {
		bustest.Wait[event.DaemonStarted](t, r.conn, id)
	}
	reqs := make([]command.CreateHandler, handlers)
	for i := range reqs {
		port := 8000 + i
		req := r.create(ids[i%connections])
		req.Ports = []event.Port{{Container: uint16(port), Protocol: "TCP"}}
		host := container.HostConfig{}
		if i%5 == 0 {
			host.PortBindings = nat.PortMap{nat.Port(fmt.Sprintf("%d/tcp", port)): bind(nat.PortBinding{HostIP: "127.0.0.1"})}
		}
		req.Handler = dockerRun(container.Config{Image: theDocker.image, Cmd: []string{"serve", fmt.Sprintf("tcp/127.0.0.1:%d", port)}}, host)
		reqs[i] = req
	}
	for i := range reqs {
		wg.Go(func() {
			if _, err := bus.Call(t.Context(), r.conn, command.HandlerCreate, "", reqs[i]); err != nil {
				t.Errorf("handler %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i := range reqs {
		made := wait[event.HandlerCreated](t, r, reqs[i].Engagement)
		call(t, r.conn, command.HandlerStart, command.EngagementRef{Engagement: reqs[i].Engagement})
		wait[event.HandlerStarted](t, r, reqs[i].Engagement)
		for _, p := range made.Published {
			until(t, "an answer", func() bool { s, _ := ask("tcp", p, "x"); return s == "x" })
		}
	}
	if n := len(r.containers()); n != connections+handlers+2*handlers/5 {
		t.Errorf("%d containers", n)
	}
	for i := range reqs {
		call(t, r.conn, command.HandlerStop, command.EngagementRef{Engagement: reqs[i].Engagement})
	}
	for i := range reqs {
		wait[event.HandlerExited](t, r, reqs[i].Engagement)
	}
	for _, id := range ids {
		call(t, r.conn, command.DaemonStop, command.StopDaemon{Connection: id})
	}
	for _, id := range ids {
		wait[event.DaemonExited](t, r, id)
	}
	r.noForwarders("after all")
	until(t, "no container is left", func() bool { return len(r.containers()) == 0 })
}

// wait is bustest.Wait for a machine that has much to do.
func wait[T event.Data](t *testing.T, r *rig, id string) T {
	t.Helper()
	var got T
	scope, _, _ := got.Fact()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tail, err := r.conn.TailFacts(ctx, time.Time{}, subject.FactsOf(scope, id))
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Stop()
	for {
		e, err := tail.Next(ctx)
		if err != nil {
			t.Fatalf("%s of %s: %v", event.TypeOf(got), id, err)
		}
		if d, ok := event.Decode[T](e); ok {
			return d
		}
	}
}

// --ip and --ip6 in a network of both families.
func TestNetworkOfBothFamilies(t *testing.T) {
	if !hasIPv6() {
		t.Skipf("%s: this kernel has no IPv6", t.Name())
	}
	r := start(t)
	c := r.connection()
	name := r.ws + "-both"
	octets := []byte(rand.Text()[:2])
	six := netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x19, octets[0], octets[1]}), 64)
	both := true
	_, err := theDocker.api.NetworkCreate(t.Context(), name, network.CreateOptions{
		EnableIPv6: &both, Labels: map[string]string{engine.LabelWorkspace: r.ws}, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: six.String()}, {Subnet: "198.19.254.0/24"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ip6, ip4 := six.Addr().Next().Next().Next().Next().String(), "198.19.254.9"
	made := r.guest(c, container.Config{Cmd: []string{"serve", "tcp/[::]:81", "udp/[::]:81"}}, container.HostConfig{NetworkMode: container.NetworkMode(name)},
		map[string]*network.EndpointSettings{name: {Aliases: []string{"web"}, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: ip4, IPv6Address: ip6}}})
	for _, at := range []string{"tcp4/" + ip4 + ":81", "tcp6/[" + ip6 + "]:81", "udp6/[" + ip6 + "]:81", "tcp6/web:81", "tcp4/web:81"} {
		until(t, at+" answers", func() bool { return r.askFrom(name, at, "hello") == "hello" })
	}
	r.kill(made.ContainerID)
	until(t, "the network is left", func() bool { return !slices.Contains(r.networksOf(c), name) })
}

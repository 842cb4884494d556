package main

import (
	"archive/tar"
	"bytes"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/event"
	"berth.dev/services/runner/internal/engine"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// Runner as ctl starts it: in a container on the workspace's network, with the
// engine's socket. It finds its own image, and when connector is dead it takes
// down everything, the network that it is on itself, and its own container.
func TestInItsContainerItRemovesItself(t *testing.T) {
	if testing.Short() {
		t.Skip("TestInItsContainerItRemovesItself takes more than ten seconds: skipped with -short")
	}
	r := newRig(t)
	host := theDocker.api.DaemonHost()
	if !strings.HasPrefix(host, "unix://") {
		t.Skipf("TestInItsContainerItRemovesItself mounts the engine's socket; the engine is at %s", host)
	}
	r.inContainer(strings.TrimPrefix(host, "unix://"))
	c := r.connection()
	daemon, err := theDocker.api.ContainerInspect(t.Context(), "berth-"+r.daemon(c).Name)
	if err != nil {
		t.Fatal(err)
	}
	if daemon.Config.Image != theDocker.image {
		t.Errorf("the daemon container runs %s, runner %s", daemon.Config.Image, theDocker.image)
	}
	req := r.create(c, "wait")
	r.started(req)
	bustest.Wait[event.HandlerStarted](t, r.conn, req.Engagement)
	r.bus.Stop()
	for deadline := time.Now().Add(bus.GiveUp + 20*time.Second); len(r.containers())+len(r.networks()) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("left: containers %v, networks %v", r.containers(), r.networks())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// inContainer starts runner in a container. The bus listens on loopback, so the
// test passes it on at the address that the network's containers see.
func (r *rig) inContainer(socket string) {
	r.t.Helper()
	ctx := r.t.Context()
	n, err := theDocker.api.NetworkInspect(ctx, r.cfg.network, network.InspectOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	gateway := n.IPAM.Config[0].Gateway
	l, err := net.Listen("tcp", net.JoinHostPort(gateway, "0"))
	if err != nil {
		r.t.Skipf("%s needs the engine on this machine: %v", r.t.Name(), err)
	}
	r.t.Cleanup(func() { l.Close() })
	u, err := url.Parse(r.cfg.bus.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	go passOn(l, u.Host)
	conf := r.cfg.bus
	conf.URL = "nats://" + l.Addr().String()
	raw := marshal(conf)
	var file bytes.Buffer
	w := tar.NewWriter(&file)
	err = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(bus.ConfigFile, "/"), Mode: 0o600, Size: int64(len(raw))})
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := theDocker.api.ContainerCreate(ctx, &container.Config{
		Image: theDocker.image, Entrypoint: []string{"runner"}, Cmd: []string{"--workspace", r.ws, "--network", r.cfg.network, "--volume-driver", "local"},
		Hostname: "named-by-ctl", Labels: r.ours(engine.Runner),
	}, &container.HostConfig{AutoRemove: true, NetworkMode: container.NetworkMode(r.cfg.network), Binds: []string{socket + ":/var/run/docker.sock"}}, nil, nil, r.ws+"-runner")
	if err == nil {
		err = theDocker.api.CopyToContainer(ctx, c.ID, "/", &file, container.CopyToContainerOptions{})
	}
	if err == nil {
		err = theDocker.api.ContainerStart(ctx, c.ID, container.StartOptions{})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.ready()
}

func passOn(l net.Listener, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				_, _ = io.Copy(out, in)
				out.Close()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}

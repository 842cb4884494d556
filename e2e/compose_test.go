package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// Two services of a compose file are handlers, side by side, on a network with a
// third that is not; and one command brings them up and down.
func TestCompose(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	up := []string{"compose", "up", "--file", "testdata/compose.yaml"}
	untouched := podNames(t)
	t.Run("before its other services", func(t *testing.T) {
		refused(t, ctl, 1, []string{"berth-e2e-shop_back", "docker compose up -d db"}, up...)
		if now := podNames(t); now != untouched {
			t.Errorf("a refused command touched the pods: %s, now %s", untouched, now)
		}
	})
	network := dockerNetwork(t, "berth-e2e-shop_back") // as docker compose names it
	t.Run("up", func(t *testing.T) {
		p := ctl.Start(t, up...)
		ports := published(t, p, 3)
		answers(t, time.Minute, "frontend v2")
		for _, port := range []string{"7777/tcp", "7777/udp"} {
			echoes(t, port, ports[port])
		}
		rig.Docker(t, "run", "--rm", "--network", network, probeImage, "get", "http://web:8080")
		if out := p.Output(); !strings.Contains(out, "web | ") || !strings.Contains(out, "side | echo on 127.0.0.1:7777") {
			t.Errorf("lines do not say whose they are:\n%s", out)
		}
		r := ctl.Must(t, "status")
		for _, want := range []string{"replace", "ingest"} {
			if !strings.Contains(r.Stdout, want) {
				t.Errorf("status does not tell of %s: %v", want, r)
			}
		}
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		noHandler(t)
		nothingBeside(t, network)
		restored(t)
	})
	t.Run("beside docker compose", func(t *testing.T) { besideCompose(t, ctl) })
	t.Run("one fails, all end", func(t *testing.T) {
		rig.Docker(t, "create", "--name", "intercept-frontend-v1-8080", probeImage)
		defer rig.Docker(t, "rm", "-f", "intercept-frontend-v1-8080")
		r := ctl.Run(t, up...)
		if r.Code != 1 || !strings.Contains(r.Stderr, "ctl: web: ") || !strings.Contains(r.Stderr, "is taken") {
			t.Errorf("%v", r)
		}
		noHandler(t)
		nothingBeside(t, network)
	})
}

// composeTool is docker compose as this machine has it: Docker's plugin, or the
// program docker-compose of before; nil for neither.
func composeTool() []string {
	if exec.Command("docker", "compose", "version").Run() == nil {
		return []string{"docker", "compose"}
	}
	if path, err := exec.LookPath("docker-compose"); err == nil {
		return []string{path}
	}
	return nil
}

// The one file is docker compose's too: it runs the services that are no handlers,
// which handlers find and are found by, and takes its own down afterwards.
func besideCompose(t *testing.T, ctl *rig.Ctl) {
	t.Helper()
	tool := composeTool()
	if tool == nil {
		t.Skipf("%s needs docker compose or docker-compose", t.Name())
	}
	const project = "berth-e2e-beside"
	text, err := os.ReadFile("testdata/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// docker-compose 1.29 knows no name in the file.
	_, text, _ = bytes.Cut(text, []byte("\n"))
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	compose := func(args ...string) {
		t.Helper()
		line := append(append(tool[1:len(tool):len(tool)], "-p", project, "-f", file), args...)
		if out, err := exec.Command(tool[0], line...).CombinedOutput(); err != nil {
			t.Errorf("%s %v: %v\n%s", tool[0], line, err, out)
		}
	}
	defer compose("down") // fails where a handler is on the network still
	compose("up", "-d", "db")
	p := ctl.Start(t, "compose", "up", "--project-name", project, "--file", file)
	published(t, p, 3)
	answers(t, time.Minute, "frontend v2")
	ctl.Must(t, "docker-run", probeImage, "halfclose", "db:5432")
	rig.Docker(t, "run", "--rm", "--network", project+"_back", probeImage, "get", "http://web:8080")
	if err := p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.Wait(t, time.Minute)
	noHandler(t)
	onlyOneIsOn(t, project+"_back")
	restored(t)
}

// onlyOneIsOn: docker compose's own container, and no handler any more.
func onlyOneIsOn(t *testing.T, network string) {
	t.Helper()
	rig.Eventually(t, 20*time.Second, "the handlers have left "+network, func(context.Context) (bool, string) {
		on := strings.Join(rig.Docker(t, "network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", network), " ")
		return len(strings.Fields(on)) == 1, on
	})
}

package e2e

import (
	"os"
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

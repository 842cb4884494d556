package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// Many connections, begun in the same instant where there is no workspace, and many
// handlers, begun likewise: all work, and one quit ends all of them.
func TestMany(t *testing.T) {
	const connections, handlers = 16, 50
	ctl := rig.NewCtl(t, cluster)
	quitAtEnd(t, ctl)
	var connecting []*rig.Proc
	for i := range connections {
		connecting = append(connecting, ctl.Start(t, "connect", "--docker", "--name", fmt.Sprint("many-", i)))
	}
	for _, p := range connecting {
		if r := p.Wait(t, 2*time.Minute); r.Code != 0 {
			t.Fatalf("%v", r)
		}
	}
	use := func(i int) string { return fmt.Sprint("many-", i%connections) }
	var handling []*rig.Proc
	for i := range handlers {
		workload := []string{"frontend-v1", "backend"}[i%2]
		handling = append(handling, ctl.Start(t, "ingest", workload, "--use", use(i), "--mount", "false", "--docker-run", "--",
			"--name", fmt.Sprint("berth-e2e-many-", i), probeImage, "serve", fmt.Sprint(":", 9100+i)))
	}
	rig.Eventually(t, 2*time.Minute, "all handlers are active", func(context.Context) (bool, string) {
		for _, p := range handling {
			if !p.Running() {
				t.Fatalf("a handler ended: %s", p.Output())
			}
		}
		r := ctl.Run(t, "status", "--output", "json")
		active := strings.Count(strings.ReplaceAll(r.Stdout, " ", ""), `"phase":"active"`)
		return active == handlers, fmt.Sprint(active, " are")
	})
	for i := range handlers {
		if r := ctl.Must(t, "curl", "--use", use(i), "-sS", fmt.Sprint("http://127.0.0.1:", 9100+i)); !strings.HasPrefix(r.Stdout, "probe\n") {
			t.Errorf("handler %d answers %v", i, r)
		}
	}
	ctl.Must(t, "quit", "--all")
	for _, p := range handling {
		p.Wait(t, time.Minute)
	}
}

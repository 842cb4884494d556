package e2e

import (
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// A shell in a real terminal, by docker-run and in the place of a workload.
func TestTerminal(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	image := rig.Docker(t, "inspect", "-f", "{{.Config.Image}}", "berth-connector")[0] // has a shell
	for _, x := range []struct {
		name string
		args []string
	}{
		{"docker-run", []string{"docker-run"}},
		{"replace", []string{"replace", "frontend-v1", "--docker-run", "--"}},
	} {
		run := func(args ...string) []string { return append(append([]string{}, x.args...), args...) }
		t.Run(x.name, func(t *testing.T) {
			t.Run("shell", func(t *testing.T) {
				term := ctl.Open(t, 24, 80, run("-it", image, "sh")...)
				sleeps := func() {
					t.Helper()
					term.Type("sh -c 'echo sleeps$((1+1)); exec sleep 1000'\n")
					term.Sees("sleeps2")
				}
				term.Says("stty size", "24 80")
				term.Resize(41, 123)
				term.Says("stty size", "41 123")
				// What is typed is echoed, so what is waited for is worked out.
				sleeps() // and has the terminal: what is typed before is the shell's
				term.Type("\x03")
				term.Says("echo int$((1+1))", "int2")
				sleeps()
				term.Type("\x1a")
				term.Sees("Stopped")
				term.Says("kill -9 %1; wait %1; cat /etc/resolv.conf | grep -c svc.cluster.local | sed s/^/dns:/", "dns:1")
				term.Type("exit 5\n")
				if code := term.Wait(2 * time.Minute); code != 5 {
					t.Errorf("exit code %d:\n%s", code, term)
				}
			})
			t.Run("Ctrl-C is the program's", func(t *testing.T) {
				term := ctl.Open(t, 24, 80, run("-it", image, "sh", "-c", "trap 'exit 77' INT; echo ready; while :; do sleep 1; done")...)
				term.Sees("ready")
				term.Type("\x03")
				if code := term.Wait(2 * time.Minute); code != 77 {
					t.Errorf("exit code %d:\n%s", code, term)
				}
			})
			for _, keys := range []struct{ flag, typed string }{{"", "\x10\x11"}, {"--detach-keys=ctrl-x,x", "\x18x"}} {
				t.Run("detach "+keys.flag, func(t *testing.T) {
					args := strings.Fields("-it --name berth-e2e-detached " + keys.flag + " " + image + " sh")
					term := ctl.Open(t, 24, 80, run(args...)...)
					term.Says("echo here$((1+1))", "here2")
					term.Type(keys.typed)
					if code := term.Wait(2 * time.Minute); code != 0 {
						t.Errorf("exit code %d:\n%s", code, term)
					}
					left := rig.Docker(t, "ps", "-aq", "--filter", "name=berth-e2e-detached")
					if x.name == "docker-run" {
						if len(left) != 1 {
							t.Error("the container did not live on")
						}
						rig.Docker(t, append([]string{"rm", "-f"}, left...)...)
					} else if len(left) > 0 {
						t.Error("the handler outlived its engagement")
					}
				})
			}
			t.Run("a pipe is no terminal", func(t *testing.T) {
				refused(t, ctl, map[string]int{"docker-run": 125, "replace": 2}[x.name], []string{"TTY"}, run("-it", image, "sh")...)
			})
			t.Run("100 MB through stdin", func(t *testing.T) { hashes(t, ctl, 100<<20, run("-i", probeImage, "hash")...) })
			t.Run("output is apart", func(t *testing.T) {
				// Progress of ctl's own goes to stderr too.
				if r := ctl.Must(t, run(probeImage, "apart")...); r.Stdout != "out\n" || !strings.Contains(r.Stderr, "err\n") {
					t.Errorf("%v", r)
				}
			})
		})
	}
	restored(t)
}

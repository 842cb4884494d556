package rig

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// sh runs a shell command on the host and returns what it printed.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// Docker runs the docker command and returns the words that it printed.
func Docker(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.Fields(string(out))
}

// Workspace filters what belongs to the workspace that ctl makes unless told
// otherwise. Tests of single services, which may run at the same time, have
// workspaces of their own.
const Workspace = "label=berth.dev/workspace=default"

// Leftovers are the names of all that the engine holds of the workspace.
func Leftovers(t *testing.T) []string {
	t.Helper()
	const f = Workspace
	var all []string
	all = append(all, Docker(t, "ps", "-a", "--filter", f, "--format", "container/{{.Names}}")...)
	all = append(all, Docker(t, "network", "ls", "--filter", f, "--format", "network/{{.Name}}")...)
	all = append(all, Docker(t, "volume", "ls", "--filter", f, "--format", "volume/{{.Name}}")...)
	for _, name := range Docker(t, "plugin", "ls", "--format", "{{.Name}}") {
		if strings.HasPrefix(name, "telemount:") { // the volume plugin goes with the last connection
			all = append(all, "plugin/"+name)
		}
	}
	return all
}

// Host is the state of the host's network and mounts, with what Docker itself
// makes for containers and bridges taken out.
type Host map[string]string

// own matches what Docker makes: bridges, veths, its chains and its containers' mounts.
var own = regexp.MustCompile(`br-[0-9a-f]{12}|docker0|veth[0-9a-f]+|DOCKER|/docker/|MASQUERADE|-A (POSTROUTING|OUTPUT|PREROUTING|FORWARD)|^#|^:|^COMMIT|^\*|nsfs`)

// Snapshot takes it.
func Snapshot(t *testing.T) Host {
	t.Helper()
	h := Host{}
	for name, script := range map[string]string{
		"ip route":         "ip route show table all | sed 's/ expires [0-9]*sec//'",
		"ip addr":          "ip -o addr show | sed 's/ valid_lft.*//'",
		"ip rule":          "ip rule",
		"iptables":         "iptables-save; ip6tables-save",
		"nft":              "nft list tables",
		"/etc/resolv.conf": "cat /etc/resolv.conf",
		"mounts":           "cut -d' ' -f1-3 /proc/mounts",
	} {
		var keep []string
		for line := range strings.Lines(sh(t, script)) {
			// ip addr numbers the links, and the numbers grow with every container.
			line = regexp.MustCompile(`^\d+: `).ReplaceAllString(strings.TrimRight(line, "\n"), "")
			if !own.MatchString(line) {
				keep = append(keep, line)
			}
		}
		slices.Sort(keep)
		h[name] = strings.Join(slices.Compact(keep), "\n")
	}
	return h
}

// Diff tells where two snapshots differ; "" where they do not.
func (h Host) Diff(now Host) string {
	var b strings.Builder
	for name, was := range h {
		if now[name] != was {
			b.WriteString("--- " + name + " before\n" + was + "\n+++ now\n" + now[name] + "\n")
		}
	}
	return b.String()
}

// Eventually probes until ok says so, and fails with what the last probe saw.
func Eventually(t *testing.T, limit time.Duration, what string, ok func(context.Context) (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		good, saw := ok(ctx)
		if good {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v; last seen: %s", what, limit, saw)
		case <-tick.C:
		}
	}
}

// DevclusterNode is the container that is the node of the dev cluster, or "" if
// KUBECONFIG leads elsewhere.
func DevclusterNode(t *testing.T) string {
	t.Helper()
	names := Docker(t, "ps", "--filter", "name=^berth-devcluster$", "--format", "{{.Names}}")
	if len(names) == 1 && strings.Contains(os.Getenv("KUBECONFIG"), "devcluster") {
		return names[0]
	}
	return ""
}

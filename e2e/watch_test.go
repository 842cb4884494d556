package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rebuilds is how many changes TestWatch makes; BERTH_E2E_REBUILDS says more.
func rebuilds(t *testing.T) int {
	t.Helper()
	n := 5
	if s := os.Getenv("BERTH_E2E_REBUILDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// Under --watch, with requests all the while from inside the cluster: none is
// refused, none is answered by a version older than the last switch that was
// announced, no image and no container piles up, and the user's own are kept.
func TestWatch(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	dir := t.TempDir()
	change := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "version"), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dockerfile := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+probeImage+"\n"+text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const copyVersion = "COPY version /version\nCMD [\"file\", \"/version\"]\n"
	dockerfile(copyVersion)
	change("version 0")
	// An image of the user's own, untagged: it is to be kept.
	iid := filepath.Join(t.TempDir(), "iid")
	rig.Docker(t, "build", "-q", "--iidfile", iid, dir)
	b, err := os.ReadFile(iid)
	if err != nil {
		t.Fatal(err)
	}
	own := strings.TrimSpace(string(b))
	t.Cleanup(func() { rig.Docker(t, "rmi", "-f", own) })
	change("version 1")
	images := rig.Docker(t, "images", "-aq", "--no-trunc")

	p := ctl.Start(t, "replace", "frontend-v1", "--docker-build", dir, "--watch")
	answers(t, 2*time.Minute, "version 1")
	n := rebuilds(t)
	loaded := make(chan string, 1)
	stop := make(chan struct{})
	go func() { loaded <- requests(t.Context(), t, "http://frontend-v1", stop, 0) }()

	switches := func() int { return strings.Count(p.Output(), "switched to sha256:") }
	for i := 2; i <= n+1; i++ {
		change(fmt.Sprintf("version %d", i))
		want := i - 1
		rig.Eventually(t, time.Minute, "switched to version "+strconv.Itoa(i), func(context.Context) (bool, string) {
			return switches() >= want, p.Output()
		})
	}
	last := fmt.Sprintf("version %d", n+1)
	t.Run("a build that fails leaves the old one", func(t *testing.T) {
		dockerfile("COPY no-such-file /\n")
		rig.Eventually(t, time.Minute, "the build fails", func(context.Context) (bool, string) {
			return strings.Contains(p.Output(), "the handler stays as it is"), p.Output()
		})
		answeredBy(t, last)
	})
	t.Run("a handler that exits gives its place back", func(t *testing.T) {
		change("exit")
		dockerfile(copyVersion)
		rig.Eventually(t, time.Minute, "the one before takes its place again", func(context.Context) (bool, string) {
			return strings.Contains(p.Output(), "takes its place again") && switches() >= n+1, p.Output()
		})
		answers(t, time.Minute, last)
	})
	close(stop)
	output := <-loaded

	// What was announced, when.
	r := ctl.Must(t, "events", "--since", "start", "--no-follow", "--output", "json")
	var announced []time.Time
	var waited []int64
	for _, e := range rig.Lines[event.Envelope](t, r.Stdout) {
		if f, ok := event.Decode[event.HandlerSwitched](e); ok {
			announced, waited = append(announced, e.Time), append(waited, f.Millis)
		}
	}
	if len(announced) < n {
		t.Fatalf("%d switches announced, want %d", len(announced), n)
	}
	answered := 0
	for line := range strings.Lines(output) {
		stamp, what, _ := strings.Cut(strings.TrimSpace(line), " ")
		nano, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil {
			continue
		}
		asked := time.Unix(0, nano)
		version, err := strconv.Atoi(strings.TrimPrefix(what, "version "))
		if err != nil {
			t.Errorf("a request at %v: %s", asked, what)
			continue
		}
		answered++
		if i, _ := slices.BinarySearchFunc(announced[:min(n, len(announced))], asked, time.Time.Compare); version < i+1 {
			t.Errorf("a request at %v, after version %d was announced, was answered by %d", asked, i+1, version)
		}
	}
	slices.Sort(waited)
	t.Logf("%d requests answered over %d switches, in which connections waited %d ms (median; %d to %d)", answered, len(announced), waited[len(waited)/2], waited[0], waited[len(waited)-1])
	if answered < 20*n {
		t.Errorf("only %d requests: that proves nothing", answered)
	}

	ctl.Must(t, "leave", "frontend-v1")
	p.Wait(t, time.Minute)
	noHandler(t)
	restored(t)
	now := rig.Docker(t, "images", "-aq", "--no-trunc")
	if !slices.Contains(now, own) {
		t.Error("the user's own untagged image was removed")
	}
	added := 0
	var left []string
	for _, id := range now {
		if !slices.Contains(images, id) {
			added++
			left = append(left, id)
		}
	}
	t.Cleanup(func() { _ = exec.Command("docker", append([]string{"rmi", "-f"}, left...)...).Run() }) // parents go with their children
	// The last one is what ran, with what the classic builder keeps as its cache.
	if added > 3 {
		t.Errorf("%d images were left by %d builds", added, n+2)
	}
}

// requests asks at a URL from inside the cluster until stop, but so many
// times at least.
func requests(ctx context.Context, t *testing.T, url string, stop <-chan struct{}, least int) string {
	pods, err := cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=echo"})
	if err != nil || len(pods.Items) == 0 {
		t.Errorf("no pod to ask from: %v", err)
		return ""
	}
	var all strings.Builder
	for {
		select {
		case <-stop:
			if strings.Count(all.String(), "\n") >= least {
				return all.String()
			}
		default:
		}
		out, err := cluster.Exec(ctx, "default", pods.Items[0].Name, "other", "/probe", "load", url, "1s")
		if err != nil {
			if ctx.Err() == nil { // the test has ended otherwise
				t.Errorf("ask: %v", err)
			}
			return all.String()
		}
		all.WriteString(out)
	}
}

func TestWatchErrors(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	before := podNames(t)
	refused(t, ctl, 2, []string{"directory can be watched"}, "replace", "frontend-v1", "--docker-build", "https://example.com/x.git", "--watch")
	refused(t, ctl, 2, []string{"no terminal"}, "replace", "frontend-v1", "--docker-build", ".", "--watch", "--", "-it", "IMAGE")
	refused(t, ctl, 2, []string{"--docker-build"}, "replace", "frontend-v1", "--watch", "--docker-run", "--", "frontend-v2")
	if now := podNames(t); now != before {
		t.Errorf("a refused command touched the pods: %s, now %s", before, now)
	}
}

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// bulkBytes is how long the conformance test's long streams are, by the first family.
// BERTH_CONFORMANCE_BYTES changes it: the full test is of 1 GB, 1000000000.
func bulkBytes() string {
	if n := os.Getenv("BERTH_CONFORMANCE_BYTES"); n != "" {
		return n
	}
	return "100000000"
}

// observations are what a client saw, by case.
type observations map[string]string

// The same client program, in a pod and through the VIF, sees the same: of a pod,
// by each family of addresses that it has. And a pod sees the same of a handler,
// through an intercept, as of the workload itself.
func TestConformance(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := cluster.Apply(ctx, "testdata/counterpart.yaml"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Delete(context.Background(), "testdata/counterpart.yaml") })
	if err := cluster.Settle(ctx, "default", "counterpart"); err != nil {
		t.Fatal(err)
	}
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	daemon, counterpart, client := daemonOf(t), onlyPod(t, "counterpart"), onlyPod(t, "echo")

	var direct observations // of the first address
	for i, ip := range counterpart.Status.PodIPs {
		bulk := bulkBytes()
		if i > 0 {
			bulk = "10000000"
		}
		args := conformArgs(t, ip.IP, bulk)
		var inside, through observations
		var insideErr, throughErr error
		var both sync.WaitGroup
		both.Go(func() { inside, insideErr = conformInPod(ctx, client, args) })
		both.Go(func() { through, throughErr = conformThrough(ctx, daemon, args) })
		both.Wait()
		if insideErr != nil || throughErr != nil {
			t.Fatalf("%s: inside: %v; through the VIF: %v", ip.IP, insideErr, throughErr)
		}
		if i == 0 {
			direct = inside
		}
		family := "IPv4"
		if strings.Contains(ip.IP, ":") {
			family = "IPv6"
		}
		t.Run("VIF "+family, func(t *testing.T) { compare(t, inside, through) })
	}

	t.Run("intercept", func(t *testing.T) {
		p := ctl.Start(t, "intercept", "counterpart", "--port", "7010:tcp", "--port", "7010:udp", "--docker-run", "--", probeImage, "counterpart", "7010")
		rig.Eventually(t, time.Minute, "the intercept is active", func(context.Context) (bool, string) {
			r := ctl.Run(t, "status", "--output", "json")
			return strings.Contains(strings.ReplaceAll(r.Stdout, " ", ""), `"phase":"active"`), r.String() + p.Output()
		})
		// The other ports are the workload's own.
		args := append(conformArgs(t, counterpart.Status.PodIP, bulkBytes()), "^(tcp [^pbn]|udp [0-9]|udp boundaries)")
		got, err := conformInPod(ctx, client, args)
		if err != nil {
			t.Fatal(err)
		}
		want := observations{}
		for c := range got {
			want[c] = direct[c]
		}
		compare(t, want, got)
		ctl.Must(t, "leave", "counterpart")
		p.Wait(t, time.Minute)
	})
}

// onlyPod is the pod of a deployment with one replica.
func onlyPod(t *testing.T, app string) *corev1.Pod {
	t.Helper()
	pods, err := cluster.Kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil || len(pods.Items) != 1 {
		t.Fatalf("want one pod of %s: %v %v", app, pods, err)
	}
	return &pods.Items[0]
}

// conformArgs are the probe's words for a counterpart at ip; nobody is at the last
// but one address of its /24 or /120.
func conformArgs(t *testing.T, ip, bulk string) []string {
	t.Helper()
	a, err := netip.ParseAddr(ip)
	if err != nil {
		t.Fatal(err)
	}
	b := a.AsSlice()
	b[len(b)-1] = 254
	dead, _ := netip.AddrFromSlice(b)
	return []string{"conform", ip, "7010", dead.String(), bulk}
}

func conformInPod(ctx context.Context, pod *corev1.Pod, args []string) (observations, error) {
	out, err := cluster.Exec(ctx, pod.Namespace, pod.Name, pod.Spec.Containers[0].Name, append([]string{"/probe"}, args...)...)
	if err != nil {
		return nil, err
	}
	return parseObservations([]byte(out))
}

func conformThrough(ctx context.Context, daemon string, args []string) (observations, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"run", "--rm", "--network", "container:" + daemon, probeImage}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("probe %v: %w\n%s", args, err, errs.String())
	}
	return parseObservations(out)
}

func parseObservations(b []byte) (observations, error) {
	var list []struct{ Case, Saw string }
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%w in %s", err, b)
	}
	all := observations{}
	for _, o := range list {
		all[o.Case] = o.Saw
	}
	return all, nil
}

// compare also wants most cases to end well: two paths that both fail are alike too.
func compare(t *testing.T, want, got observations) {
	t.Helper()
	if len(want) < 10 || len(got) != len(want) {
		t.Fatalf("%d cases, want %d", len(got), len(want))
	}
	for c, w := range want {
		if got[c] != w {
			t.Errorf("%s: %q, directly %q", c, got[c], w)
		}
		if strings.HasPrefix(w, "ask:") || w == "lost" {
			t.Errorf("%s: %q directly", c, w)
		}
	}
}

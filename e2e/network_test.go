package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"berth.dev/e2e/rig"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// probe runs the probe in the network of the daemon container.
func probe(t *testing.T, daemon string, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command("docker", append([]string{"run", "--rm", "--network", "container:" + daemon, probeImage}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// daemonOf is the name of the daemon container of the only connection.
func daemonOf(t *testing.T) string {
	t.Helper()
	names := rig.Docker(t, "ps", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=daemon", "--format", "{{.Names}}")
	if len(names) != 1 {
		t.Fatalf("want one daemon container, have %v", names)
	}
	return names[0]
}

// The network of the daemon container: what product.md section 6 promises.
func TestNetwork(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	daemon := daemonOf(t)

	pods, err := cluster.Kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=echo"})
	if err != nil || len(pods.Items) != 1 {
		t.Fatalf("want one echo pod: %v %v", pods, err)
	}
	podIP := pods.Items[0].Status.PodIP
	svc, err := cluster.Kube.CoreV1().Services("default").Get(t.Context(), "echo", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	svcIP := svc.Spec.ClusterIP
	dashed := strings.ReplaceAll(podIP, ".", "-")

	good := func(name string, want string, args ...string) {
		t.Run(name, func(t *testing.T) {
			out, err := probe(t, daemon, args...)
			if err != nil {
				t.Fatalf("probe %v: %v\n%s", args, err, out)
			}
			if !strings.Contains(out, want) {
				t.Errorf("probe %v: want %q in %q", args, want, out)
			}
		})
	}
	good("TCP to a pod", "", "halfclose", podIP+":7007")
	good("TCP to a service", "", "halfclose", svcIP+":7007")
	good("TCP by name", "", "halfclose", "echo:7007")
	good("refused by a pod", "", "refused", podIP+":9")
	good("UDP to a pod", "5 bytes", "udp", podIP+":7007", "hello")
	good("UDP to a service", "1200 bytes", "udp", svcIP+":7007", strings.Repeat("x", 1200))
	good("UDP above the MTU of most networks", "9000 bytes", "udp", podIP+":7007", strings.Repeat("x", 9000))
	good("ICMP echo to a pod", "", "ping", podIP)
	good("ICMP echo to nobody", "", "noping", "10.244.0.254")
	for _, n := range []string{"echo", "echo.default", "echo.default.svc", "echo.default.svc.cluster.local", "echo.default.svc.cluster.local."} {
		good("DNS "+n, svcIP, "resolve", n)
	}
	good("DNS of a bare single label", svcIP, "resolve", "echo.")
	good("DNS headless", podIP, "resolve", "echo-headless")
	good("DNS of a pod", podIP, "resolve", dashed+".default.pod.cluster.local")
	good("DNS SRV", "7007", "srv", "_tcp._tcp.echo.default.svc.cluster.local")
	good("DNS PTR", "echo.default.svc.cluster.local", "ptr", svcIP)
	// What is not the cluster's goes to the container's own resolver: Docker's,
	// which knows the containers of the network.
	good("DNS of another container", ".", "resolve", "berth-connector")
	t.Run("DNS of nothing", func(t *testing.T) {
		out, err := probe(t, daemon, "resolve", "no-such-service")
		if err == nil || !strings.Contains(out, "no such host") {
			t.Errorf("want no such host, got %v %q", err, out)
		}
	})
	t.Run("the API server in the cluster", func(t *testing.T) {
		r := ctl.Must(t, "curl", "-sSk", "https://kubernetes.default/version")
		if !strings.Contains(r.Stdout, "gitVersion") {
			t.Errorf("%v", r)
		}
	})
	t.Run("curl keeps its arguments, output and exit code", func(t *testing.T) {
		r := ctl.Run(t, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{content_type}", "http://frontend-v1/")
		if r.Code != 0 || r.Stdout != "200 text/plain; charset=utf-8" {
			t.Errorf("%v", r)
		}
		if r := ctl.Run(t, "curl", "-sS", "http://"+podIP+":9/"); r.Code != 7 {
			t.Errorf("want curl's exit code 7 for a refused connection: %v", r)
		}
		if r := ctl.Run(t, "curl", "--no-such-option"); r.Code != 2 {
			t.Errorf("want curl's exit code 2: %v", r)
		}
	})
}

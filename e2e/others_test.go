package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

const (
	othersImage = "berth-e2e-others:latest"
	grpcVersion = "v1.83.2"
	wsVersion   = "v1.5.3"
)

// Programs of others' making, through the VIF to a pod and through intercepts from
// a pod to handlers: iperf3, gRPC's interoperability client and server, a WebSocket
// server and client of two different libraries, h2load and nghttpd.
func TestOthers(t *testing.T) {
	ctx := t.Context()
	buildOthers(ctx, t)
	if err := cluster.Apply(ctx, "testdata/others.yaml"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Delete(context.Background(), "testdata/others.yaml") })
	for _, d := range []string{"others", "vacant"} {
		if err := cluster.Settle(ctx, "default", d); err != nil {
			t.Fatal(err)
		}
	}
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)

	daemon := daemonOf(t)
	t.Run("VIF", func(t *testing.T) {
		others(t, "others", func(argv ...string) (string, error) {
			out, err := exec.CommandContext(ctx, "docker", append([]string{"run", "--rm", "--network", "container:" + daemon, "--entrypoint", argv[0], othersImage}, argv[1:]...)...).CombinedOutput()
			return string(out), err
		})
	})

	// Behind the intercepted ports the pod has nothing: who answers is the handler.
	pod := podOf(t, "others")
	inPod := func(argv ...string) (string, error) {
		return cluster.Exec(ctx, "default", pod, "iperf3", argv...)
	}
	intercept := func(t *testing.T, ports []string, flags []string, argv ...string) *rig.Proc {
		t.Helper()
		args := []string{"intercept", "vacant"}
		for _, p := range ports {
			args = append(args, "--port", p)
		}
		args = append(append(args, flags...), "--docker-run", "--", "--entrypoint", argv[0], othersImage)
		return begin(t, ctl, append(args, argv[1:]...)...)
	}
	leave := func(t *testing.T, all ...*rig.Proc) {
		t.Helper()
		for _, p := range all {
			if err := p.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			p.Wait(t, time.Minute)
		}
	}
	web := func(t *testing.T, filter ...string) []*rig.Proc {
		t.Helper()
		return []*rig.Proc{
			intercept(t, []string{"10000:grpc"}, filter, "/grpc-server", "--port", "10000"),
			intercept(t, []string{"9000:websocket"}, filter, "/websocket-server", "-addr", ":9000"),
			intercept(t, []string{"8081:http2"}, filter, "/usr/bin/nghttpd", "--no-tls", "-d", "/www", "8081"),
		}
	}
	t.Run("intercept", func(t *testing.T) {
		// iperf3 receives datagrams only during a test with them: nothing to wait for.
		all := append(web(t), intercept(t, []string{"5201:iperf3", "5201:iperf3-udp"}, []string{"--wait", "none"}, "/usr/bin/iperf3", "-s"))
		rig.Eventually(t, time.Minute, "iperf3 serves", func(context.Context) (bool, string) {
			out, err := inPod("/usr/bin/iperf3", "-c", "vacant", "-n", "1K")
			return err == nil, out
		})
		others(t, "vacant", inPod)
		// Of the two connections of such a test iperf3 takes one for the other where
		// they come in the other order, and waits.
		for range 20 {
			if out, err := inPod("/usr/bin/iperf3", "-c", "vacant", "-n", "1M", "--bidir"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		leave(t, all...)
	})
	t.Run("intercept by header", func(t *testing.T) {
		all := web(t, "--http-header", "x-dev=alice")
		othersWeb(t, "vacant", inPod)
		leave(t, all...)
	})
}

// others runs the clients against the servers at host.
func others(t *testing.T, host string, run func(argv ...string) (string, error)) {
	t.Run("iperf3", func(t *testing.T) {
		for _, args := range [][]string{
			{"-n", "200M"}, {"-n", "200M", "-R"}, {"-n", "200M", "-P", "8"}, {"-n", "1M", "-l", "64"}, {"-n", "100M", "--bidir"},
			{"-u", "-b", "10M", "-l", "1400", "-n", "2M"}, {"-u", "-b", "10M", "-l", "1400", "-n", "2M", "-R"},
		} {
			// iperf3 serves one test at a time, and has the next wait.
			out, err := run(append([]string{"/usr/bin/iperf3", "-c", host, "--json", "--connect-timeout", "60000"}, args...)...)
			sent, received, jsonErr := transferred(out)
			t.Logf("iperf3 %s: %d bytes sent, %d received", strings.Join(args, " "), sent, received)
			// Of datagrams some may be lost, of which iperf3 has its own account.
			if err != nil || jsonErr != nil || sent == 0 || received == 0 {
				t.Errorf("iperf3 %s: %v, %v\n%s", strings.Join(args, " "), err, jsonErr, out)
			}
		}
	})
	othersWeb(t, host, run)
}

// transferred is what iperf3 says that the ends of the whole test sent and received.
func transferred(report string) (sent, received int64, err error) {
	var r struct {
		Error string
		End   struct {
			Sent struct{ Bytes int64 } `json:"sum_sent"`
			Got  struct{ Bytes int64 } `json:"sum_received"`
			Sum  struct {              // of datagrams
				Bytes   int64
				Packets int64
				Lost    int64 `json:"lost_packets"`
			}
		}
	}
	if err := json.Unmarshal([]byte(report), &r); err != nil {
		return 0, 0, err
	}
	if r.Error != "" {
		return 0, 0, fmt.Errorf("iperf3 says: %s", r.Error)
	}
	if r.End.Sum.Packets > 0 {
		return r.End.Sum.Bytes, r.End.Sum.Bytes / r.End.Sum.Packets * (r.End.Sum.Packets - r.End.Sum.Lost), nil
	}
	return r.End.Sent.Bytes, r.End.Got.Bytes, nil
}

// othersWeb is those whose requests can have a header: it is x-dev: alice.
func othersWeb(t *testing.T, host string, run func(argv ...string) (string, error)) {
	t.Run("gRPC", func(t *testing.T) {
		// Its resolver asks for TXT records too, of which others than the cluster's DNS
		// need not say at once that there are none.
		host := host + ".default.svc.cluster.local."
		for _, test := range []string{
			"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
			"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response", "status_code_and_message",
			"special_status_message", "custom_metadata", "unimplemented_method", "unimplemented_service", "rpc_soak", "channel_soak",
		} {
			// The soaks' limits are of time, which says nothing on a loaded machine.
			if out, err := run("/grpc-client", "--server_host", host, "--server_port", "10000", "--test_case", test, "--additional_metadata", "x-dev:alice",
				"--soak_iterations", "20", "--soak_per_iteration_max_acceptable_latency_ms", "60000", "--soak_overall_timeout_seconds", "120"); err != nil {
				t.Errorf("%s: %v: %s", test, err, out)
			}
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		if out, err := run("/probe", "websocket", "ws://"+host+":9000/c", "200"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("h2load", func(t *testing.T) {
		for _, args := range [][]string{{"-n", "5000", "-c", "20", "-m", "10", "/1k"}, {"-n", "200", "-c", "10", "-m", "10", "/1m"}} {
			argv := append([]string{"/usr/bin/h2load", "-H", "x-dev: alice"}, args...)
			argv[len(argv)-1] = "http://" + host + ":8081" + argv[len(argv)-1]
			out, err := run(argv...)
			// requests: 5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, …
			if want := args[1] + " succeeded, 0 failed, 0 errored, 0 timeout"; err != nil || !strings.Contains(out, want) || !strings.Contains(out, "status codes: "+args[1]+" 2xx") {
				t.Errorf("h2load %v: want %s: %v: %s", args, want, err, out)
			}
		}
	})
}

// buildOthers builds the image: the programs of Debian's packages with their
// libraries, those of Go's modules, and the probe.
func buildOthers(ctx context.Context, t *testing.T) {
	t.Helper()
	root := t.TempDir()
	// Built once: later runs need no network.
	gobin := filepath.Join(os.Getenv("BERTH_ROOT"), "bin/tools/others-"+grpcVersion+"-"+wsVersion)
	for name, pkg := range map[string]string{
		"client": "google.golang.org/grpc/interop/client@" + grpcVersion, "server": "google.golang.org/grpc/interop/server@" + grpcVersion,
		"autobahn": "github.com/gorilla/websocket/examples/autobahn@" + wsVersion,
	} {
		if _, err := os.Stat(filepath.Join(gobin, name)); err == nil {
			continue
		}
		cmd := exec.CommandContext(ctx, "go", "install", "-ldflags", "-s -w", pkg)
		cmd.Env = append(os.Environ(), "GOBIN="+gobin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go install %s: %v\n%s", pkg, err, out)
		}
	}
	put := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err == nil {
			to = filepath.Join(root, to)
			if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
				err = os.WriteFile(to, b, 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"client": "grpc-client", "server": "grpc-server", "autobahn": "websocket-server"} {
		put(filepath.Join(gobin, from), to)
	}
	library := regexp.MustCompile(`(/\S+) \(0x`) // libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)
	for _, name := range []string{"iperf3", "h2load", "nghttpd"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatalf("%v: run `tools/prepare/prepare.sh test`", err)
		}
		put(path, "usr/bin/"+name)
		out, err := exec.CommandContext(ctx, "ldd", path).Output()
		if err != nil {
			t.Fatalf("ldd %s: %v", path, err)
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			put(m[1], m[1])
		}
	}
	for name, size := range map[string]int{"www/1k": 1 << 10, "www/1m": 1 << 20, "tmp/keep": 0} { // iperf3 has its buffers in /tmp
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dockerfile := "FROM " + probeImage + "\nCOPY . /\n"
	if err := os.WriteFile(filepath.Join(root, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := command(ctx, "docker", "build", "-q", "-t", othersImage, root); err != nil {
		t.Fatal(err)
	}
	if load := os.Getenv("BERTH_LOAD"); load != "" {
		if err := command(ctx, "sh", "-c", load+" "+othersImage); err != nil {
			t.Fatal(err)
		}
	}
}

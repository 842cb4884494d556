package e2e

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// publishedLine is what ctl prints of a published port.
var publishedLine = regexp.MustCompile(`published (\S+) -> (\d+)/(tcp|udp)`)

// published are the host's addresses of published ports that a command has
// printed, by "81/tcp"; it waits until there are n.
func published(t *testing.T, p *rig.Proc, n int) map[string]string {
	t.Helper()
	all := map[string]string{}
	rig.Eventually(t, 90*time.Second, "the ports are printed", func(context.Context) (bool, string) {
		clear(all)
		found := publishedLine.FindAllStringSubmatch(p.Output(), -1)
		for _, m := range found {
			if _, has := all[m[2]+"/"+m[3]]; !has {
				all[m[2]+"/"+m[3]] = strings.NewReplacer("0.0.0.0", "127.0.0.1", "[::]", "[::1]").Replace(m[1])
			}
		}
		return len(found) >= n || !p.Running(), p.Output()
	})
	if len(all) == 0 {
		t.Fatalf("no port was published:\n%s", p.Output())
	}
	return all
}

// echoes asks an echo server of the host, TCP with a half-close.
func echoes(t *testing.T, port, addr string) {
	t.Helper()
	_, proto, _ := strings.Cut(port, "/")
	rig.Eventually(t, 30*time.Second, port+" answers at "+addr, func(ctx context.Context) (bool, string) {
		got, err := echo(ctx, proto, addr, "hello "+port)
		return got == "hello "+port, fmt.Sprintf("%q, %v", got, err)
	})
}

func echo(ctx context.Context, proto, addr, text string) (string, error) {
	c, err := new(net.Dialer).DialContext(ctx, proto, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.CloseWrite(); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// dockerNetwork makes a Docker network of the test's own.
func dockerNetwork(t *testing.T, name string) string {
	t.Helper()
	rig.Docker(t, "network", "create", name)
	t.Cleanup(func() {
		// Whoever is on it still would keep it: then something was not left.
		if out, err := exec.Command("docker", "network", "rm", name).CombinedOutput(); err != nil {
			t.Errorf("the network %s is in use after all is over: %s", name, out)
		}
	})
	return name
}

// nothingBeside: no forwarder, no joined network is left.
func nothingBeside(t *testing.T, networks ...string) {
	t.Helper()
	rig.Eventually(t, 20*time.Second, "published ports and joined networks are undone", func(context.Context) (bool, string) {
		left := rig.Docker(t, "ps", "-aq", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=forwarder")
		left = append(left, rig.Docker(t, "volume", "ls", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=forwarder")...)
		for _, n := range networks {
			left = append(left, rig.Docker(t, "network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", n)...)
		}
		return len(left) == 0, strings.Join(left, " ")
	})
}

// askIn asks an echo server from a container on a network.
func askIn(t *testing.T, network, addr string) {
	t.Helper()
	rig.Eventually(t, 30*time.Second, addr+" answers in "+network, func(ctx context.Context) (bool, string) {
		out, err := exec.CommandContext(ctx, "docker", "run", "--rm", "--network", network, probeImage, "halfclose", addr).CombinedOutput()
		return err == nil, string(out)
	})
}

func TestDockerRun(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	t.Run("reaches the cluster, and its output is its own", func(t *testing.T) {
		r := ctl.Must(t, "docker-run", probeImage, "get", "http://frontend-v1")
		if !strings.HasPrefix(r.Stdout, "frontend v1\n") || r.Stderr != "" {
			t.Errorf("%v", r)
		}
		if r := ctl.Must(t, "docker-run", "--rm", probeImage, "apart"); r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Errorf("%v", r)
		}
	})
	t.Run("exit codes", func(t *testing.T) {
		for _, c := range []struct {
			code int
			want string
			args []string
		}{
			{7, "", []string{probeImage, "exit", "7"}},
			{127, "not found", []string{"--entrypoint", "nothing-here", probeImage}},
			{126, "permission denied", []string{"--entrypoint", "/etc", probeImage}},
			{125, "no-such-image", []string{"127.0.0.1:1/no-such-image:v0"}},
			{125, "--no-such-flag", []string{"--no-such-flag", probeImage}},
		} {
			r := ctl.Run(t, append([]string{"docker-run"}, c.args...)...)
			if r.Code != c.code || !strings.Contains(r.Stderr, c.want) {
				t.Errorf("want exit code %d and %q: %v", c.code, c.want, r)
			}
		}
	})
	t.Run("100 MB through stdin", func(t *testing.T) { hashes(t, ctl, 100<<20) })
	t.Run("refused", func(t *testing.T) { refusedFlags(t, ctl, "docker-run") })
	t.Run("ports", func(t *testing.T) {
		p := ctl.Start(t, "docker-run", "-p", "81", "-p", "81/udp", "-p", "127.0.0.1::82", "-p", "127.0.0.1:0:82/udp", "-p", "127.0.0.1:42100-42140:83", "-p", "[::1]::81", "--expose", "9999",
			probeImage, "echo", "127.0.0.1:81", "0.0.0.0:82", "127.0.0.1:83")
		ports := published(t, p, 6)
		for port, addr := range ports {
			echoes(t, port, addr)
		}
		if len(ports) < 5 {
			t.Errorf("published %v", ports)
		}
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		nothingBeside(t)
	})
	t.Run("a busy port", func(t *testing.T) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refused(t, ctl, 125, []string{l.Addr().String()[len("127.0.0.1:"):], "taken", fmt.Sprintf("e2e.test (process %d)", os.Getpid()), "try:"}, "docker-run", "-p", l.Addr().String()+":81", probeImage, "echo", "81")
		nothingBeside(t)
	})
	t.Run("networks", func(t *testing.T) {
		one, two := dockerNetwork(t, "berth-e2e-one"), dockerNetwork(t, "aaa-berth-e2e-two")
		rig.Docker(t, "run", "-d", "--rm", "--name", "berth-e2e-db", "--network", one, probeImage, "echo", "5432")
		defer rig.Docker(t, "rm", "-f", "berth-e2e-db")
		p := ctl.Start(t, "docker-run", "--name", "berth-e2e-web", "--network", one, "--network-alias", "web", "--network", two, probeImage, "echo", "81")
		askIn(t, one, "web:81")
		askIn(t, one, "berth-e2e-web:81")
		askIn(t, two, "berth-e2e-web:81")
		// What is on the network is found from there, and the cluster still is.
		ctl.Must(t, "docker-run", probeImage, "halfclose", "berth-e2e-db:5432")
		if r := ctl.Must(t, "docker-run", probeImage, "get", "http://frontend-v1"); !strings.HasPrefix(r.Stdout, "frontend v1\n") {
			t.Errorf("%v", r)
		}
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		rig.Docker(t, "rm", "-f", "berth-e2e-db")
		nothingBeside(t, one, two)
	})
	t.Run("detached", func(t *testing.T) {
		id := strings.TrimSpace(ctl.Must(t, "docker-run", "-d", "-p", "127.0.0.1::81", "--name", "berth-e2e-bg", probeImage, "echo", "81").Stdout)
		if len(id) != 64 {
			t.Errorf("printed %q", id)
		}
		refused(t, ctl, 125, []string{"berth-e2e-bg", "taken", "docker rm -f berth-e2e-bg"}, "docker-run", "--name", "berth-e2e-bg", probeImage)
		rig.Docker(t, "kill", id)
		nothingBeside(t)
	})
}

// hashes sends a stream through a container's stdin and compares what arrived.
func hashes(t *testing.T, ctl *rig.Ctl, size int, args ...string) {
	t.Helper()
	if len(args) == 0 {
		args = []string{"docker-run", "-i", probeImage, "hash"}
	}
	p := ctl.Start(t, args...)
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(p.Stdin, h), rand.Reader, int64(size)); err != nil {
		t.Fatal(err)
	}
	if err := p.Stdin.Close(); err != nil {
		t.Fatal(err)
	}
	r := p.Wait(t, 2*time.Minute)
	if want := fmt.Sprintf("%d %x\n", size, h.Sum(nil)); r.Code != 0 || r.Stdout != want {
		t.Errorf("want %q: %v", want, r)
	}
}

// refusedFlags: each flag that cannot be had in a shared network is refused with
// its reason, and nothing is made.
func refusedFlags(t *testing.T, ctl *rig.Ctl, before ...string) {
	t.Helper()
	for _, c := range []struct{ flags, want string }{
		{"--network host", "--network host cannot be used here: "},
		{"--network none", "--network none cannot be used here: "},
		{"--network container:berth-runner", "--network container: cannot be used here: "},
		{"--network no-such-network", "no-such-network"},
		{"--hostname me", "ctl connect --hostname"},
		{"--domainname me", "--domainname cannot be used here: "},
		{"--dns 192.0.2.1", "--dns cannot be used here: "},
		{"--dns-search x", "--dns-search cannot be used here: "},
		{"--dns-option ndots:1", "--dns-option cannot be used here: "},
		{"--add-host a:192.0.2.1", "-v FILE:/etc/hosts"},
		{"--mac-address 02:42:ac:11:00:02", "--mac-address cannot be used here: "},
		{"--ip 192.0.2.9", "--ip cannot be used here: "},
		{"--ip6 2001:db8::9", "--ip6 cannot be used here: "},
		{"--link-local-ip 169.254.1.9", "--link-local-ip cannot be used here: "},
		{"--network name=bridge,gw-priority=1", "--network gw-priority= cannot be used here: "},
		{"--restart always", "--restart cannot be used here: "},
		{"--rm=false", "--rm=false"},
		{"--network-alias me", "aliases are only supported for user-defined networks"},
		{"--link berth-runner", "--link cannot be used here: "},
		{"-p 80/sctp", "TCP and UDP"},
		{"-p 192.0.2.77:8080:80", "192.0.2.77"},
	} {
		args := append(append(append([]string{}, before...), strings.Fields(c.flags)...), probeImage)
		r := ctl.Run(t, args...)
		if r.Code == 0 || !strings.Contains(r.Stderr, c.want) {
			t.Errorf("want %q: %v", c.want, r)
		}
	}
	nothingBeside(t)
}

// The same for a handler, with the workload's traffic beside, and each way to end.
func TestReplacePublishes(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	connect(t, ctl)
	net1 := dockerNetwork(t, "berth-e2e-net")
	untouched := podNames(t)
	t.Run("refused", func(t *testing.T) {
		refusedFlags(t, ctl, "replace", "frontend-v1", "--docker-run", "--")
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refused(t, ctl, 1, []string{"taken", fmt.Sprintf("(process %d)", os.Getpid()), "try:"}, "replace", "frontend-v1", "--docker-run", "--", "-p", l.Addr().String()+":8080", probeImage)
		refused(t, ctl, 1, []string{"berth-e2e-none"}, "replace", "frontend-v1", "--docker-run", "--", "-p", "127.0.0.1::8080", "--network", "berth-e2e-none", probeImage)
		if now := podNames(t); now != untouched {
			t.Errorf("a refused command touched the pods: %s, now %s", untouched, now)
		}
		nothingBeside(t)
		refused(t, ctl, 127, []string{"nothing-here"}, "replace", "frontend-v1", "--docker-run", "--", "--entrypoint", "nothing-here", probeImage)
		restored(t)
	})
	kill := func(component string) func(*testing.T, *rig.Proc) {
		return func(t *testing.T, _ *rig.Proc) {
			t.Helper()
			ids := rig.Docker(t, "ps", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component="+component)
			rig.Docker(t, append([]string{"kill", "--signal", "KILL"}, ids...)...)
		}
	}
	for _, c := range []struct {
		name string
		end  func(*testing.T, *rig.Proc)
	}{
		{"handler killed", kill("handler")},
		{"Ctrl-C", func(t *testing.T, p *rig.Proc) {
			t.Helper()
			if err := p.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}},
		{"leave", func(t *testing.T, _ *rig.Proc) { t.Helper(); ctl.Must(t, "leave", "frontend-v1") }},
		{"ctl killed", func(t *testing.T, p *rig.Proc) {
			t.Helper()
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}},
		{"quit", func(t *testing.T, _ *rig.Proc) { t.Helper(); ctl.Must(t, "quit") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "-p", "127.0.0.1::8080", "-p", "127.0.0.1::8080/udp", "--network", net1, "--network-alias", "web", probeImage, "echo", "127.0.0.1:8080", "81")
			for port, addr := range published(t, p, 2) {
				echoes(t, port, addr)
			}
			if r := ctl.Must(t, "status"); !strings.Contains(r.Stdout, "published 127.0.0.1:") {
				t.Errorf("status does not tell the published ports: %v", r)
			}
			askIn(t, net1, "web:81")
			if c.name == "handler killed" { // first the forwarder alone: it comes back
				kill("forwarder")(t, p)
				for port, addr := range published(t, p, 2) {
					echoes(t, port, addr)
				}
			}
			c.end(t, p)
			p.Wait(t, time.Minute)
			nothingBeside(t, net1)
			restored(t)
		})
	}
	t.Run("runner killed", func(t *testing.T) {
		connect(t, ctl)
		p := ctl.Start(t, "replace", "frontend-v1", "--docker-run", "--", "-p", "127.0.0.1::8080", probeImage, "echo", "127.0.0.1:8080")
		for port, addr := range published(t, p, 1) {
			echoes(t, port, addr)
		}
		kill("runner")(t, p)
		p.Wait(t, time.Minute)
		ctl.Must(t, "quit", "--all")
		nothingBeside(t)
		restored(t)
	})
}

// A container of docker-run loses its network at quit: that is told by both, and
// after a new connect it works again.
func TestDockerRunLosesItsNetwork(t *testing.T) {
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	p := ctl.Start(t, "docker-run", "--name", "berth-e2e-loses", "-p", "127.0.0.1::81", probeImage, "echo", "81")
	for port, addr := range published(t, p, 1) {
		echoes(t, port, addr)
	}
	r := ctl.Must(t, "quit")
	for _, want := range []string{"berth-e2e-loses", probeImage, "ctl connect"} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("quit does not say %q: %v", want, r)
		}
	}
	if r := p.Wait(t, time.Minute); r.Code == 0 || !strings.Contains(r.Stderr, "run it again after ctl connect") {
		t.Errorf("the command does not say why it ended: %v", r)
	}
	if left := rig.Leftovers(t); len(left) > 0 {
		t.Errorf("left after quit: %v", left)
	}
	refused(t, ctl, 1, []string{"ctl connect"}, "docker-run", probeImage, "get", "http://frontend-v1")
	ctl.Must(t, "connect", "--docker")
	ctl.Must(t, "docker-run", "--name", "berth-e2e-loses", probeImage, "get", "http://frontend-v1")

	// The daemon container is killed: the same is told, and undone.
	p = ctl.Start(t, "docker-run", "--name", "berth-e2e-loses", "-p", "127.0.0.1::81", probeImage, "echo", "81")
	for port, addr := range published(t, p, 1) {
		echoes(t, port, addr)
	}
	rig.Docker(t, append([]string{"kill"}, rig.Docker(t, "ps", "-q", "--filter", rig.Workspace, "--filter", "label=berth.dev/component=daemon")...)...)
	if r := p.Wait(t, time.Minute); r.Code == 0 || !strings.Contains(r.Stderr, "run it again after ctl connect") {
		t.Errorf("the command does not say why it ended: %v", r)
	}
	nothingBeside(t)
}

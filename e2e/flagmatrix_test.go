package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/e2e/rig"
)

// flagForms is every form in which ports and networks can be given to a container,
// whose ports begin at base; listens says where its program is to listen.
type flagForms struct {
	flags   []string
	listens []string
	ports   []string // published: "81/tcp"
	one     string   // network, with an address of the container's own in it
	two     string   // network, in the long form
}

const matrixAddress = "198.51.100.9" // in the network one

// formsFor is all forms, against programs that listen on 127.0.0.1 (ports from 8101)
// and on 0.0.0.0 (from 8201).
func formsFor(t *testing.T, one, two string) flagForms {
	t.Helper()
	f := flagForms{one: one, two: two}
	add := func(port int, proto string, flags ...string) {
		f.ports = append(f.ports, fmt.Sprint(port, "/", proto))
		f.flags = append(f.flags, flags...)
	}
	for base, address := range map[int]string{8100: "127.0.0.1", 8200: "0.0.0.0"} {
		p := func(n int) string { return fmt.Sprint(base + n) }
		fixed, ranged := freePorts(t, 1), freePorts(t, 2)
		add(base+1, "tcp", "-p", p(1))
		add(base+1, "udp", "--publish", p(1)+"/udp")
		add(base+2, "tcp", "-p", "127.0.0.1::"+p(2))
		add(base+2, "udp", "-p", "127.0.0.1:0:"+p(2)+"/udp")
		add(base+3, "tcp", fmt.Sprint("--publish=", fixed, ":", p(3)))
		add(base+3, "udp", fmt.Sprint("-p=", fixed, ":", p(3), "/udp"))
		add(base+4, "tcp", "-p", "127.0.0.1:42200-42240:"+p(4))
		add(base+5, "tcp", "-p", fmt.Sprintf("127.0.0.1:%d-%d:%s-%s", ranged, ranged+1, p(5), p(6)))
		add(base+6, "tcp")
		add(base+7, "udp", "-p", fmt.Sprintf("target=%s,published=%d,protocol=udp", p(7), freePorts(t, 1)))
		add(base+8, "tcp", "--expose", p(8))
		add(base+9, "udp", "--expose", p(9)+"-"+p(10)+"/udp")
		add(base+10, "udp")
		last := 10
		if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
			_ = l.Close()
			add(base+11, "tcp", "-p", "[::1]::"+p(11))
			last = 11
		} else {
			t.Log("this kernel has no IPv6: [::1] is not tried")
		}
		for n := 1; n <= last; n++ {
			f.listens = append(f.listens, address+":"+p(n))
		}
	}
	f.flags = append(f.flags, "-P", "--network", one, "--network-alias", "web", "--ip", matrixAddress, "--network", "name="+two+",alias=bee")
	return f
}

// freePorts is the first of n ports in a row that nobody has, by TCP and UDP. They are
// none that the kernel would give to somebody's connection before they are published.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		first := 20000 + rand.IntN(9000)
		free := true
		for i := range n {
			free = free && portFree("tcp", fmt.Sprint("0.0.0.0:", first+i)) == nil && portFree("udp", fmt.Sprint("0.0.0.0:", first+i)) == nil
		}
		if free {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

func portFree(proto, addr string) error {
	if proto == "udp" {
		c, err := net.ListenPacket("udp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err == nil {
		err = l.Close()
	}
	return err
}

// reached checks every form, and returns the host's addresses.
func (f flagForms) reached(t *testing.T, p *rig.Proc, name string) map[string]string {
	t.Helper()
	var ports map[string]string
	rig.Eventually(t, time.Minute, "all ports are published", func(context.Context) (bool, string) {
		ports = published(t, p, len(f.ports))
		for _, want := range f.ports {
			if ports[want] == "" {
				return !p.Running(), want + " is not:\n" + p.Output()
			}
		}
		return true, ""
	})
	for _, port := range f.ports {
		echoes(t, port, ports[port])
	}
	// In a network it is as in Docker: what listens on every address is reached, what
	// listens on loopback alone is not.
	for network, names := range map[string][]string{f.one: {"web", name, matrixAddress}, f.two: {"bee", name}} {
		var asked []string
		for _, n := range names {
			asked = append(asked, "tcp/"+n+":8201", "udp/"+n+":8202", "refused/"+n+":8101")
		}
		rig.Eventually(t, 30*time.Second, "reached in "+network, func(ctx context.Context) (bool, string) {
			out, err := exec.CommandContext(ctx, "docker", append([]string{"run", "--rm", "--network", network, probeImage, "echoed"}, asked...)...).CombinedOutput()
			return err == nil, string(out)
		})
	}
	return ports
}

// undone: nobody has the ports, nothing is in the networks, no forwarder is left.
func (f flagForms) undone(t *testing.T, ports map[string]string) {
	t.Helper()
	nothingBeside(t, f.one, f.two)
	for port, addr := range ports {
		_, proto, _ := strings.Cut(port, "/")
		// A port of the kernel's choice may be that of a connection of anybody's by now, which ends.
		rig.Eventually(t, 20*time.Second, port+" at "+addr+" is nobody's", func(context.Context) (bool, string) {
			err := portFree(proto, addr)
			return err == nil, fmt.Sprint(err)
		})
	}
}

// Every form of the flags for ports and networks, for both kinds of containers,
// through every way to end.
func TestFlagMatrix(t *testing.T) {
	const name = "berth-e2e-matrix"
	ctl := rig.NewCtl(t, cluster)
	answers(t, time.Minute, "frontend v1")
	quitAtEnd(t, ctl)
	rig.Docker(t, "network", "create", "--subnet", "198.51.100.0/24", "berth-e2e-first")
	t.Cleanup(func() { rig.Docker(t, "network", "rm", "berth-e2e-first") })
	f := formsFor(t, "berth-e2e-first", dockerNetwork(t, "berth-e2e-second"))

	signal := func(s os.Signal) func(*testing.T, *rig.Proc) {
		return func(t *testing.T, p *rig.Proc) {
			t.Helper()
			if err := p.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	type end struct {
		name string
		do   func(*testing.T, *rig.Proc)
	}
	exit := end{"exit", func(t *testing.T, _ *rig.Proc) { t.Helper(); rig.Docker(t, "kill", name) }}
	interrupted := end{"Ctrl-C", signal(os.Interrupt)}
	quit := end{"quit", func(t *testing.T, _ *rig.Proc) { t.Helper(); ctl.Must(t, "quit") }}
	run := func(t *testing.T, e end, after func(*testing.T), args ...string) {
		t.Helper()
		t.Run(e.name, func(t *testing.T) {
			ctl.Must(t, "connect", "--docker")
			line := append(append(append([]string{}, args...), f.flags...), "--name", name, probeImage, "echo")
			p := ctl.Start(t, append(append(line, f.listens...), "8080")...)
			ports := f.reached(t, p, name)
			e.do(t, p)
			p.Wait(t, time.Minute)
			f.undone(t, ports)
			after(t)
		})
	}
	t.Run("docker-run", func(t *testing.T) {
		// As with docker run, the container outlives the command that is killed.
		killed := end{"kill -9", func(t *testing.T, p *rig.Proc) {
			t.Helper()
			signal(syscall.SIGKILL)(t, p)
			p.Wait(t, time.Minute)
			f.reached(t, p, name)
			rig.Docker(t, "rm", "-f", name)
		}}
		for _, e := range []end{exit, interrupted, killed, quit} {
			run(t, e, func(*testing.T) {}, "docker-run")
		}
	})
	t.Run("replace", func(t *testing.T) {
		leave := end{"leave", func(t *testing.T, _ *rig.Proc) { t.Helper(); ctl.Must(t, "leave", "frontend-v1") }}
		for _, e := range []end{exit, interrupted, leave, {"kill -9", signal(syscall.SIGKILL)}, quit} {
			run(t, e, restored, "replace", "frontend-v1", "--docker-run", "--")
		}
	})
}

package rig

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// Machine is one of a test's own, as far as network, resolver and Docker Engine
// go: for `ctl connect` without --docker, which changes a machine. Its network
// namespace is that of a container on the dev cluster's network, so that nothing
// of the real machine's is touched; files and programs are the real ones. Its
// processes have a namespace of their own, which ends with the test, whatever ends
// that: none is left.
type Machine struct {
	Ctl        *Ctl   // a user at this machine
	ResolvConf string // its /etc/resolv.conf

	within []string
	dir    string
	docker *exec.Cmd
	t      *testing.T
}

const machineName = "berth-e2e-machine"

// OriginalResolver is what a Machine's resolv.conf says at first.
const OriginalResolver = "# of the machine\nnameserver 127.0.0.11\nsearch corp.example\n"

// NewMachine makes one, with an engine without images; it goes with the test.
// container is an image and a command that stays, for its network namespace.
func NewMachine(t *testing.T, c *Cluster, container ...string) *Machine {
	t.Helper()
	node := DevclusterNode(t)
	if node == "" || os.Geteuid() != 0 {
		t.Skipf("%s needs root and the dev cluster, in whose network it makes a machine", t.Name())
	}
	network := Docker(t, "inspect", "--format", "{{range $n, $_ := .NetworkSettings.Networks}}{{$n}} {{end}}", node)[0]
	address := Docker(t, "inspect", "--format", "{{(index .NetworkSettings.Networks \""+network+"\").IPAddress}}", node)[0]
	_ = exec.Command("docker", "rm", "-f", machineName).Run() // an earlier run's
	Docker(t, append([]string{"run", "-d", "--rm", "--name", machineName, "--network", network}, container...)...)
	t.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", machineName).Run() })
	pid := Docker(t, "inspect", "--format", "{{.State.Pid}}", machineName)[0]

	// Not t.TempDir: the path of a socket has its limit.
	dir, err := os.MkdirTemp("", "machine")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &Machine{ResolvConf: filepath.Join(dir, "resolv.conf"), dir: dir, t: t}
	if err := os.WriteFile(m.ResolvConf, []byte(OriginalResolver), 0o644); err != nil {
		t.Fatal(err)
	}
	m.hold(pid)
	m.Ctl = NewCtl(t, c)
	// nsenter(1) waits for what it runs: that ends with it.
	m.Ctl.Within = append(m.within[:len(m.within):len(m.within)], "setpriv", "--pdeathsig", "KILL")
	m.Ctl.Env = []string{"XDG_RUNTIME_DIR=" + dir, "DOCKER_HOST=unix://" + m.Socket()}
	m.Ctl.Kubeconfig = m.kubeconfig(c, net.JoinHostPort(address, "6443"))
	m.StartDocker()
	t.Cleanup(func() { m.StopDocker(syscall.SIGTERM) })
	return m
}

// hold makes namespaces: of mounts, with a resolv.conf of its own, and of
// processes, with an init that sees to the ends of orphans. They live as long as
// the process that holds them.
func (m *Machine) hold(pid string) {
	m.t.Helper()
	holder := exec.Command("nsenter", "-t", pid, "-n", "--", "unshare", "-m", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
		"sh", "-c", "mount --bind "+m.ResolvConf+" /etc/resolv.conf && echo ready && while :; do sleep 1000 & wait $!; done")
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if n, err := out.Read(make([]byte, 16)); n == 0 || err != nil {
		m.t.Fatalf("no mount namespace with a resolv.conf of its own: %v", err)
	}
	it := strconv.Itoa(holder.Process.Pid)
	m.within = []string{"nsenter", "-t", it, "-n", "-m", "--pid=/proc/" + it + "/ns/pid_for_children", "--"}
}

// kubeconfig is the cluster's with the server where this machine reaches it.
func (m *Machine) kubeconfig(c *Cluster, address string) string {
	m.t.Helper()
	cfg, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, cl := range cfg.Clusters {
		cl.Server, cl.TLSServerName = "https://"+address, "127.0.0.1"
	}
	path := filepath.Join(m.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// Run runs a program on this machine, for at most a minute, and returns what it
// printed.
func (m *Machine) Run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.within[0], append(m.within[1:], args...)...)
	cmd.Env = append(os.Environ(), m.Ctl.Env...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Snapshot is what a connection may change of this machine: interfaces, routes,
// resolver, and what lies in its directory for what runs.
func (m *Machine) Snapshot() Host {
	m.t.Helper()
	h := Host{}
	for name, script := range map[string]string{
		"ip route": "ip route show table all | grep -vE 'docker0|fe80'", "ip addr": "ip -o addr show | sed 's/ valid_lft.*//' | grep -vE 'docker0|fe80'",
		"resolv.conf": "cat /etc/resolv.conf", "runtime directory": "ls -A " + filepath.Join(m.dir, "berth") + " 2>/dev/null || true",
	} {
		out, err := m.Run("sh", "-c", script)
		if err != nil {
			m.t.Fatalf("%s: %v: %s", script, err, out)
		}
		h[name] = out
	}
	return h
}

// Kill kills a process of this machine's.
func (m *Machine) Kill(pid int) {
	m.t.Helper()
	if out, err := m.Run("sh", "-c", "kill -9 "+strconv.Itoa(pid)); err != nil {
		m.t.Fatalf("kill: %v: %s", err, out)
	}
}

// PID is the process of a service of this machine's, by the lock that it holds, as
// this machine counts.
func (m *Machine) PID(service string) int {
	m.t.Helper()
	locks, err := m.Run("cat", "/proc/locks")
	if err != nil {
		m.t.Fatal(err)
	}
	fi, err := os.Stat(filepath.Join(m.dir, "berth", "default", service+".lock"))
	if err != nil {
		m.t.Fatal(err)
	}
	inode := ":" + strconv.FormatUint(fi.Sys().(*syscall.Stat_t).Ino, 10)
	for line := range strings.Lines(locks) {
		// 1: POSIX  ADVISORY  WRITE 4242 00:2f:1234 0 EOF
		if f := strings.Fields(line); len(f) > 5 && strings.HasSuffix(f[5], inode) {
			if pid, err := strconv.Atoi(f[4]); err == nil {
				return pid
			}
		}
	}
	m.t.Fatalf("no process holds the lock of %s:\n%s", service, locks)
	return 0
}

// Number is the one in a text.
func Number(t *testing.T, text string) int {
	t.Helper()
	digits := strings.FieldsFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	if len(digits) != 1 {
		t.Fatalf("%q does not have one number", text)
	}
	n, err := strconv.Atoi(digits[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Socket is that of the machine's Docker Engine.
func (m *Machine) Socket() string { return filepath.Join(m.dir, "docker.sock") }

// Load brings images of the real engine's to this machine's.
func (m *Machine) Load(images ...string) {
	m.t.Helper()
	sh(m.t, "docker save "+strings.Join(images, " ")+" | docker -H unix://"+m.Socket()+" load")
}

// StartDocker starts the machine's engine, which was stopped, and waits until it
// answers.
func (m *Machine) StartDocker() {
	m.t.Helper()
	config := filepath.Join(m.dir, "daemon.json") // the real engine's would be taken otherwise
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	log := &bytes.Buffer{}
	cmd := exec.Command(m.within[0], append(m.within[1:], "dockerd", "--config-file", config, "--data-root", filepath.Join(m.dir, "data"),
		"--exec-root", filepath.Join(m.dir, "exec"), "--pidfile", filepath.Join(m.dir, "docker.pid"), "-H", "unix://"+m.Socket())...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.docker = cmd
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if out, err := m.Run("docker", "info"); err == nil {
			return
		} else if time.Now().After(deadline) {
			m.t.Fatalf("the machine's engine does not start: %s\n%s", out, log)
		}
	}
}

// StopDocker sends the machine's engine a signal, and waits for its end.
func (m *Machine) StopDocker(signal syscall.Signal) {
	if pid, err := os.ReadFile(filepath.Join(m.dir, "docker.pid")); err == nil {
		_, _ = m.Run("sh", "-c", fmt.Sprintf("kill -%d %s", signal, pid))
	}
	_ = m.docker.Wait()
}

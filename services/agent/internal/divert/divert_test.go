package divert_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/services/agent/internal/divert"
)

// The tests run in a network namespace of their own, the pod's. A second process
// in a third namespace is the world outside of it, joined by a pair of
// interfaces as a CNI plugin makes it.

const mode = "BERTH_TEST_DIVERT"

func TestMain(m *testing.M) {
	switch os.Getenv(mode) {
	case "pod":
		os.Exit(m.Run())
	case "outside":
		outside()
		return
	case "killed":
		d := divert.New("berth-killed")
		if err := d.Set([]divert.Rule{{Port: 8080, To: 9090}}); err != nil {
			fmt.Println(err)
			return
		}
		defer d.Close() // which it does not live to do, unless the test dies
		fmt.Println("diverted")
		_, _ = io.Copy(io.Discard, os.Stdin) // select {} would be taken for a deadlock, and end it
	}
	if os.Geteuid() != 0 {
		fmt.Println("SKIP: tests of package divert need root for a network namespace")
		return
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), mode+"=pod")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

// outside answers lines "network address" with what is said there, on a
// connection of its own; "keep address" keeps one, "more" asks on it again.
func outside() {
	in := bufio.NewScanner(os.Stdin)
	var kept net.Conn
	for in.Scan() {
		network, addr, _ := strings.Cut(in.Text(), " ")
		if network == "hammer" { // requests on connections of their own, until the next line
			stop := make(chan struct{})
			go func() { in.Scan(); close(stop) }()
			fmt.Println("hammering")
			fmt.Println(hammer(addr, stop))
			continue
		}
		if network == "more" { // on the same socket, TCP or UDP
			fmt.Println(ask(kept))
			continue
		}
		network, keep := strings.CutPrefix(network, "keep-")
		c, err := net.DialTimeout(network, addr, 2*time.Second)
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		fmt.Println(ask(c))
		if kept = c; !keep {
			c.Close()
		}
	}
}

func ask(c net.Conn) string {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return "error: " + err.Error()
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(buf[:n])
}

type world struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

func (w *world) say(line string) string {
	w.t.Helper()
	if _, err := fmt.Fprintln(w.in, line); err != nil {
		w.t.Fatal(err)
	}
	if !w.out.Scan() {
		w.t.Fatal("the outside is gone")
	}
	return w.out.Text()
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("%s needs the program ip: %v", t.Name(), err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), mode+"=outside")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait(); _ = exec.Command("ip", "link", "del", "eth0").Run() })
	pid := fmt.Sprint(cmd.Process.Pid)
	ip(t, "link", "set", "lo", "up")
	ip(t, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pid)
	ip(t, "addr", "add", "10.99.0.1/24", "dev", "eth0")
	ip(t, "addr", "add", "fd99::1/64", "dev", "eth0", "nodad")
	ip(t, "link", "set", "eth0", "up")
	for _, args := range [][]string{{"addr", "add", "10.99.0.2/24", "dev", "eth0"}, {"addr", "add", "fd99::2/64", "dev", "eth0", "nodad"}, {"link", "set", "eth0", "up"}} {
		c := exec.Command("nsenter", append([]string{"-t", pid, "-n", "ip"}, args...)...)
		if o, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, o)
		}
	}
	return &world{t, in, bufio.NewScanner(out)}
}

// app answers every message with name.
func app(t *testing.T, name, port string) {
	t.Helper()
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 100)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					_, _ = io.WriteString(c, name)
				}
			}()
		}
	}()
	p, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = p.WriteTo([]byte(name+" by udp"), from)
		}
	}()
}

func TestDivert(t *testing.T) {
	w := newWorld(t)
	app(t, "app", "8080")
	app(t, "agent", "9090")
	app(t, "other", "8081")
	v4, v6 := "10.99.0.1:", "[fd99::1]:"
	deadline := time.Now().Add(5 * time.Second) // until the interfaces are up
	for w.say("tcp "+v6+"8080") != "app" && time.Now().Before(deadline) {
	}
	if got := w.say("keep-tcp " + v4 + "8080"); got != "app" {
		t.Fatalf("before: %q", got)
	}
	d := divert.New("berth-test")
	defer d.Close()
	if err := d.Set([]divert.Rule{{Port: 8080, To: 9090}, {Port: 8080, To: 9090, UDP: true}}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range [][2]string{
		{"more", "app"}, // a connection that was there stays where it is
		{"tcp " + v4 + "8080", "agent"}, {"tcp " + v6 + "8080", "agent"},
		{"udp " + v4 + "8080", "agent by udp"}, {"udp " + v6 + "8080", "agent by udp"},
		{"tcp " + v4 + "8081", "other"}, {"udp " + v4 + "8081", "other by udp"},
	} {
		if got := w.say(tt[0]); got != tt[1] {
			t.Errorf("%s: %q, want %q", tt[0], got, tt[1])
		}
	}
	for _, host := range []string{"127.0.0.1:", v4, v6} { // from inside the pod
		c, err := net.Dial("tcp", host+"8080")
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(c); got != "app" {
			t.Errorf("%s from inside: %q", host, got)
		}
		c.Close()
	}
	if err := d.Set([]divert.Rule{{Port: 8081, To: 9090}}); err != nil { // only UDP goes back, and another port comes
		t.Fatal(err)
	}
	if a, b := w.say("tcp "+v4+"8080"), w.say("tcp "+v4+"8081"); a != "app" || b != "agent" {
		t.Errorf("after a change: %q, %q", a, b)
	}
	if got := w.say("keep-tcp " + v4 + "8081"); got != "agent" {
		t.Fatal(got)
	}
	if err := d.Set(nil); err != nil {
		t.Fatal(err)
	}
	if got := w.say("more"); got != "agent" { // goes on while the table is there
		t.Errorf("a diverted connection without its rule: %q", got)
	}
	d.Close()
	if got := w.say("more"); !strings.HasPrefix(got, "error") { // reset, not left hanging
		t.Errorf("a diverted connection after the end: %q", got)
	}
	if got := w.say("tcp " + v4 + "8081"); got != "other" {
		t.Errorf("after the end: %q", got)
	}
}

// Two agents of a pod have a table each.
func TestTwoTables(t *testing.T) {
	w := newWorld(t)
	app(t, "app", "8080")
	app(t, "one", "9091")
	app(t, "two", "9092")
	app(t, "other", "8081")
	one, two := divert.New("berth-one"), divert.New("berth-two")
	defer one.Close()
	defer two.Close()
	for d, r := range map[*divert.Diverter]divert.Rule{one: {Port: 8080, To: 9091}, two: {Port: 8081, To: 9092}} {
		if err := d.Set([]divert.Rule{r}); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := w.say("tcp 10.99.0.1:8080"), w.say("tcp 10.99.0.1:8081"); a != "one" || b != "two" {
		t.Errorf("%q, %q", a, b)
	}
	if err := divert.New("berth-one").Set([]divert.Rule{{Port: 1, To: 2}}); err == nil {
		t.Error("a table of the same name is taken over")
	}
}

// kill -9 of the agent leaves no table.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	app(t, "app", "8080")
	app(t, "agent", "9090")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), mode+"=killed")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "diverted\n" {
		t.Fatalf("the one to be killed: %q", line)
	}
	if got := w.say("tcp 10.99.0.1:8080"); got != "agent" {
		t.Errorf("while it lives: %q", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if got := w.say("tcp 10.99.0.1:8080"); got != "app" {
		t.Errorf("after kill -9: %q", got)
	}
}

// hammer sends requests until stop is closed, and says who answered how many.
func hammer(addr string, stop chan struct{}) string {
	count := map[string]int{}
	for {
		select {
		case <-stop:
			return fmt.Sprint(count)
		default:
		}
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err != nil {
			count["lost: "+err.Error()]++
			continue
		}
		got := ask(c)
		if strings.HasPrefix(got, "error") {
			got = "lost: " + got
		}
		count[got]++
		c.Close()
	}
}

// Datagrams of one socket move with the rules, whichever of them other ports have.
func TestDatagramsMoveAtOnce(t *testing.T) {
	w := newWorld(t)
	app(t, "app", "8080")
	app(t, "agent", "9090")
	d := divert.New("berth-udp")
	defer d.Close()
	for deadline := time.Now().Add(5 * time.Second); w.say("tcp 10.99.0.1:8080") != "app" && time.Now().Before(deadline); {
	}
	if got := w.say("keep-udp 10.99.0.1:8080"); got != "app by udp" {
		t.Fatal(got)
	}
	other := divert.Rule{Port: 8081, To: 9090} // keeps the table there
	for range 3 {
		for want, rules := range map[string][]divert.Rule{"agent by udp": {other, {UDP: true, Port: 8080, To: 9090}}, "app by udp": {other}} {
			if err := d.Set(rules); err != nil {
				t.Fatal(err)
			}
			if got := w.say("more"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
}

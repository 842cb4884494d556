package netstack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/services/vif/internal/farside"
	"berth.dev/tunnel"

	"golang.org/x/sys/unix"
)

// role in the environment makes the test binary one of the other processes of
// BenchmarkConnections: what a connection costs is mostly who wakes whom, which one
// process would hide.
const role = "BERTH_BENCH_ROLE"

// play is the life of such a process, if this is one.
func play() (played bool) {
	say := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	args := strings.Fields(os.Getenv(role))
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "server", "sink": // in the pod: echoes, or swallows
		l, err := net.Listen("tcp", "127.0.0.1:0")
		fatal(err)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		say("%s", port)
		for {
			c, err := l.Accept()
			fatal(err)
			if args[0] == "sink" {
				go func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{c}); _ = c.Close() }()
			} else {
				go echoServer(c.(*net.TCPConn))
			}
		}
	case "far": // the manager
		id, err := tunnel.NewIdentity()
		fatal(err)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		fatal(err)
		say("%s %s", l.Addr(), id.Pin())
		c, err := l.Accept()
		fatal(err)
		s, _, _, err := tunnel.Serve(context.Background(), c, id, func(context.Context, tunnel.Hello, tunnel.Pin) (*tunnel.Welcome, error) {
			return &tunnel.Welcome{}, nil
		}, tunnel.Config{})
		fatal(err)
		far := &farside.Far{Translate: func(h tunnel.Header) (netip.AddrPort, tunnel.Code) {
			return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.Dst.Port()), 0
		}}
		far.Serve(context.Background(), s)
	case "client": // the handler: ADDR HOW, then a count for each line of stdin
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			n, err := strconv.ParseInt(lines.Text(), 10, 64)
			fatal(err)
			begin := time.Now()
			switch atOnce, err := strconv.Atoi(args[2]); {
			case args[2] == "up":
				upload(args[1], n)
			case err != nil:
				fatal(err)
			case atOnce == 0:
				c, err := net.Dial("tcp", args[1])
				fatal(err)
				for range n {
					exchange(c)
				}
				_ = c.Close()
			default:
				connections(args[1], atOnce, n)
			}
			say("%d", time.Since(begin))
		}
	}
	return true
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
}

// block is what is uploaded at once.
const block = 128 << 10

// upload sends n blocks, and waits until all have arrived.
func upload(addr string, n int64) {
	c, err := net.Dial("tcp", addr)
	fatal(err)
	buf := make([]byte, block)
	for range n {
		_, err := c.Write(buf)
		fatal(err)
	}
	fatal(c.(*net.TCPConn).CloseWrite())
	_, err = c.Read(buf)
	if err != io.EOF {
		fatal(fmt.Errorf("instead of the end: %w", err))
	}
	_ = c.Close()
}

// exchange is one byte each way.
func exchange(c net.Conn) {
	b := []byte{1}
	_, err := c.Write(b)
	fatal(err)
	_, err = io.ReadFull(c, b)
	fatal(err)
}

// connections makes n connections with an exchange each, so many at once.
func connections(addr string, atOnce int, n int64) {
	var left atomic.Int64
	left.Store(n)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				c, err := net.Dial("tcp", addr)
				fatal(err)
				exchange(c)
				_ = c.Close()
			}
		})
	}
	all.Wait()
}

// player is another process of the benchmark.
type player struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	said *bufio.Scanner
}

func cast(b *testing.B, as string) *player {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	name := filepath.Join(b.TempDir(), strings.Fields(as)[0]) // which perf tells them apart by
	if err := os.Symlink(exe, name); err != nil {
		b.Fatal(err)
	}
	p := &player{cmd: exec.Command(name)}
	p.cmd.Env = append(os.Environ(), role+"="+as)
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.said = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// hear is the next line that the process says.
func (p *player) hear(b *testing.B) string {
	if !p.said.Scan() {
		b.Fatalf("%v has ended", p.cmd.Env[len(p.cmd.Env)-1])
	}
	return p.said.Text()
}

// cpu is what the process has used, by its CPU clock (clock_getcpuclockid(3)).
func (p *player) cpu() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|2), &t)
	return time.Duration(t.Nano())
}

// parts are a client, a vif (this process, with a TUN), a manager (with the inner TLS)
// and a server, each a process. used is the CPU that each has used since it was last
// called: of the client, vif, the manager and the server.
func parts(b *testing.B, serverAs, clientHow string) (run func(n int) time.Duration, used func() [4]time.Duration) {
	far := cast(b, "far")
	addr, pin, _ := strings.Cut(far.hear(b), " ")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	id, err := tunnel.NewIdentity()
	if err != nil {
		b.Fatal(err)
	}
	near, _, err := tunnel.Dial(b.Context(), conn, id, tunnel.Pin(pin), tunnel.Hello{Role: "vif"}, tunnel.Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = near.Close() })
	newStack(b, 65520, near)
	server := cast(b, serverAs)
	client := cast(b, fmt.Sprintf("client %s %s", net.JoinHostPort(service, server.hear(b)), clientHow))
	run = func(n int) time.Duration {
		fmt.Fprintln(client.in, n)
		ns, _ := strconv.ParseInt(client.hear(b), 10, 64)
		return time.Duration(ns)
	}
	var last [4]time.Duration
	used = func() (since [4]time.Duration) {
		for i, now := range [4]time.Duration{client.cpu(), cpu(), far.cpu(), server.cpu()} {
			since[i], last[i] = now-last[i], now
		}
		return since
	}
	return run, used
}

// BenchmarkConnections makes connections as `make bench` does. CPU is of each part, for
// one connection; with 0 at once for one exchange on an open one.
func BenchmarkConnections(b *testing.B) {
	for _, atOnce := range []int{0, 1, 16} {
		b.Run(fmt.Sprintf("at-once=%d", atOnce), func(b *testing.B) {
			run, used := parts(b, "server", strconv.Itoa(atOnce))
			run(100) // warm-up
			used()
			b.ResetTimer()
			took := run(b.N)
			b.StopTimer()
			b.ReportMetric(float64(b.N)/took.Seconds(), "/s")
			for i, d := range used() {
				b.ReportMetric(float64(d.Nanoseconds())/1e3/float64(b.N), []string{"client-µs", "vif-µs", "manager-µs", "server-µs"}[i])
			}
		})
	}
}

// BenchmarkUpload is one flow up, by the same parts.
func BenchmarkUpload(b *testing.B) {
	run, used := parts(b, "sink", "up")
	run(1000)
	used()
	b.SetBytes(block)
	b.ResetTimer()
	took := run(b.N)
	b.StopTimer()
	gbit := float64(b.N) * block * 8 / 1e9
	b.ReportMetric(gbit/took.Seconds(), "Gbit/s")
	for i, d := range used() {
		b.ReportMetric(d.Seconds()*100/gbit, []string{"client-cs/Gbit", "vif-cs/Gbit", "manager-cs/Gbit", "server-cs/Gbit"}[i])
	}
}

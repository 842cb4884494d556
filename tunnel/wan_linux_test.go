package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/tunnel/internal/wan"

	"golang.org/x/sys/unix"
)

// wanFor is how long each cell of the table is measured, after a warm-up in which
// windows open.
const wanFor, wanWarmUp = 2 * time.Second, 1500 * time.Millisecond

// BenchmarkWAN makes the table of docs/adr/0015: the ways to carry flows over a
// path of delay and loss. A flow of bulk data goes each design's way, four in
// "4flows"; beside them a small request and its answer take turns.
//
//	go test -run '^$' -bench WAN -benchtime 1x .     some seven minutes, as root
func BenchmarkWAN(b *testing.B) {
	for _, congestion := range []string{"cubic", "bbr"} {
		for _, rtt := range []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond} {
			for _, loss := range []float64{0, 0.01, 0.03} {
				path := wan.Path{Delay: rtt / 2, Loss: loss, Congestion: congestion}
				for _, d := range []struct {
					name            string
					sessions, flows int // no session: a TCP connection per flow
				}{
					{"raw", 0, 1}, {"1session", 1, 1}, {"raw-4flows", 0, 4}, {"1session-4flows", 1, 4}, {"2sessions-4flows", 2, 4}, {"4sessions-4flows", 4, 4},
				} {
					b.Run(fmt.Sprintf("%s/rtt=%v/loss=%.0f%%/%s", congestion, rtt, loss*100, d.name), func(b *testing.B) {
						benchWAN(b, path, d.sessions, d.flows, Config{})
					})
				}
			}
		}
	}
}

// BenchmarkWANWindows makes the table of windows there: one flow on one session over a
// path without losses, with windows that may grow to so much; 256 KiB is a fixed one.
//
//	go test -run '^$' -bench WANWindows -benchtime 1x .     some 40 seconds, as root
func BenchmarkWANWindows(b *testing.B) {
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond} {
		for _, most := range []int{256 << 10, 1 << 20, 4 << 20, 16 << 20} {
			b.Run(fmt.Sprintf("rtt=%v/most=%dKiB", rtt, most>>10), func(b *testing.B) {
				benchWAN(b, wan.Path{Delay: rtt / 2, Congestion: "bbr"}, 1, 1, Config{MaxWindow: most})
			})
		}
	}
}

func benchWAN(b *testing.B, path wan.Path, sessions, flows int, cfg Config) {
	n, err := wan.New(path)
	if errors.Is(err, os.ErrPermission) {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	open, done := wanOpener(b, n, path.Congestion, sessions, cfg)
	defer done()
	for range b.N {
		measureWAN(b, open, flows)
	}
}

// wanOpener returns what opens a flow to benchServer: the i-th on session i modulo
// their number.
func wanOpener(b *testing.B, n *wan.Network, congestion string, sessions int, cfg Config) (open func(i int) net.Conn, done func()) {
	l, err := n.Listen()
	if err != nil {
		b.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := n.Dial(l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	if sessions == 0 {
		var accepting, servers sync.WaitGroup
		var accepted []net.Conn
		accepting.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted = append(accepted, c)
				servers.Go(func() { benchServer(c) })
			}
		})
		return func(int) net.Conn { return dial() }, func() {
			l.Close()
			accepting.Wait()
			for _, c := range accepted { // no FIN may ever come
				c.Close()
			}
			servers.Wait()
		}
	}
	var ends, far []*Session
	for range sessions {
		near := dial()
		c, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		client, server := tlsSessions(b, near, c, cfg)
		setCongestion(b, near, congestion) // sessions choose their own
		setCongestion(b, c, congestion)
		go serve(server, func(st *Stream) { benchServer(st) })
		ends, far = append(ends, client), append(far, server)
	}
	open = func(i int) net.Conn {
		st, err := ends[i%sessions].Open(b.Context(), header(KindTCP))
		if err != nil {
			b.Fatal(err)
		}
		return st
	}
	return open, func() {
		for i := range ends {
			ends[i].abort() // what is still queued would take its time on a slow path
			far[i].abort()
			ends[i].Close()
			far[i].Close()
		}
		l.Close()
	}
}

func measureWAN(b *testing.B, open func(int) net.Conn, flows int) {
	var bytes atomic.Int64
	var wg sync.WaitGroup
	var conns []net.Conn
	for i := range flows {
		c := open(i)
		conns = append(conns, c)
		mustWrite(b, c, "d")
		wg.Go(func() {
			buf := make([]byte, 128<<10)
			for {
				n, err := c.Read(buf)
				if bytes.Add(int64(n)); err != nil {
					return
				}
			}
		})
	}
	small := open(flows)
	conns = append(conns, small)
	mustWrite(b, small, "e")
	var times []time.Duration
	time.Sleep(wanWarmUp)
	start, cpu, before := time.Now(), cpuTime(), bytes.Load()
	var msg [64]byte
	for time.Since(start) < wanFor {
		t := time.Now()
		if _, err := small.Write(msg[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(small, msg[:]); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(t))
	}
	took, gigabits := time.Since(start), float64(bytes.Load()-before)*8/1e9
	cpu = cpuTime() - cpu
	for _, c := range conns {
		c.Close()
	}
	wg.Wait()
	slices.Sort(times)
	b.ReportMetric(gigabits*1000/took.Seconds(), "Mbit/s")
	b.ReportMetric(cpu.Seconds()*100/gigabits, "cs/Gbit")
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)-1].Microseconds())/1000, "max-ms")
	b.ReportMetric(0, "ns/op")
}

// A session does not take lost packets for a full path, where the kernel lets it.
func TestCongestionControl(t *testing.T) {
	n, err := wan.New(wan.Path{Delay: time.Millisecond, Congestion: "cubic"})
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	l, err := n.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := n.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := trySetCongestion(near, congestion); err != nil {
		t.Skipf("this kernel has no %s for us: %v", congestion, err)
	}
	setCongestion(t, near, "cubic")
	client, server := tlsSessions(t, near, far, Config{})
	defer server.abort()
	defer client.abort()
	for _, c := range []net.Conn{near, far} {
		var got string
		if err := socketOf(c).Control(func(fd uintptr) {
			got, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		}); err != nil {
			t.Fatal(err)
		}
		if got != congestion {
			t.Errorf("congestion control by %q", got)
		}
	}
}

func setCongestion(t testing.TB, c net.Conn, name string) {
	t.Helper()
	if err := trySetCongestion(c, name); err != nil {
		t.Fatalf("congestion control by %s: %v", name, err)
	}
}

func trySetCongestion(c net.Conn, name string) (err error) {
	if cerr := socketOf(c).Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}); cerr != nil {
		return cerr
	}
	return err
}

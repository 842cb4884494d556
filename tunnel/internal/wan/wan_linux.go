package wan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Path is what happens to packets, each way.
type Path struct {
	Delay time.Duration // half of the round trip
	Loss  float64       // share of the packets that are lost, 0 to 1
	// Congestion is the congestion control of both ends ("cubic", "bbr"); empty for
	// the kernel's default.
	Congestion string
}

const (
	mtu = 1500
	// queueMax is how many packets may be on their way in one direction: more than
	// any window here, so that the path itself drops nothing but by Loss.
	queueMax = 1 << 16
)

var (
	nearAddr = [4]byte{198, 18, 99, 1}
	farAddr  = [4]byte{198, 18, 99, 2}
)

// Network is two hosts and the path between them: Dial is near, Listen far.
type Network struct {
	near, far *host
	path      Path
	wg        sync.WaitGroup
	drained   chan struct{}
}

// New makes the namespaces and starts the relay. Without the rights for it the
// error matches os.ErrPermission.
func New(p Path) (*Network, error) {
	n := &Network{path: p, drained: make(chan struct{})}
	var err error
	if n.near, err = newHost(nearAddr); err != nil {
		return nil, err
	}
	if n.far, err = newHost(farAddr); err != nil {
		n.near.close()
		return nil, err
	}
	n.carry(n.far.tun, n.near.tun, 1)
	n.carry(n.near.tun, n.far.tun, 2)
	return n, nil
}

// Close removes both hosts. Connections over the network get no answer any more.
func (n *Network) Close() {
	close(n.drained)
	n.near.close()
	n.far.close()
	n.wg.Wait()
}

// carry moves packets from src to dst. The losses of a seed are always the same.
func (n *Network) carry(dst, src *os.File, seed uint64) {
	type packet struct {
		b  *[mtu]byte
		n  int
		at time.Time
	}
	line := make(chan packet, queueMax)
	pool := sync.Pool{New: func() any { return new([mtu]byte) }}
	n.wg.Go(func() {
		defer close(line)
		dice := rand.New(rand.NewPCG(seed, seed))
		for {
			b := pool.Get().(*[mtu]byte)
			k, err := src.Read(b[:])
			if err != nil {
				return
			}
			if n.path.Loss > 0 && dice.Float64() < n.path.Loss {
				pool.Put(b)
				continue
			}
			select {
			case line <- packet{b, k, time.Now().Add(n.path.Delay)}:
			default: // the line is full
			}
		}
	})
	n.wg.Go(func() {
		for p := range line {
			n.wait(p.at)
			_, _ = dst.Write(p.b[:p.n]) // a full queue loses it, as anywhere
			pool.Put(p.b)
		}
	})
}

// wait sleeps until at. The runtime's own timers are a millisecond coarse.
func (n *Network) wait(at time.Time) {
	d := time.Until(at)
	select {
	case <-n.drained:
		return
	default:
	}
	if d > 0 {
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil)
	}
}

// Listen listens at the far host.
func (n *Network) Listen() (net.Listener, error) {
	lc := net.ListenConfig{Control: n.control}
	var l net.Listener
	err := n.far.in(func() (err error) {
		l, err = lc.Listen(context.Background(), "tcp4", net.IP(farAddr[:]).String()+":0")
		return err
	})
	return l, err
}

// Dial connects from the near host.
func (n *Network) Dial(addr string) (net.Conn, error) {
	d := net.Dialer{Control: n.control, Timeout: 30 * time.Second}
	var c net.Conn
	err := n.near.in(func() (err error) {
		c, err = d.Dial("tcp4", addr)
		return err
	})
	return c, err
}

func (n *Network) control(_, _ string, c syscall.RawConn) error {
	if n.path.Congestion == "" {
		return nil
	}
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, n.path.Congestion)
	}); cerr != nil {
		return cerr
	}
	return err
}

// host is a network namespace with a TUN.
type host struct {
	ns  int // descriptor of the namespace
	tun *os.File
}

func newHost(addr [4]byte) (*host, error) {
	h := &host{}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread is of the new namespace, and ends with this.
		runtime.LockOSThread()
		done <- h.make(addr)
	}()
	if err := <-done; err != nil {
		return nil, err
	}
	return h, nil
}

func (h *host) make(addr [4]byte) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	var err error
	if h.ns, err = unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		_ = unix.Close(h.ns)
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := configure(fd, addr); err != nil {
		_ = unix.Close(fd)
		_ = unix.Close(h.ns)
		return fmt.Errorf("set up a tun: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), "tun")
	return nil
}

func configure(fd int, addr [4]byte) error {
	const name = "wan0"
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	var errs []error
	set := func(on int, what uint, fill func(*unix.Ifreq) error) {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(on, what, r)
		}
		errs = append(errs, err)
	}
	number := func(n uint32) func(*unix.Ifreq) error {
		return func(r *unix.Ifreq) error { r.SetUint32(n); return nil }
	}
	set(fd, unix.TUNSETIFF, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI); return nil })
	set(sock, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr[:]) })
	set(sock, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) })
	set(sock, unix.SIOCSIFMTU, number(mtu))
	set(sock, unix.SIOCSIFTXQLEN, number(queueMax))
	set(sock, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil })
	return errors.Join(errs...)
}

// in calls f on a thread of the host's namespace: sockets that it makes stay there.
func (h *host) in(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // see newHost
		if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func (h *host) close() {
	_ = h.tun.Close()
	_ = unix.Close(h.ns)
}

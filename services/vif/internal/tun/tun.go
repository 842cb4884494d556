// Package tun owns the VIF: the TUN device of a connection in the network
// namespace of the daemon container.
//
// Packets pass with the kernel's segmentation offload: what an application
// writes into a TCP connection arrives as one packet of up to 64 KiB, and what
// netstack sends leaves as one, each behind a [Header] that says how the kernel
// would have to cut it. That saves most of the per-packet work (see ADR 0004).
// The device is wireguard/tun's, without its monitor, which wakes once a second,
// and read and written at its file: its vector interface would cut the packets up.
//
// The device is not persistent: it vanishes, and with it its addresses and
// routes, when its descriptor is closed, by kill -9 too. Nothing else has to
// clean up after it.
package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

const (
	cloneDevice = "/dev/net/tun"
	// queue is how many packets wait for the reader. The kernel's 500 are not enough
	// for as long as a busy machine does not let it run, and what is beyond is lost:
	// datagrams, and SYNs when thousands connect at once.
	queue = 4000
)

// Device is an open TUN. Any number of goroutines may write; each reader needs
// a [Reader] of its own. Close makes them all return os.ErrClosed.
type Device struct {
	name string
	mtu  int
	dev  wgtun.Device
	raw  syscall.RawConn
	pool sync.Pool // of *writer
}

// Create makes the device, down and without an address. A missing /dev/net/tun
// is an error that matches fs.ErrNotExist, missing NET_ADMIN one that matches
// fs.ErrPermission.
func Create(name string, mtu int) (*Device, error) {
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cloneDevice, err)
	}
	if err := attach(fd, name); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	dev, _, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("use tun %q: %w", name, err)
	}
	d := &Device{name: name, mtu: mtu, dev: dev}
	if err := d.setUp(); err != nil {
		_ = dev.Close()
		return nil, err
	}
	d.pool.New = func() any { return newWriter() }
	return d, nil
}

func attach(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("name tun %q: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("create tun %q: %w", name, err)
	}
	return nil
}

// setUp sets what wireguard/tun sets otherwise, or not without its monitor.
func (d *Device) setUp() error {
	var err error
	if d.raw, err = d.dev.File().SyscallConn(); err != nil {
		return fmt.Errorf("use tun %q: %w", d.name, err)
	}
	// Not USO: a UDP packet here is one datagram, which netstack relies on.
	if cerr := d.raw.Control(func(fd uintptr) {
		err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	}); cerr != nil || err != nil {
		return fmt.Errorf("set offloads of tun %q: %w", d.name, errors.Join(cerr, err))
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set MTU of tun %q: %w", d.name, err)
	}
	defer unix.Close(sock)
	ifr, err := unix.NewIfreq(d.name)
	if err != nil {
		return fmt.Errorf("name tun %q: %w", d.name, err)
	}
	ifr.SetUint32(uint32(d.mtu))
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFMTU, ifr); err != nil {
		return fmt.Errorf("set MTU %d of tun %q: %w", d.mtu, d.name, err)
	}
	ifr.SetUint32(queue)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFTXQLEN, ifr); err != nil {
		return fmt.Errorf("set queue of tun %q to %d: %w", d.name, queue, err)
	}
	return nil
}

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// MTU is that of the interface.
func (d *Device) MTU() int { return d.mtu }

// Close removes the device.
func (d *Device) Close() error { return d.dev.Close() }

// Reader reads packets for one goroutine.
type Reader struct {
	raw  syscall.RawConn
	head [headerSize]byte
	iov  [3]unix.Iovec
	n    int
	err  syscall.Errno
	call func(fd uintptr) bool
}

// NewReader returns a reader. Every packet goes to one reader only.
func (d *Device) NewReader() *Reader {
	r := &Reader{raw: d.raw}
	r.call = func(fd uintptr) bool { // made once: Read does not allocate
		r.n, r.err = vectored(unix.SYS_READV, fd, r.iov[:])
		return r.err != unix.EAGAIN
	}
	return r
}

// Read waits for a packet and puts it into first and, what does not fit, into
// rest: most packets are small, and their buffer can be.
func (r *Reader) Read(h *Header, first, rest []byte) (int, error) {
	r.iov = [3]unix.Iovec{vector(r.head[:]), vector(first), vector(rest)}
	if err := r.raw.Read(r.call); err != nil {
		return 0, closed(err)
	}
	if r.err != 0 {
		return 0, fmt.Errorf("read tun: %w", r.err)
	}
	if r.n < headerSize {
		return 0, fmt.Errorf("read tun: %d bytes are no packet", r.n)
	}
	h.parse(&r.head)
	return r.n - headerSize, nil
}

// closed is os.ErrClosed for what the poller says after Close.
func closed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return os.ErrClosed
	}
	return fmt.Errorf("wait for tun: %w", err)
}

// vector is b for readv(2) and writev(2).
func vector(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// vectored is readv or writev on a descriptor that does not block. So short a call is
// not announced to Go's scheduler, which would make ready to run others meanwhile:
// that costs more than the call gives them time for.
func vectored(trap, fd uintptr, iov []unix.Iovec) (int, syscall.Errno) {
	for {
		n, _, err := syscall.RawSyscall(trap, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		if err != unix.EINTR {
			return int(n), err
		}
	}
}

// writer is the state of one Write, pooled with its closure.
type writer struct {
	head [headerSize]byte
	iov  []unix.Iovec
	err  syscall.Errno
	call func(fd uintptr) bool
}

func newWriter() *writer {
	w := &writer{iov: make([]unix.Iovec, 0, 32)}
	w.call = func(fd uintptr) bool {
		_, w.err = vectored(unix.SYS_WRITEV, fd, w.iov)
		return w.err != unix.EAGAIN
	}
	return w
}

// Write hands the kernel one packet that consists of the given parts.
func (d *Device) Write(h Header, parts ...[]byte) error {
	w := d.pool.Get().(*writer)
	defer func() {
		clear(w.iov)
		d.pool.Put(w)
	}()
	h.put(&w.head)
	w.iov = append(w.iov[:0], vector(w.head[:]))
	for _, p := range parts {
		if len(p) > 0 {
			w.iov = append(w.iov, vector(p))
		}
	}
	if err := d.raw.Write(w.call); err != nil {
		return closed(err)
	}
	if w.err != 0 {
		return fmt.Errorf("write tun: %w", w.err)
	}
	return nil
}

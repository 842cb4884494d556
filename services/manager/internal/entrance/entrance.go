// Package entrance looks at where a Service leads: to the agents of an engagement,
// or still to pods that have left it.
//
// What the API says of a Service reaches a node's rules with a delay, which is
// kube-proxy's and is told nowhere. So the manager goes through the Service as
// anybody would: a connection that an agent accepts comes back to the manager as
// a flow, by whose source it is known; one that anybody else accepts does not,
// and is closed before a byte was sent.
//
// An Observer may be used concurrently.
package entrance

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth.dev/lease"
	"berth.dev/services/manager/internal/inject"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// within is how long a connection may take to come back.
	within = 250 * time.Millisecond
	// fewest and most connections are made at once. Rules choose at random: with
	// one pod of two left over, eight of them miss it once in 256 times.
	fewest, most = 8, 32
)

// Of are the addresses of the Services at which the engaged ports of a pod are
// reached. Services without an address, and datagrams, have no entrance that
// could be looked at.
func Of(services []corev1.Service, pod *corev1.Pod, ports []lease.Port) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range services {
		ip, err := netip.ParseAddr(s.Spec.ClusterIP)
		if err != nil {
			continue
		}
		for _, sp := range s.Spec.Ports {
			target := targetOf(sp, pod)
			for _, p := range ports {
				if p.Container == target && p.Protocol == string(corev1.ProtocolTCP) && (sp.Protocol == "" || sp.Protocol == corev1.ProtocolTCP) {
					out = append(out, netip.AddrPortFrom(ip, uint16(sp.Port)))
				}
			}
		}
	}
	return out
}

// targetOf is the container port that a Service's port leads to; 0 if there is none.
func targetOf(sp corev1.ServicePort, pod *corev1.Pod) uint16 {
	if sp.TargetPort.Type == intstr.Int {
		if sp.TargetPort.IntVal == 0 {
			return uint16(sp.Port)
		}
		return uint16(sp.TargetPort.IntVal)
	}
	for _, c := range slices.Concat(pod.Spec.Containers, inject.Restarting(pod)) {
		for _, p := range c.Ports {
			if p.Name == sp.TargetPort.StrVal {
				return uint16(p.ContainerPort)
			}
		}
	}
	return 0
}

// Observer makes connections and knows those that come back.
type Observer struct {
	mu   sync.Mutex
	sent map[sent]chan struct{} // closed when it has come back
}

type sent struct {
	engagement string
	from       netip.AddrPort
}

// New returns an observer.
func New() *Observer { return &Observer{sent: map[sent]chan struct{}{}} }

// Took reports whether a flow that an agent has brought is one of ours.
func (o *Observer) Took(engagement string, from netip.AddrPort) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	back, ok := o.sent[sent{engagement, from}]
	if ok {
		close(back)
		delete(o.sent, sent{engagement, from})
	}
	return ok
}

// Lead reports whether every one of several connections to a Service comes back
// by an agent of the engagement; pods is among how many the Service may choose.
func (o *Observer) Lead(ctx context.Context, at netip.AddrPort, engagement string, pods int) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	n := min(max(4*pods, fewest), most)
	came := make(chan bool, n)
	for range n {
		go func() { came <- o.one(ctx, at, engagement) }()
	}
	all := true
	for range n {
		if !<-came {
			all = false
			cancel() // the others need not be waited for
		}
	}
	return all
}

// one makes one connection. It is expected before it is made, since it may come
// back before it is known here to be open.
func (o *Observer) one(ctx context.Context, at netip.AddrPort, engagement string) bool {
	own, err := source(at)
	if err != nil {
		return false
	}
	back := make(chan struct{})
	var key sent
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		cerr := raw.Control(func(fd uintptr) {
			var from netip.AddrPort
			if from, err = bind(int(fd), own); err == nil {
				key = sent{engagement, from}
				o.mu.Lock()
				o.sent[key] = back
				o.mu.Unlock()
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := d.DialContext(ctx, "tcp", at.String())
	defer func() {
		o.mu.Lock()
		delete(o.sent, key)
		o.mu.Unlock()
	}()
	if err == nil {
		defer conn.Close()
	}
	// Also where it failed: an agent resets what has come back.
	select {
	case <-back:
		return true
	default:
	}
	if err != nil {
		return false
	}
	select {
	case <-back:
		return true
	case <-ctx.Done():
		return false
	}
}

// source is this pod's own address on the way to at. Nothing is sent.
func source(at netip.AddrPort) (netip.Addr, error) {
	c, err := net.Dial("udp", at.String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// bind gives a socket an address of its own and a port of the kernel's choice.
func bind(fd int, own netip.Addr) (from netip.AddrPort, err error) {
	var sa syscall.Sockaddr = &syscall.SockaddrInet6{Addr: own.As16()}
	if own.Is4() {
		sa = &syscall.SockaddrInet4{Addr: own.As4()}
	}
	if err := syscall.Bind(fd, sa); err != nil {
		return from, err
	}
	if sa, err = syscall.Getsockname(fd); err != nil {
		return from, err
	}
	switch a := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(own, uint16(a.Port)), nil
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(own, uint16(a.Port)), nil
	}
	return from, syscall.EAFNOSUPPORT
}

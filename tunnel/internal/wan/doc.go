// Package wan is a wide-area network for tests: two network namespaces of their
// own, each with a TUN, and between these a relay in user space that delays every
// packet and loses some. The kernel's own TCP runs over it, so that congestion
// control, loss recovery and windows are those of a real path. It does what netem
// does, for kernels without that module, up to some hundred thousand packets a
// second. It needs root; nothing outlives the process.
//
//	n, err := wan.New(wan.Path{Delay: 10 * time.Millisecond, Loss: 0.01})
//	defer n.Close()
//	l, err := n.Listen()
//	c, err := n.Dial(l.Addr().String())
package wan

//go:build !unix

package tunnel

import "net"

// readableWait is not implemented here: a relay of datagrams waits with a buffer.
func readableWait(net.Conn) func() { return nil }

// writableProbe is not implemented here: every write goes by the writer
// goroutine.
func writableProbe(net.Conn) func() bool { return nil }

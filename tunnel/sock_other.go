//go:build !unix

package tunnel

import "net"

// writableProbe is not implemented here: every write goes by the writer
// goroutine.
func writableProbe(net.Conn) func() bool { return nil }

//go:build !linux

package sock

import "net"

// Socket is not implemented here.
type Socket struct{ net.Conn }

// Of returns nil.
func Of(net.Conn) *Socket { return nil }

// TryWrite is not implemented here.
func (*Socket) TryWrite([]byte) (int, error) { return 0, net.ErrClosed }

//go:build !linux

package tunnel

import "net"

// Tune does nothing here: net already sets TCP_NODELAY.
func Tune(net.Conn) {}

// tuneDatagrams is not implemented here.
func tuneDatagrams(net.Conn) {}

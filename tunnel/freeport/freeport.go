// Package freeport listens for tests.
package freeport

import (
	"net"
	"testing"
)

// Both listens at one free port of 127.0.0.1 by TCP and by UDP; the test's end
// closes both. A port that is free for one can be taken for the other.
func Both(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 100 {
		p, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", p.LocalAddr().String())
		if err != nil {
			_ = p.Close()
			continue
		}
		t.Cleanup(func() { _ = l.Close(); _ = p.Close() })
		return l, p
	}
	t.Fatal("no port is free for TCP and UDP")
	return nil, nil
}

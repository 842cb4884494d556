package holder

import (
	"net"
	"os"
	"runtime"
	"testing"
)

func TestOf(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skipf("%s needs /proc", t.Name())
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, port := range []int{tcp.Addr().(*net.TCPAddr).Port, udp.LocalAddr().(*net.UDPAddr).Port} {
		if p, ok := Of(uint16(port)); !ok || p.PID != os.Getpid() || p.Name == "" {
			t.Errorf("%d: %v, %v", port, p, ok)
		}
	}
	port := tcp.Addr().(*net.TCPAddr).Port
	tcp.Close()
	if p, ok := Of(uint16(port)); ok {
		t.Errorf("nobody listens, and it is %v", p)
	}
}

package main

import (
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"berth.dev/bus/event"
)

// BenchmarkPublished compares a port that a forwarder publishes with one of
// Docker's own, at the address that both have on this machine:
//
//	go test -run '^$' -bench Published
func BenchmarkPublished(b *testing.B) {
	needDocker(b)
	b.Run("docker", func(b *testing.B) { measure(b, plainServer(b)) })
	b.Run("forwarder", func(b *testing.B) { measure(b, forwardedServer(b)) })
}

// dockerRunFor runs a container with the command line, for as long as the benchmark.
func dockerRunFor(b *testing.B, args ...string) (id string) {
	b.Helper()
	out, err := exec.Command("docker", append([]string{"run", "-d", "--rm"}, args...)...).CombinedOutput()
	if err != nil {
		b.Fatalf("docker run: %v: %s", err, out)
	}
	id = strings.TrimSpace(string(out))
	b.Cleanup(func() { _ = exec.Command("docker", "rm", "-f", "-v", id).Run() })
	return id
}

func hostPort(b *testing.B, id string) string {
	b.Helper()
	out, err := exec.Command("docker", "port", id, "81/tcp").Output()
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// plainServer is an echo server in a container with a port of its own.
func plainServer(b *testing.B) string {
	return hostPort(b, dockerRunFor(b, "-p", "127.0.0.1::81", theDocker.image, "serve", "tcp/0.0.0.0:81"))
}

// forwardedServer is one that has none, with a forwarder as package ports makes it.
func forwardedServer(b *testing.B) string {
	server := dockerRunFor(b, theDocker.image, "serve", "tcp/127.0.0.1:81")
	vol := "berth-bench-" + server[:12]
	b.Cleanup(func() { _ = exec.Command("docker", "volume", "rm", vol).Run() })
	args := []string{"-v", vol + ":/run/berth-forward", "--entrypoint", "forwarder", theDocker.image}
	front := dockerRunFor(b, append(append([]string{"-p", "127.0.0.1::81"}, args...), "front", "--ports", "81/tcp")...)
	dockerRunFor(b, append(append([]string{"--network", "container:" + server}, args...), "back", "--ports", "81/tcp")...)
	return hostPort(b, front)
}

func measure(b *testing.B, addr string) {
	until(b, "an answer", func() bool {
		s, _ := askAddr(addr, "x")
		return s == "x"
	})
	b.Run("connect", func(b *testing.B) {
		for b.Loop() {
			if s, err := askAddr(addr, "x"); s != "x" {
				b.Fatal(s, err)
			}
		}
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	one := make([]byte, 1)
	b.Run("roundtrip", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.Write(one); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, one); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bulk", func(b *testing.B) { // there and back
		block := []byte(strings.Repeat("x", 1<<16))
		b.SetBytes(int64(len(block)))
		read := make(chan error, 1)
		go func() {
			_, err := io.CopyN(io.Discard, c, int64(b.N)*int64(len(block)))
			read <- err
		}()
		for range b.N {
			if _, err := c.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		if err := <-read; err != nil {
			b.Fatal(err)
		}
	})
}

func askAddr(addr, text string) (string, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", err
	}
	return ask("tcp", event.Published{HostIP: at.Addr().String(), HostPort: at.Port()}, text)
}

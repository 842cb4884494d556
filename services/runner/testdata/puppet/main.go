// Command puppet is what the containers of runner's tests run: it does what its
// first argument says. Under the name vif it plays the daemon container.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth.dev/bus"
)

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == "vif" {
		vif(args)
		return
	}
	if len(args) == 0 {
		args = []string{"wait"}
	}
	switch args[0] {
	case "exit": // N [text…]: says the text and exits
		n, err := strconv.Atoi(args[1])
		check(err)
		for _, s := range args[2:] {
			fmt.Println(s)
		}
		fmt.Fprintln(os.Stderr, "bye")
		os.Exit(n)
	case "wait": // for SIGTERM, which it heeds
		c := term()
		fmt.Println("ready")
		<-c
	case "stubborn": // does not
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(5 * time.Minute)
	case "after": // D N: sleeps for D and exits with N
		d, err := time.ParseDuration(args[1])
		check(err)
		n, err := strconv.Atoi(args[2])
		check(err)
		time.Sleep(d)
		os.Exit(n)
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(strconv.Quote(e))
		}
	case "eat": // memory
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
			_ = all
		}
	case "net": // what the network looks like from here
		show("/proc/net/dev")
		show("/proc/net/route")
	case "serve": // NETWORK/ADDR…: says back what it is told, as in tcp/127.0.0.1:80
		serve(args[1:])
	case "ask": // NETWORK/ADDR TEXT: tells an echo server, and says what comes back
		fmt.Println(ask(args[1], args[2]))
	case "write": // PATH
		check(os.WriteFile(args[1], []byte("written"), 0o644))
		show(args[1])
	default:
		check(fmt.Errorf("unknown order %q", args))
	}
}

func vif(args []string) {
	fs := flag.NewFlagSet("vif", flag.ContinueOnError)
	connection := fs.String("connection", "", "")
	take := bus.FilesFlag(fs)
	check(fs.Parse(args))
	_, err := take(os.Stdin)
	check(err)
	in, err := os.Stat("/etc/berth/bus.json")
	check(err)
	if in.Mode().Perm() != 0o600 {
		check(fmt.Errorf("bus.json has mode %v", in.Mode()))
	}
	if strings.HasPrefix(*connection, "dies") {
		fmt.Fprintln(os.Stderr, `{"level":"INFO","msg":"starting"}`)
		fmt.Fprintln(os.Stderr, `{"level":"ERROR","msg":"create tun","err":"no such device"}`)
		os.Exit(4)
	}
	<-term()
}

func term() chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	return c
}

func show(path string) {
	b, err := os.ReadFile(path)
	check(err)
	fmt.Printf("%s:\n%s\n", path, b)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

// serve answers until SIGTERM.
func serve(addrs []string) {
	c := term()
	for _, a := range addrs {
		network, addr, _ := strings.Cut(a, "/")
		if strings.HasPrefix(network, "udp") {
			p, err := net.ListenPacket(network, addr)
			check(err)
			go func() {
				buf := make([]byte, 1<<16)
				for {
					n, from, err := p.ReadFrom(buf)
					check(err)
					_, _ = p.WriteTo(buf[:n], from)
				}
			}()
			continue
		}
		l, err := net.Listen(network, addr)
		check(err)
		go func() {
			for {
				c, err := l.Accept()
				check(err)
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
	}
	fmt.Println("serving")
	<-c
}

func ask(at, text string) string {
	network, addr, _ := strings.Cut(at, "/")
	c, err := net.DialTimeout(network, addr, 3*time.Second)
	check(err)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	_, err = c.Write([]byte(text))
	check(err)
	if t, ok := c.(*net.TCPConn); ok {
		check(t.CloseWrite())
		b, err := io.ReadAll(c)
		check(err)
		return string(b)
	}
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	check(err)
	return string(buf[:n])
}

// Command puppet is what the containers of runner's tests run: it does what its
// first argument says. Under the name vif it plays the daemon container.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
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
	case "write": // PATH
		check(os.WriteFile(args[1], []byte("written"), 0o644))
		show(args[1])
	default:
		check(fmt.Errorf("unknown order %q", args))
	}
}

func vif(args []string) {
	in, err := os.Stat("/etc/berth/bus.json")
	check(err)
	if in.Mode().Perm() != 0o600 {
		check(fmt.Errorf("bus.json has mode %v", in.Mode()))
	}
	if strings.HasPrefix(args[1], "dies") {
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

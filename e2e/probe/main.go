// Probe is the handler and the client of the end-to-end tests: one static
// program whose first word says what it does. It prints what it saw, and its
// exit code is 0 when it saw what was asked for.
//
//	probe serve [ADDR]              HTTP: first line "probe", then the environment's names
//	probe says TEXT PORT|ADDR:PORT… TEXT answers every HTTP request and every datagram
//	probe exit CODE                 ends with that code
//	probe file FILE                 HTTP: the file as it was at the start; one that says "exit" ends it
//	probe load URL DURATION         asks again and again, five at once, and prints "UNIXNANO answer" of each
//	probe alternate URL N DEV…      N requests over four connections that are kept alive, with the header x-dev: DEV… in turn; prints "DEV answer: count"
//	probe heard PORT                prints what comes over TCP, as it comes, and answers nothing
//	probe deaf PORT                 accepts connections by TCP and never reads
//	probe stubborn                  ignores every signal that can be ignored
//	probe get URL                   prints an HTTP answer
//	probe refused ADDR              a connection to ADDR is refused
//	probe udp ADDR TEXT [WANT]      TEXT comes back from a UDP echo server, or WANT from one that shouts
//	probe ping IP                   an ICMP echo is answered
//	probe noping IP                 none is, within two seconds
//	probe resolve NAME              prints the addresses, sorted
//	probe srv NAME, probe ptr IP    prints what DNS says
//	probe halfclose ADDR            sends, closes its half, reads the echo to the end
//	probe echo PORT|ADDR:PORT…      TCP and UDP echo server
//	probe echoed PROTO/ADDR…        echo servers at tcp/… and udp/… answer, refused/… refuses
//	probe shout PORT|ADDR:PORT…     the same, but datagrams come back in capitals
//	probe websocket URL N           N messages come back from a WebSocket echo server
//	probe hash                      prints the SHA-256 of its stdin
//	probe tree PATH…                prints all that lies there, with hashes
//	probe environ                   prints the environment, values as hashes
//	probe write FILE BYTES          random bytes, synced; prints their hash
//	probe hashof FILE, probe cat FILE, probe put FILE TEXT, probe link TARGET FILE
//	probe fill FILE BYTES           a disk that is too small says ENOSPC
//	probe loop FILE SECONDS         writes, syncs and reads records; none is torn
//	probe whoami                    asks the API server, with client-go
//	probe apart                     writes "out" to stdout and "err" to stderr
//	probe counterpart PORT          the server of conform; see counterpart.go
//	probe conform HOST PORT DEAD-IP BYTES [CASES]
//	                                all that a client can do with it, and what it saw, as JSON
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"serve"}
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	if known, err := filesWord(args); known {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	switch args[0] {
	case "serve":
		return serve(arg(1))
	case "says":
		return says(arg(1), args[2:])
	case "exit":
		n, err := strconv.Atoi(arg(1))
		if err != nil {
			return err
		}
		os.Exit(n)
	case "file":
		return file(arg(1))
	case "load":
		return load(arg(1), arg(2))
	case "heard":
		return heard(arg(1), true)
	case "requests":
		return requests(arg(1))
	case "deaf":
		return heard(arg(1), false)
	case "alternate":
		return alternate(arg(1), arg(2), args[3:])
	case "stubborn":
		signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		fmt.Println("stubborn")
		return serve("")
	case "get":
		return get(ctx, arg(1))
	case "refused":
		c, err := net.DialTimeout("tcp", arg(1), 5*time.Second)
		if err == nil {
			c.Close()
			return fmt.Errorf("%s accepted the connection", arg(1))
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("not refused but: %w", err)
		}
		return nil
	case "udp":
		return udp(arg(1), arg(2), arg(3))
	case "ping":
		return ping(arg(1), 5)
	case "noping":
		if ping(arg(1), 5) == nil {
			return fmt.Errorf("%s answered", arg(1))
		}
		return nil
	case "resolve":
		a, err := net.DefaultResolver.LookupHost(ctx, arg(1))
		slices.Sort(a)
		fmt.Println(strings.Join(a, " "))
		return err
	case "srv":
		_, s, err := net.DefaultResolver.LookupSRV(ctx, "", "", arg(1))
		for _, r := range s {
			fmt.Println(r.Target, r.Port)
		}
		return err
	case "ptr":
		n, err := net.DefaultResolver.LookupAddr(ctx, arg(1))
		fmt.Println(strings.Join(n, " "))
		return err
	case "halfclose":
		return halfClose(arg(1))
	case "echo":
		return echo(args[1:], func(b []byte) []byte { return b })
	case "echoed":
		return echoed(args[1:])
	case "shout":
		return echo(args[1:], bytes.ToUpper)
	case "websocket":
		return webSocket(arg(1), arg(2))
	case "hash":
		h := sha256.New()
		n, err := io.Copy(h, os.Stdin)
		fmt.Printf("%d %x\n", n, h.Sum(nil))
		return err
	case "apart":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
		return nil
	case "counterpart":
		return serveCounterpart(arg(1))
	case "conform":
		return conform(arg(1), arg(2), arg(3), arg(4), arg(5))
	}
	return fmt.Errorf("unknown word %q", args[0])
}

func serve(addr string) error {
	if addr == "" {
		addr = ":8080"
	}
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "probe")
		for _, e := range os.Environ() {
			k, _, _ := strings.Cut(e, "=")
			fmt.Fprintln(w, k)
		}
	})
	fmt.Println("serving on", addr)
	return http.ListenAndServe(addr, nil)
}

// says answers with the text, by HTTP and by UDP, at all addresses.
func says(text string, addrs []string) error {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, text) })
	return answerAt(addrs, text, func([]byte) []byte { return []byte(text) }, func(l net.Listener) error { return http.Serve(l, h) })
}

// file heeds SIGTERM as servers do.
func file(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(text)) == "exit" {
		return errors.New("told to exit")
	}
	srv := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text) })}
	term, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	context.AfterFunc(term, func() { _ = srv.Shutdown(context.Background()) })
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// heard listens, and prints what it hears unless it does not even read.
func heard(port string, reads bool) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if reads {
			go func() { _, _ = io.Copy(os.Stdout, c) }()
		}
	}
}

// requests serves HTTP, and prints each request.
func requests(port string) error {
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		fmt.Printf("asked %s %s by %q\n", r.Method, r.RequestURI, r.Header.Get("X-Dev"))
	}))
}

// alternate asks with the headers in turn, so that each connection has requests
// with all of them.
func alternate(url, count string, devs []string) error {
	n, err := strconv.Atoi(count)
	if err != nil || len(devs) == 0 {
		return fmt.Errorf("alternate URL N DEV…: %v", err)
	}
	const connections = 4
	counts := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for c := range connections {
		wg.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
			for i := c; i < n; i += connections {
				dev := devs[(i/connections)%len(devs)]
				answer, err := asked(client, url, dev)
				if err != nil {
					answer = "error: " + err.Error()
				}
				mu.Lock()
				counts[dev+" "+answer]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for answer, n := range counts {
		fmt.Printf("%s: %d\n", answer, n)
	}
	return nil
}

// asked is the first line of the answer to a request with the header x-dev.
func asked(c *http.Client, url, dev string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("x-dev", dev)
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	line, _, _ := strings.Cut(string(b), "\n")
	return line, err
}

// load has four askers that make a connection for each request, and one that
// keeps its own.
func load(url, duration string) error {
	d, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	end := time.Now().Add(d)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: i < 4}}
			for time.Now().Before(end) {
				start := time.Now().UnixNano()
				line := "error: "
				resp, err := client.Get(url)
				if err == nil {
					var b []byte
					if b, err = io.ReadAll(resp.Body); err == nil {
						line, _, _ = strings.Cut(string(b), "\n")
					}
					resp.Body.Close()
				}
				if err != nil {
					line += err.Error()
				}
				mu.Lock()
				fmt.Println(start, line)
				mu.Unlock()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	return nil
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

func udp(addr, text, want string) error {
	if want == "" {
		want = text
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 65536)
	for range 3 { // UDP may lose one
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, err := c.Read(buf)
		if err == nil && string(buf[:n]) == want {
			fmt.Println(n, "bytes")
			return nil
		}
	}
	return fmt.Errorf("no %q from %s", want, addr)
}

// ping has an echo request of size bytes answered, within two seconds.
func ping(ip string, size int) error {
	network, listen, proto := "ip4:icmp", "0.0.0.0", 1 // IANA protocol numbers
	var ask, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	to := net.ParseIP(ip)
	if to.To4() == nil {
		network, listen, proto = "ip6:ipv6-icmp", "::", 58
		ask, answer = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := icmp.ListenPacket(network, listen)
	if err != nil {
		return err
	}
	defer c.Close()
	id, data := os.Getpid()&0xffff, bytes.Repeat([]byte("b"), size)
	msg, err := (&icmp.Message{Type: ask, Body: &icmp.Echo{ID: id, Seq: 1, Data: data}}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: to}); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err == nil && m.Type == answer && from.String() == ip {
			if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && bytes.Equal(e.Data, data) {
				return nil
			}
		}
	}
}

func halfClose(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	go func() {
		_, _ = c.Write(sent)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("sent %d bytes, %d came back", len(sent), len(got))
	}
	return nil
}

// echoed asks echo servers, each as tcp/ADDRESS, udp/ADDRESS or refused/ADDRESS.
func echoed(all []string) error {
	for _, a := range all {
		proto, addr, _ := strings.Cut(a, "/")
		var err error
		switch proto {
		case "udp":
			err = udp(addr, a, "")
		case "refused":
			err = run([]string{"refused", addr})
		default:
			err = halfClose(addr)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

// echo answers at all addresses until it is killed.
func echo(addrs []string, answer func([]byte) []byte) error {
	return answerAt(addrs, "echo", answer, echoTCP)
}

// answerAt serves UDP and TCP at all addresses (or ports) until one fails.
func answerAt(addrs []string, name string, datagram func([]byte) []byte, serve func(net.Listener) error) error {
	if len(addrs) == 0 {
		return fmt.Errorf("%s: no port", name)
	}
	failed := make(chan error)
	for _, a := range addrs {
		if !strings.Contains(a, ":") {
			a = ":" + a
		}
		pc, err := net.ListenPacket("udp", a)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		go func() { failed <- echoUDP(pc, datagram) }()
		go func() { failed <- serve(l) }()
	}
	fmt.Println(name, "on", strings.Join(addrs, " "))
	return <-failed
}

func echoUDP(c net.PacketConn, answer func([]byte) []byte) error {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		_, _ = c.WriteTo(answer(buf[:n]), from)
	}
}

func echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
	}
}

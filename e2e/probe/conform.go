package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// conform does all that a program can do with a counterpart, and prints what it
// saw as JSON, an array of case and observation: the same on every path that is
// worth the name. It sees no times, no addresses, and no byte counts that chance
// decides.
//
// dead is an address where nobody is; bulk is how many bytes the long streams
// have. pick is a regular expression that chooses cases, empty for all.
func conform(host, port, dead, bulk, pick string) error {
	n, err := strconv.ParseInt(bulk, 10, 64)
	if err != nil {
		return fmt.Errorf("bytes: %w", err)
	}
	p, err := strconv.Atoi(port)
	if err != nil {
		return fmt.Errorf("port: %w", err)
	}
	only, err := regexp.Compile(pick)
	if err != nil {
		return err
	}
	c := &conformer{host: host, port: p, dead: dead, bulk: n}
	var saw []observation
	for _, k := range c.cases() {
		if only.MatchString(k.name) {
			began := time.Now()
			saw = append(saw, observation{k.name, k.do()})
			fmt.Fprintf(os.Stderr, "%s: %v\n", k.name, time.Since(began).Round(time.Millisecond))
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", " ")
	return out.Encode(saw)
}

type observation struct {
	Case string `json:"case"`
	Saw  string `json:"saw"`
}

type conformer struct {
	host, dead string
	port       int
	bulk       int64
	tokens     int
}

type conformCase struct {
	name string
	do   func() string
}

func (c *conformer) cases() []conformCase {
	all := []conformCase{
		{"tcp port closed", func() string { return c.dial(c.port+2, 5*time.Second) }},
		{"tcp black hole", func() string { return c.dial(c.port+1, 4*time.Second) }},
		{"tcp nobody there", c.toNobody},
		{"tcp opened and closed", c.openedAndClosed},
		{"tcp half-close by the client", c.clientHalfCloses},
		{"tcp half-close by the server", c.serverHalfCloses},
		{"tcp reset by the server", c.serverResets},
		{"tcp reset by the client", c.clientResets},
		{"tcp written to after the server closed", c.serverQuits},
		{"tcp server closes with bytes unread", c.serverLeavesUnread},
		{"tcp client closes with bytes unread", c.clientLeavesUnread},
		{"tcp one byte at a time", c.oneByteWrites},
		{"tcp slow reader", c.slowReader},
		{"tcp zero window of the client", c.clientStalls},
		{"tcp zero window of the server", c.serverStalls},
		{"tcp a long stream down", c.down},
		{"tcp a long stream up", c.up},
		{"tcp two ways at once", c.bothWays},
		{"tcp many at once", c.manyAtOnce},
		{"udp port closed", c.udpRefused},
		{"udp boundaries", c.boundaries},
		{"udp two servers, one socket", c.twoServers},
		{"icmp echo to nobody", func() string { return answered(ping(c.dead, 56)) }},
	}
	for _, n := range []int{0, 1, 2, 512, 1200, 1400, 1472, 1473, 1500, 4096, 8 << 10, 32 << 10, 60 << 10, 65507} {
		all = append(all, conformCase{fmt.Sprintf("udp %d bytes", n), func() string { return c.datagram(n) }})
	}
	for _, n := range []int{0, 56, 1400, 8 << 10} {
		all = append(all, conformCase{fmt.Sprintf("icmp echo of %d bytes", n), func() string { return answered(ping(c.host, n)) }})
	}
	return all
}

func (c *conformer) address(port int) string { return net.JoinHostPort(c.host, strconv.Itoa(port)) }

func (c *conformer) dial(port int, limit time.Duration) string {
	conn, err := net.DialTimeout("tcp", c.address(port), limit)
	if err == nil {
		conn.Close()
		return "connected"
	}
	return errorName(err)
}

func (c *conformer) toNobody() string {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(c.dead, strconv.Itoa(c.port)), 20*time.Second)
	if err == nil {
		conn.Close()
		return "connected"
	}
	return errorName(err)
}

// ask opens a connection that does what verb says; token names it.
func (c *conformer) ask(verb string, n int64) (conn *net.TCPConn, token string, err error) {
	c.tokens++
	token = fmt.Sprintf("%d-%d-%d", os.Getpid(), time.Now().UnixNano(), c.tokens)
	conn, err = c.say(fmt.Sprintf("%s %s %d\n", verb, token, n))
	return conn, token, err
}

func (c *conformer) say(line string) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", c.address(c.port), 10*time.Second)
	if err != nil {
		return nil, err
	}
	t := conn.(*net.TCPConn)
	_ = t.SetDeadline(time.Now().Add(5 * time.Minute)) // nothing hangs for ever
	_, err = io.WriteString(t, line)
	return t, err
}

// query is a question about another connection.
func (c *conformer) query(verb, token string) string {
	conn, err := c.say(verb + " " + token + "\n")
	if err != nil {
		return errorName(err)
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	if err != nil {
		return errorName(err)
	}
	return strings.TrimSpace(string(b))
}

// with asks for verb, does f with the connection, and adds what the server saw.
func (c *conformer) with(verb string, n int64, f func(*net.TCPConn) string) string {
	conn, token, err := c.ask(verb, n)
	if err != nil {
		return "ask: " + errorName(err)
	}
	here := f(conn)
	_ = conn.Close()
	return here + "; server: " + c.query("saw", token)
}

// same is what a digest is compared with, so that sizes may differ between runs.
func same(got string, n int64) string {
	if got == digestOf(n) {
		return "all"
	}
	return got
}

func (c *conformer) openedAndClosed() string {
	return c.with("take", 0, func(conn *net.TCPConn) string {
		_ = conn.CloseWrite()
		b, err := io.ReadAll(conn)
		return string(bytes.TrimSpace(b)) + ", " + errorName(err)
	})
}

func (c *conformer) clientHalfCloses() string {
	const n = 1 << 20
	return c.with("take", 0, func(conn *net.TCPConn) string {
		if err := sendStream(conn, n, nil); err != nil {
			return errorName(err)
		}
		_ = conn.CloseWrite()
		b, err := io.ReadAll(conn)
		return same(string(bytes.TrimSpace(b)), n) + ", " + errorName(err)
	})
}

func (c *conformer) serverHalfCloses() string {
	return c.with("fin", 0, func(conn *net.TCPConn) string {
		got := digest(conn) // nothing, and its end; then
		err := sendStream(conn, 1<<20, nil)
		return got + ", " + errorName(err)
	})
}

func (c *conformer) serverResets() string {
	const n = 1000
	return c.with("reset", n, func(conn *net.TCPConn) string {
		got := digest(io.LimitReader(conn, n))
		_, err := conn.Write([]byte{1})
		_, rerr := conn.Read(make([]byte, 1))
		return fmt.Sprintf("%s, %s, %s", same(got, n), errorName(err), errorName(rerr))
	})
}

// clientResets sends its last words first.
func (c *conformer) clientResets() string {
	return c.with("hear", 0, func(conn *net.TCPConn) string {
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			return errorName(err)
		}
		if err := sendStream(conn, 10_000, nil); err != nil {
			return errorName(err)
		}
		return errorName(conn.SetLinger(0))
	})
}

// serverQuits writes to a connection whose other end is closed: it takes a first
// write, and fails then, by one name or the other.
func (c *conformer) serverQuits() string {
	const n = 1000
	return c.with("quit", n, func(conn *net.TCPConn) string {
		got := same(digest(conn), n)
		for range 500 {
			if _, err := conn.Write([]byte{1}); err != nil {
				return got + ", " + errorName(err)
			}
			time.Sleep(10 * time.Millisecond) // until the answer to that write is here
		}
		return got + ", writes go nowhere"
	})
}

func (c *conformer) serverLeavesUnread() string {
	const n = 32 << 10
	return c.with("leave", n, func(conn *net.TCPConn) string {
		err := sendStream(conn, n, nil)
		return errorName(err) + ", " + digest(conn)
	})
}

func (c *conformer) clientLeavesUnread() string {
	const n = 32 << 10
	return c.with("send", n, func(conn *net.TCPConn) string { return errorName(waitUnread(conn, n)) })
}

func (c *conformer) oneByteWrites() string {
	const n = 5000
	return c.with("take", 0, func(conn *net.TCPConn) string {
		src, b := streamOf(n), make([]byte, 1)
		for range n {
			_, _ = src.Read(b)
			if _, err := conn.Write(b); err != nil {
				return errorName(err)
			}
		}
		_ = conn.CloseWrite()
		got, err := io.ReadAll(conn)
		return same(string(bytes.TrimSpace(got)), n) + ", " + errorName(err)
	})
}

// pacedReader rests now and then.
type pacedReader struct {
	r io.Reader
	n int
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:min(len(b), 1000)])
	if p.n += n; p.n > 64<<10 {
		p.n = 0
		time.Sleep(10 * time.Millisecond) // is what makes it slow
	}
	return n, err
}

func (c *conformer) slowReader() string {
	const n = 2 << 20
	return c.with("send", n, func(conn *net.TCPConn) string {
		_ = conn.SetReadBuffer(64 << 10)
		return same(digest(&pacedReader{r: conn}), n)
	})
}

// stallBytes is more than all buffers on any path hold together.
const stallBytes = 96 << 20

func (c *conformer) clientStalls() string {
	conn, token, err := c.ask("send", stallBytes)
	if err != nil {
		return "ask: " + errorName(err)
	}
	defer conn.Close()
	held := "never held up"
	for last := ""; ; { // until it is at the same place for a while
		now := c.query("sent", token)
		if now == last && now != "0" {
			if now != strconv.Itoa(stallBytes) {
				held = "held up"
			}
			break
		}
		last = now
		time.Sleep(500 * time.Millisecond) // between two looks
	}
	got := same(digest(conn), stallBytes)
	conn.Close()
	return held + ", " + got + "; server: " + c.query("saw", token)
}

func (c *conformer) serverStalls() string {
	conn, token, err := c.ask("stall", 0)
	if err != nil {
		return "ask: " + errorName(err)
	}
	defer conn.Close()
	src := streamOf(stallBytes)
	buf, held := make([]byte, 64<<10), "never held up"
	for left := stallBytes; left > 0; {
		k, _ := src.Read(buf)
		for b := buf[:k]; len(b) > 0; {
			if held != "held up" {
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			}
			n, err := conn.Write(b)
			b, left = b[n:], left-n
			switch {
			case err == nil:
			case errorName(err) == "time-out" && held != "held up":
				held = "held up"
				_ = conn.SetWriteDeadline(time.Now().Add(time.Minute))
				c.query("go", token)
			default:
				return held + ", " + errorName(err)
			}
		}
	}
	if held != "held up" {
		c.query("go", token)
	}
	_ = conn.CloseWrite()
	got, err := io.ReadAll(conn)
	return held + ", " + same(string(bytes.TrimSpace(got)), stallBytes) + ", " + errorName(err)
}

func (c *conformer) down() string {
	return c.with("send", c.bulk, func(conn *net.TCPConn) string { return same(digest(conn), c.bulk) })
}

func (c *conformer) up() string {
	return c.with("take", 0, func(conn *net.TCPConn) string {
		if err := sendStream(conn, c.bulk, nil); err != nil {
			return errorName(err)
		}
		_ = conn.CloseWrite()
		got, err := io.ReadAll(conn)
		return same(string(bytes.TrimSpace(got)), c.bulk) + ", " + errorName(err)
	})
}

func (c *conformer) bothWays() string { return c.echoed(c.bulk / 4) }

func (c *conformer) echoed(n int64) string {
	conn, _, err := c.ask("echo", 0)
	if err != nil {
		return "ask: " + errorName(err)
	}
	defer conn.Close()
	var wrote error
	var wg sync.WaitGroup
	wg.Go(func() {
		wrote = sendStream(conn, n, nil)
		_ = conn.CloseWrite()
	})
	got := same(digest(conn), n)
	wg.Wait()
	return got + ", " + errorName(wrote)
}

func (c *conformer) manyAtOnce() string {
	const n = 200
	saw := make(chan string, n)
	for range n {
		c.tokens++ // of the goroutine's connection
		one := *c
		go func() { saw <- one.echoed(10_000) }()
	}
	counts := map[string]int{}
	for range n {
		counts[<-saw]++
	}
	b, _ := json.Marshal(counts)
	return string(b)
}

// datagram goes there and back; UDP may lose one.
func (c *conformer) datagram(n int) string {
	conn, err := net.Dial("udp", c.address(c.port))
	if err != nil {
		return errorName(err)
	}
	defer conn.Close()
	sent, got := make([]byte, n), make([]byte, 65536)
	_, _ = streamOf(int64(n)).Read(sent)
	for range 3 {
		if _, err := conn.Write(sent); err != nil {
			return errorName(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		k, err := conn.Read(got)
		if err == nil && bytes.Equal(got[:k], sent) {
			return "came back"
		}
		if err != nil && errorName(err) != "time-out" {
			return errorName(err)
		}
	}
	return "lost"
}

// udpRefused asks thrice: the kernel limits how many ICMP messages it sends.
func (c *conformer) udpRefused() string {
	conn, err := net.Dial("udp", c.address(c.port+2))
	if err != nil {
		return errorName(err)
	}
	defer conn.Close()
	for range 3 {
		_, _ = conn.Write([]byte("x"))
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err = conn.Read(make([]byte, 1)); errorName(err) != "time-out" {
			break
		}
	}
	return errorName(err)
}

// boundaries sends datagrams of different lengths at once: each comes back as it was.
func (c *conformer) boundaries() string {
	conn, err := net.Dial("udp", c.address(c.port))
	if err != nil {
		return errorName(err)
	}
	defer conn.Close()
	lengths := []int{700, 1, 1400, 0, 300, 9000, 2}
	for _, n := range lengths {
		if _, err := conn.Write(bytes.Repeat([]byte{byte(n)}, n)); err != nil {
			return errorName(err)
		}
	}
	left := map[int]bool{}
	for _, n := range lengths {
		left[n] = true
	}
	buf := make([]byte, 65536)
	for range lengths {
		_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, err := conn.Read(buf)
		if err != nil {
			return fmt.Sprintf("%s, %d missing", errorName(err), len(left))
		}
		if !left[n] || !bytes.Equal(buf[:n], bytes.Repeat([]byte{byte(n)}, n)) {
			return fmt.Sprintf("a datagram of %d bytes that was not sent", n)
		}
		delete(left, n)
	}
	return "each as it was"
}

// twoServers: an unconnected socket hears from each server by its own address.
func (c *conformer) twoServers() string {
	conn, err := net.ListenPacket("udp", ":0")
	if err != nil {
		return errorName(err)
	}
	defer conn.Close()
	buf := make([]byte, 1500)
	saw := ""
	for _, port := range []int{c.port, c.port + 3} {
		to, err := net.ResolveUDPAddr("udp", c.address(port))
		if err != nil {
			return errorName(err)
		}
		text := fmt.Sprint("to ", port)
		for range 3 {
			if _, err := conn.WriteTo([]byte(text), to); err != nil {
				return errorName(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			n, from, rerr := conn.ReadFrom(buf)
			if err = rerr; err == nil {
				saw += fmt.Sprintf("%v %v, ", from.String() == to.String(), string(buf[:n]) == text)
				break
			}
		}
		if err != nil {
			return saw + errorName(err)
		}
	}
	return saw + "fine"
}

func answered(err error) string {
	if err == nil {
		return "answered"
	}
	return "not answered"
}

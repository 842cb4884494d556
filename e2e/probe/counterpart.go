package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// counterpart is the server of conform. A TCP connection's first line says what
// it shall do, "VERB TOKEN [BYTES]":
//
//	echo    sends back what it reads, and then FIN
//	send    sends so many bytes of the stream, then FIN, and reads to the end
//	take    reads to the end, then says what it saw, and FIN
//	hear    sends one byte, and reads to the end
//	stall   is take, but reads nothing before "go"
//	fin     sends FIN at once, and reads to the end
//	quit    sends so many bytes and closes; what comes then is answered by RST
//	reset   sends so many bytes, waits for one, and resets
//	leave   waits until so many bytes lie there unread, and closes
//	go      lets the connection with that token go on
//	sent    says how many bytes the connection with that token has sent
//	saw     says what the connection with that token saw, once it has ended
//
// Datagrams to PORT and PORT+3 come back. PORT+1 is a black hole: a listener whose queue is full, to
// which the kernel answers no SYN. Nobody listens on PORT+2.
type counterpart struct {
	mu     sync.Mutex
	saw    map[string]chan string
	resume map[string]chan struct{}
	sent   map[string]int64
}

func serveCounterpart(port string) error {
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	if err := blackHole(n + 1); err != nil {
		return fmt.Errorf("make a black hole: %w", err)
	}
	for _, p := range []int{n, n + 3} {
		pc, err := net.ListenPacket("udp", fmt.Sprint(":", p))
		if err != nil {
			return err
		}
		go func() { _ = echoUDP(pc, func(b []byte) []byte { return b }) }()
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	s := &counterpart{saw: map[string]chan string{}, resume: map[string]chan struct{}{}, sent: map[string]int64{}}
	fmt.Println("counterpart on", port)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.serve(c.(*net.TCPConn))
	}
}

// blackHole fills the queue of a listener, of both families, that never accepts.
func blackHole(port int) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		return err
	}
	if err := unix.Listen(fd, 0); err != nil {
		return err
	}
	for range 16 {
		_, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 300*time.Millisecond)
		if errorName(err) == "time-out" {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("the queue does not fill")
}

func (s *counterpart) serve(c *net.TCPConn) {
	defer c.Close()
	in := bufio.NewReaderSize(oneByte{c}, 16) // not a byte beyond the line
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	f := append(strings.Fields(line), "", "", "")
	verb, token := f[0], f[1]
	n, _ := strconv.ParseInt(f[2], 10, 64)
	switch verb {
	case "go":
		close(entry(s, s.resume, token, 0))
	case "sent":
		s.mu.Lock()
		fmt.Fprintln(c, s.sent[token])
		s.mu.Unlock()
	case "saw":
		select {
		case text := <-entry(s, s.saw, token, 1):
			fmt.Fprintln(c, text)
		case <-time.After(20 * time.Second):
			fmt.Fprintln(c, "nothing within 20 s")
		}
	default:
		entry(s, s.saw, token, 1) <- s.play(c, verb, token, n)
	}
}

// entry is a token's channel, made by whoever comes first.
func entry[T any](s *counterpart, m map[string]chan T, token string, size int) chan T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m[token] == nil {
		m[token] = make(chan T, size)
	}
	return m[token]
}

func (s *counterpart) play(c *net.TCPConn, verb, token string, n int64) string {
	switch verb {
	case "echo":
		_, err := io.CopyBuffer(onlyWriter{c}, onlyReader{c}, make([]byte, 64<<10))
		_ = c.CloseWrite()
		return errorName(err)
	case "send":
		err := sendStream(c, n, func(sent int64) {
			s.mu.Lock()
			s.sent[token] = sent
			s.mu.Unlock()
		})
		if err != nil {
			return "send: " + errorName(err)
		}
		_ = c.CloseWrite()
		return digest(c)
	case "stall", "take":
		if verb == "stall" {
			<-entry(s, s.resume, token, 0)
		}
		saw := digest(c)
		fmt.Fprintln(c, saw)
		return saw
	case "hear":
		_, _ = c.Write([]byte{1})
		n, err := io.Copy(io.Discard, onlyReader{c})
		return fmt.Sprintf("%d bytes, %s", n, errorName(err))
	case "fin":
		_ = c.CloseWrite()
		return digest(c)
	case "quit":
		return errorName(sendStream(c, n, nil))
	case "reset":
		err := sendStream(c, n, nil)
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		_ = c.SetLinger(0)
		return errorName(err)
	case "leave":
		return errorName(waitUnread(c, int(n)))
	}
	return "unknown verb " + verb
}

// oneByte reads a byte at a time, so that what follows the line stays in the socket.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

// Without ReadFrom and WriteTo, or io.Copy would splice.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// streamOf is a stream of bytes that both ends can make.
func streamOf(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{'b', 'e', 'r', 't', 'h'}), n)
}

// sendStream sends n bytes of the stream; tell hears of each step.
func sendStream(w io.Writer, n int64, tell func(sent int64)) error {
	src, buf := streamOf(n), make([]byte, 64<<10)
	for sent := int64(0); sent < n; {
		k, _ := src.Read(buf)
		m, err := w.Write(buf[:k])
		if sent += int64(m); tell != nil {
			tell(sent)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// digest reads to the end and says what came: length, hash and how it ended.
func digest(r io.Reader) string {
	h := sha256.New()
	n, err := io.CopyBuffer(onlyWriter{h}, onlyReader{r}, make([]byte, 256<<10))
	if err != nil {
		return errorName(err) // how much arrived before a reset is anybody's guess
	}
	return fmt.Sprintf("%d bytes %x, end", n, h.Sum(nil)[:8])
}

// digestOf is what digest says of n bytes of the stream.
func digestOf(n int64) string { return digest(streamOf(n)) }

// waitUnread waits until at least n bytes have arrived that nobody reads.
func waitUnread(c *net.TCPConn, n int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for range 1000 {
		unread := 0
		if cerr := raw.Control(func(fd uintptr) { unread, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		if unread >= n {
			return nil
		}
		time.Sleep(10 * time.Millisecond) // between two looks
	}
	return fmt.Errorf("%d bytes did not come", n)
}

// errorName is what a program would switch upon.
func errorName(err error) string {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case err == nil:
		return "fine"
	case err == io.EOF:
		return "end"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	case errors.As(err, &timeout) && timeout.Timeout():
		return "time-out"
	}
	return err.Error()
}

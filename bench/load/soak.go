package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	soakWorkers = 24
	// soakAbandoned bounds the connections that are open and left alone.
	soakAbandoned = 64
	soakRest      = 40 * time.Millisecond // at most, between two flows of a worker
)

// soaker opens flows to a server of this program and ends them in every way there is.
type soaker struct {
	addr, host string

	mu        sync.Mutex
	abandoned []net.Conn
	done      map[string]int
	wrong     []string
	failure   string // the first
}

// soak prints how many flows there were of each kind. It fails if one went wrong
// that should not have: bytes that are not those sent, a port that is closed and
// accepts, or more than one in a hundred that could not be opened.
func soak(addr string, d time.Duration) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	s := &soaker{addr: addr, host: host, done: map[string]int{}}
	kinds := map[string]func() error{
		"echo, closed": s.echo, "echo, reset": s.echoReset, "download, left": s.leaveDownload, "upload, reset": s.resetUpload,
		"abandoned": s.abandon, "half-closed": s.halfClose, "refused": s.refused, "datagrams": s.datagrams,
	}
	names := slices.Sorted(maps.Keys(kinds))
	end := time.Now().Add(d)
	var wg sync.WaitGroup
	for range soakWorkers {
		wg.Go(func() {
			for time.Now().Before(end) {
				name := names[rand.IntN(len(names))]
				s.note(name, kinds[name]())
				time.Sleep(rand.N(soakRest)) // the load is bounded
			}
		})
	}
	wg.Wait()
	for _, c := range s.abandoned {
		c.Close()
	}
	failed := 0
	for _, n := range slices.Sorted(maps.Keys(s.done)) {
		fmt.Println(s.done[n], n)
		failed = s.done["failed"]
	}
	total := 0
	for _, n := range s.done {
		total += n
	}
	if failed > total/100 {
		s.wrong = append(s.wrong, fmt.Sprintf("%d of %d flows failed, the first: %s", failed, total, s.failure))
	}
	if len(s.wrong) > 0 {
		return fmt.Errorf("%d flows went wrong, the first: %s", len(s.wrong), s.wrong[0])
	}
	return nil
}

// wrong is an error that must not be, however loaded the path is.
type wrong struct{ error }

func (s *soaker) note(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var w wrong
	switch {
	case errors.As(err, &w):
		s.wrong = append(s.wrong, name+": "+err.Error())
	case err != nil:
		s.done["failed"]++
		if s.failure == "" {
			s.failure = name + ": " + err.Error()
		}
	}
	s.done[name]++
}

func (s *soaker) open(mode byte) (*net.TCPConn, error) {
	c, err := open(s.addr, mode)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn), nil
}

// roundTrip sends up to 64 KiB and wants them back.
func roundTrip(c io.ReadWriter) error {
	sent := make([]byte, 1+rand.IntN(64<<10))
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return wrong{fmt.Errorf("%d bytes came back as others", len(sent))}
	}
	return nil
}

func (s *soaker) echo() error {
	c, err := s.open('e')
	if err != nil {
		return err
	}
	defer c.Close()
	return roundTrip(c)
}

func (s *soaker) echoReset() error {
	c, err := s.open('e')
	if err != nil {
		return err
	}
	defer c.Close()
	err = roundTrip(c)
	_ = c.SetLinger(0)
	return err
}

// leaveDownload closes, or resets, amid bytes that still come.
func (s *soaker) leaveDownload() error {
	c, err := s.open('d')
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.CopyN(io.Discard, c, rand.Int64N(1<<20))
	if rand.IntN(2) == 0 {
		_ = c.SetLinger(0)
	}
	return err
}

func (s *soaker) resetUpload() error {
	c, err := s.open('s')
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, rand.IntN(1<<20)))
	_ = c.SetLinger(0)
	return err
}

// abandon leaves a download unread. The oldest make room, some by FIN, some by RST.
func (s *soaker) abandon() error {
	c, err := s.open('d')
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.abandoned = append(s.abandoned, c)
	var old net.Conn
	if len(s.abandoned) > soakAbandoned {
		old, s.abandoned = s.abandoned[0], s.abandoned[1:]
	}
	s.mu.Unlock()
	if old != nil {
		if rand.IntN(2) == 0 {
			_ = old.(*net.TCPConn).SetLinger(0)
		}
		old.Close()
	}
	return nil
}

func (s *soaker) halfClose() error {
	c, err := s.open('s')
	if err != nil {
		return err
	}
	defer c.Close()
	n := rand.IntN(256 << 10)
	if _, err := c.Write(make([]byte, n)); err != nil {
		return err
	}
	_ = c.CloseWrite()
	var got int
	if _, err := fmt.Fscan(c, &got); err != nil {
		return err
	}
	if got != n {
		return wrong{fmt.Errorf("sent %d bytes, %d arrived", n, got)}
	}
	return nil
}

func (s *soaker) refused() error {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(s.host, "9"), 10*time.Second)
	if err == nil {
		c.Close()
		return wrong{errors.New("a closed port accepted")}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

// datagrams go there and back; each of them may be lost.
func (s *soaker) datagrams() error {
	c, err := net.Dial("udp", s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	sent, got := make([]byte, 1+rand.IntN(1400)), make([]byte, 1500)
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write(sent); err != nil {
		return err
	}
	if n, err := c.Read(got); err == nil && n != len(sent) {
		return wrong{fmt.Errorf("a datagram of %d bytes came back with %d", len(sent), n)}
	}
	return nil
}

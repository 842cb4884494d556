package netstack

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"
)

// So many connections at once each carry bytes of their own to a server and back;
// then all end, and nothing is held: neither flows, streams, goroutines, nor memory
// that a second time adds to.
func TestConcurrentFlows(t *testing.T) {
	w := newWorld(t, 65520)
	before := rest()
	t.Run("1000", func(t *testing.T) {
		w.carryAtOnce(t, 1000)
		// What is made once and kept, maps and the runtime's own of goroutines, is there
		// after the first time.
		first := w.emptied(t, held{before.goroutines, math.MaxUint64})
		w.carryAtOnce(t, 1000)
		second := w.emptied(t, held{before.goroutines, first.live + 1<<20})
		t.Logf("%v before, %v after 1,000 flows, %v after as many again", before, first, second)
	})
	t.Run("10000", func(t *testing.T) {
		if testing.Short() {
			t.Skip("short: 1,000 flows were enough")
		}
		w.carryAtOnce(t, 10_000)
		after := w.emptied(t, held{before.goroutines, before.live + 10_000*4<<10})
		t.Logf("%v before, %v after 10,000 flows", before, after)
	})
}

// carryAtOnce has so many connections open at the same time, and only then carry. Not
// all begin at the same moment: what is sent again after losses in such a crowd may
// take longer than anybody waits.
func (w *world) carryAtOnce(t *testing.T, flows int) {
	t.Helper()
	var opened, all sync.WaitGroup
	opened.Add(flows)
	open := make(chan struct{}) // closed when all are
	turn := make(chan struct{}, 500)
	for i := range flows {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if err := carry(32<<20/flows, func() { <-turn; opened.Done(); <-open; turn <- struct{}{} }); err != nil {
				t.Errorf("flow %d: %v", i, err)
			}
		})
	}
	opened.Wait()
	if n := w.stack.Flows(); n != flows && !t.Failed() {
		t.Errorf("%d flows, want %d", n, flows)
	}
	close(open)
	all.Wait()
}

// emptied waits until nothing is carried and no more is held than that.
func (w *world) emptied(t *testing.T, most held) held {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		now := rest()
		if w.stack.Flows() == 0 && w.near.NumStreams() == 0 && w.far.NumStreams() == 0 && now.goroutines <= most.goroutines+5 && now.live <= most.live {
			return now
		}
		if time.Now().After(end) {
			t.Fatalf("held: %d flows, %d and %d streams, %v; want at most %v", w.stack.Flows(), w.near.NumStreams(), w.far.NumStreams(), now, most)
		}
	}
}

// held is what the process holds, after a collection.
type held struct {
	goroutines int
	live       uint64 // bytes
}

func (h held) String() string { return fmt.Sprintf("%d goroutines, %d KiB", h.goroutines, h.live>>10) }

// rest collects twice: what lies in a pool survives the first.
func rest() held {
	runtime.GC()
	runtime.GC()
	m := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(m)
	return held{runtime.NumGoroutine(), m[0].Value.Uint64()}
}

// carry sends up to most bytes to an echo server through the VIF and compares what comes
// back. It calls opened once the first byte has, or never will.
func carry(most int, opened func()) error {
	c, err := net.DialTimeout("tcp", mirror+":7", patience)
	if err != nil {
		opened()
		return err
	}
	defer c.Close()
	sent := make([]byte, 2+rand.IntN(most))
	_, _ = rand.NewChaCha8([32]byte{byte(rand.Uint32())}).Read(sent)
	got := make([]byte, len(sent))
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err = c.Write(sent[:1]); err == nil {
		_, err = io.ReadFull(c, got[:1])
	}
	opened()
	if err != nil {
		return fmt.Errorf("first byte: %w", err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent[1:])
		_ = c.(*net.TCPConn).CloseWrite()
		wrote <- err
	}()
	_, err = io.ReadFull(c, got[1:])
	if werr := <-wrote; werr != nil {
		return fmt.Errorf("write: %w", werr)
	}
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if sha256.Sum256(got) != sha256.Sum256(sent) {
		return fmt.Errorf("%d bytes came back as others", len(sent))
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return fmt.Errorf("after the last byte: %d more, %v", n, err)
	}
	return nil
}

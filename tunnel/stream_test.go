package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestEcho(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		go serve(server, echo)
		st, err := client.Open(t.Context(), header(KindTCP))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"a", "hello", string(make([]byte, 300_000))} {
			go io.WriteString(st, s)
			mustRead(t, st, s)
		}
		st.Close()
		eventually(t, "stream forgotten by both ends", func() bool { return client.NumStreams()+server.NumStreams() == 0 })
	})
}

func TestHalfCloseByOpener(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindTCP)
		mustWrite(t, c, "request")
		c.CloseWrite()
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		got, err := io.ReadAll(s)
		if err != nil || string(got) != "request" {
			t.Fatalf("got %q, %v", got, err)
		}
		mustWrite(t, s, "answer")
		mustRead(t, c, "answer")
		s.CloseWrite()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read after FIN: %d, %v", n, err)
		}
		eventually(t, "stream forgotten", func() bool { return client.NumStreams()+server.NumStreams() == 0 })
	})
}

func TestHalfCloseByAcceptor(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindTCP)
		mustWrite(t, s, "bye")
		s.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
			t.Fatalf("got %q, %v", got, err)
		}
		mustWrite(t, c, "still here")
		mustRead(t, s, "still here")
		c.Close()
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v", err)
		}
		_, err := c.Write([]byte("x"))
		wantErr(t, "write after Close", err, net.ErrClosed)
	})
}

func TestResetBothWays(t *testing.T) {
	for _, who := range []string{"opener", "acceptor"} {
		t.Run(who, func(t *testing.T) {
			eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
				a, b := streamPair(t, client, server, KindTCP)
				if who == "acceptor" {
					a, b = b, a
				}
				mustWrite(t, a, "last words")
				mustRead(t, b, "last words")
				blocked := make(chan error, 1)
				go func() { _, err := b.Read(make([]byte, 1)); blocked <- err }()
				a.Reset(CodeTimeout)
				err := <-blocked
				wantErr(t, "read", err, syscall.ECONNRESET)
				wantErr(t, "read", err, syscall.ETIMEDOUT)
				_, err = b.Write([]byte("x"))
				wantErr(t, "write", err, syscall.ECONNRESET)
				_, err = a.Write([]byte("x"))
				wantErr(t, "write at the resetting end", err, net.ErrClosed)
				_, err = a.Read([]byte("x"))
				wantErr(t, "read at the resetting end", err, net.ErrClosed)
				eventually(t, "stream forgotten", func() bool { return client.NumStreams()+server.NumStreams() == 0 })
			})
		})
	}
}

func TestCloseStopsSender(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindTCP)
		failed := make(chan error, 1)
		go func() {
			for {
				if _, err := s.Write(make([]byte, 64<<10)); err != nil {
					failed <- err
					return
				}
			}
		}()
		mustRead(t, c, string(make([]byte, 10_000)))
		c.Close() // a download given up
		wantErr(t, "write", <-failed, syscall.ECONNRESET)
		eventually(t, "opener forgets", func() bool { return client.NumStreams() == 0 })
		go serve(server, echo)
		again, err := client.Open(t.Context(), header(KindTCP))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, again, "ping")
		mustRead(t, again, "ping")
	})
}

func TestAbandonedStreamsHoldNobodyUp(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		// Neither read nor closed: their windows fill up and they stall.
		for range 8 {
			_, s := streamPair(t, client, server, KindTCP)
			go func() {
				for {
					if _, err := s.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			}()
		}
		go serve(server, echo)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				st, err := client.Open(t.Context(), header(KindTCP))
				if err != nil {
					t.Error(err)
					return
				}
				defer st.Close()
				data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
				go st.Write(data)
				got := make([]byte, len(data))
				if _, err := io.ReadFull(st, got); err != nil || !bytes.Equal(got, data) {
					t.Errorf("fast stream beside stalled ones: %v", err)
				}
			})
		}
		wg.Wait()
	})
}

func TestBulkHash(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	for _, name := range []string{"tcp", "tls"} {
		t.Run(name, func(t *testing.T) {
			client, server := link(t, name, Config{})
			c, s := streamPair(t, client, server, KindTCP)
			for dir, ends := range map[string][2]*Stream{"up": {c, s}, "down": {s, c}} {
				sent := sha256.New()
				hashed := make(chan struct{})
				go func() {
					defer close(hashed)
					defer ends[0].CloseWrite()
					src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size/2), sent)
					if _, err := ends[0].ReadFrom(src); err != nil {
						t.Error(err)
					}
				}()
				got := sha256.New()
				n, err := ends[1].WriteTo(got)
				if err != nil || n != size/2 {
					t.Fatalf("%s: %d bytes, %v", dir, n, err)
				}
				<-hashed
				if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
					t.Errorf("%s: bytes differ", dir)
				}
			}
		})
	}
}

// Random sizes through every way of writing and reading.
func TestMixedSizes(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindTCP)
		sent := sha256.New()
		rng := rand.New(rand.NewPCG(1, 2))
		hashed := make(chan struct{})
		go func() {
			defer close(hashed)
			defer c.CloseWrite()
			for i := range 600 {
				b := make([]byte, 1+rng.IntN(1<<(1+i%18)))
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				sent.Write(b)
				if _, err := c.Write(b); err != nil {
					t.Error(err)
				}
			}
		}()
		got := sha256.New()
		buf := make([]byte, 100_000)
		for i := 0; ; i++ {
			n, err := s.Read(buf[:1+i*37%len(buf)])
			got.Write(buf[:n])
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		<-hashed
		if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
			t.Error("bytes differ")
		}
	})
}

func TestThousandStreams(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		go serve(server, echo)
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				st, err := client.Open(t.Context(), header(KindTCP))
				if err != nil {
					t.Error(err)
					return
				}
				defer st.Close()
				for j := range 5 {
					msg := fmt.Sprintf("stream %d message %d", i, j)
					if _, err := io.WriteString(st, msg); err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, len(msg))
					if _, err := io.ReadFull(st, got); err != nil || string(got) != msg {
						t.Errorf("got %q, %v", got, err)
						return
					}
				}
			})
		}
		wg.Wait()
		eventually(t, "streams forgotten", func() bool { return client.NumStreams()+server.NumStreams() == 0 })
	})
}

func TestConcurrentWritesAreAtomic(t *testing.T) {
	client, server := link(t, "tcp", Config{})
	c, s := streamPair(t, client, server, KindTCP)
	const size, writers, rounds = 100_000, 4, 10
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range rounds {
				if _, err := c.Write(bytes.Repeat([]byte{byte(i)}, size)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); c.CloseWrite() }()
	buf := make([]byte, size)
	for range writers * rounds {
		if _, err := io.ReadFull(s, buf); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(buf, buf[:1]); n != size {
			t.Fatalf("a write was torn: %d of %d bytes", n, size)
		}
	}
}

func TestDeadlines(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindTCP)
		buf := make([]byte, 64<<10)

		c.SetReadDeadline(time.Now().Add(-time.Second))
		_, err := c.Read(buf)
		wantErr(t, "read past the deadline", err, os.ErrDeadlineExceeded)
		var timeout interface{ Timeout() bool }
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is no timeout", err)
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err = c.Read(buf)
		wantErr(t, "blocked read", err, os.ErrDeadlineExceeded)

		blocked := make(chan error, 1)
		c.SetReadDeadline(time.Time{})
		go func() { _, err := c.Read(buf); blocked <- err }()
		c.SetReadDeadline(time.Now())
		wantErr(t, "deadline set during a read", <-blocked, os.ErrDeadlineExceeded)

		c.SetReadDeadline(time.Now().Add(time.Hour))
		mustWrite(t, s, "in time")
		mustRead(t, c, "in time")

		// Nobody reads at s: the window and the queue fill up.
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		for err = nil; err == nil; {
			_, err = c.Write(buf)
		}
		wantErr(t, "blocked write", err, os.ErrDeadlineExceeded)
		c.SetWriteDeadline(time.Time{})
		go io.Copy(io.Discard, s)
		if _, err := c.Write(buf); err != nil {
			t.Errorf("write after the deadline was lifted: %v", err)
		}
	})
}

func TestCloseUnblocks(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, _ := streamPair(t, client, server, KindTCP)
		read, write := make(chan error, 1), make(chan error, 1)
		go func() { _, err := c.Read(make([]byte, 1)); read <- err }()
		go func() {
			for {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					write <- err
					return
				}
			}
		}()
		eventually(t, "window full", func() bool {
			client.w.mu.Lock()
			defer client.w.mu.Unlock()
			return c.credit == 0
		})
		c.Close()
		wantErr(t, "read", <-read, net.ErrClosed)
		wantErr(t, "write", <-write, net.ErrClosed)
	})
}

func TestRefusal(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		for code, errno := range map[Code]error{
			CodeRefused: syscall.ECONNREFUSED, CodeUnreachable: syscall.EHOSTUNREACH,
			CodeTimeout: syscall.ETIMEDOUT, CodeDenied: os.ErrPermission, CodeNotFound: os.ErrNotExist,
		} {
			go func() {
				r, err := server.Accept(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				r.Refuse(code, "says who")
				r.Refuse(CodeInternal, "twice")
				if _, err := r.Accept(); err == nil {
					t.Error("accepted after a refusal")
				}
			}()
			_, err := client.Open(t.Context(), header(KindTCP))
			wantErr(t, "open", err, errno)
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Code != code || refused.Message != "says who" {
				t.Errorf("open: %v", err)
			}
			if CodeOf(err) != code {
				t.Errorf("CodeOf: %v", CodeOf(err))
			}
		}
		if n := client.NumStreams() + server.NumStreams(); n != 0 {
			t.Errorf("%d streams left", n)
		}
	})
}

func TestOpenCanceled(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() { _, err := client.Open(ctx, header(KindTCP)); failed <- err }()
		r, err := server.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		dial, release := r.Context(context.Background())
		defer release()
		cancel()
		wantErr(t, "open", <-failed, context.Canceled)
		<-dial.Done() // the acceptor's dial is cut short
		_, err = r.Accept()
		wantErr(t, "accept", err, syscall.ECONNRESET)
		go serve(server, echo)
		if _, err := client.Open(t.Context(), header(KindTCP)); err != nil {
			t.Errorf("open after a canceled one: %v", err)
		}
	})
}

func TestPackets(t *testing.T) {
	for _, kind := range []Kind{KindUDP, KindEcho} {
		eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
			c, s := streamPair(t, client, server, kind)
			buf := make([]byte, 65536)
			for _, n := range []int{0, 1, 2, 1472, 4086, 4096, 16384, 16385, 65000, 65507} {
				want := bytes.Repeat([]byte{byte(n)}, n)
				if err := c.WritePacket(want); err != nil {
					t.Fatal(err)
				}
				got, err := s.ReadPacket(buf)
				if err != nil || !bytes.Equal(buf[:got], want) {
					t.Fatalf("datagram of %d bytes: got %d, %v", n, got, err)
				}
			}
			for _, p := range []string{"one", "", "three"} {
				mustWritePacket(t, s, p)
			}
			for _, p := range []string{"one", "", "three"} {
				if n, err := c.ReadPacket(buf); err != nil || string(buf[:n]) != p {
					t.Fatalf("got %q, %v", buf[:n], err)
				}
			}
			wantErr(t, "too long", c.WritePacket(make([]byte, 65508)), syscall.EMSGSIZE)
			c.Close()
			if _, err := s.ReadPacket(buf); err != io.EOF {
				t.Errorf("after close: %v", err)
			}
		})
	}
}

func mustWritePacket(t testing.TB, s *Stream, p string) {
	t.Helper()
	if err := s.WritePacket([]byte(p)); err != nil {
		t.Fatal(err)
	}
}

func TestPacketsAreDroppedNotHeld(t *testing.T) {
	eachLink(t, Config{}, func(t *testing.T, client, server *Session) {
		c, s := streamPair(t, client, server, KindUDP)
		tcp, far := streamPair(t, client, server, KindTCP)
		// Nobody reads at s. This must not wait, nor keep others waiting.
		for range 2000 {
			if err := c.WritePacket(make([]byte, 1400)); err != nil {
				t.Fatal(err)
			}
		}
		mustWrite(t, tcp, "passes")
		mustRead(t, far, "passes")
		if c.Dropped()+s.Dropped() == 0 {
			t.Error("2.8 MB of datagrams fit in bounded queues")
		}
		n, err := s.ReadPacket(make([]byte, 2000))
		if n != 1400 || err != nil {
			t.Errorf("first datagram: %d, %v", n, err)
		}
	})
}

func TestWrongKindOfCall(t *testing.T) {
	client, server := link(t, "tcp", Config{})
	c, _ := streamPair(t, client, server, KindTCP)
	if err := c.WritePacket(nil); err == nil {
		t.Error("WritePacket on a byte stream")
	}
	if _, err := c.ReadPacket(nil); err == nil {
		t.Error("ReadPacket on a byte stream")
	}
}

package tunnel

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// benchLinks: bare is a TCP connection per flow, the limit.
func benchLinks(b *testing.B, f func(b *testing.B, open func() net.Conn)) {
	b.Run("bare", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go benchServer(c)
			}
		}()
		f(b, func() net.Conn {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			return c
		})
	})
	for _, name := range []string{"tcp", "tls"} {
		b.Run(name, func(b *testing.B) {
			client, server := link(b, name, Config{})
			go serve(server, func(st *Stream) { benchServer(st) })
			f(b, func() net.Conn {
				st, err := client.Open(b.Context(), header(KindTCP))
				if err != nil {
					b.Fatal(err)
				}
				return st
			})
		})
	}
}

// benchServer does what the first byte says: echo, swallow, or send.
func benchServer(c net.Conn) {
	defer c.Close()
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return
	}
	buf := make([]byte, 128<<10)
	switch b[0] {
	case 'e':
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	case 's':
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	case 'd':
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
}

func BenchmarkRTT(b *testing.B) {
	benchLinks(b, func(b *testing.B, open func() net.Conn) { benchRTT(b, open()) })
}

func benchRTT(b *testing.B, c net.Conn) {
	defer c.Close()
	mustWrite(b, c, "e")
	var msg [64]byte
	times := make([]time.Duration, 0, 1<<16)
	for b.Loop() {
		start := time.Now()
		if _, err := c.Write(msg[:]); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, msg[:]); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds())/1e3, "p99-µs")
}

func BenchmarkRTTUnderBulk(b *testing.B) {
	benchLinks(b, func(b *testing.B, open func() net.Conn) {
		for range 8 {
			c := open()
			defer c.Close()
			mustWrite(b, c, "s")
			go func() {
				buf := make([]byte, 128<<10)
				for {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(200 * time.Millisecond) // until windows and buffers are full
		benchRTT(b, open())
	})
}

func BenchmarkUp(b *testing.B) {
	benchLinks(b, func(b *testing.B, open func() net.Conn) { benchUp(b, open, 1) })
}

func BenchmarkUp8(b *testing.B) {
	benchLinks(b, func(b *testing.B, open func() net.Conn) { benchUp(b, open, 8) })
}

func benchUp(b *testing.B, open func() net.Conn, flows int) {
	const piece = 128 << 10
	work := make(chan struct{})
	var wg sync.WaitGroup
	for range flows {
		c := open()
		mustWrite(b, c, "s")
		wg.Go(func() {
			defer c.Close()
			buf := make([]byte, piece)
			for range work {
				if _, err := c.Write(buf); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.SetBytes(piece)
	cpu := cpuTime()
	for b.Loop() {
		work <- struct{}{}
	}
	cpu = cpuTime() - cpu
	close(work)
	wg.Wait()
	gigabits := float64(b.N) * piece * 8 / 1e9
	b.ReportMetric(gigabits/b.Elapsed().Seconds(), "Gbit/s")
	b.ReportMetric(cpu.Seconds()*100/gigabits, "cs/Gbit")
}

func BenchmarkDown(b *testing.B) {
	benchLinks(b, func(b *testing.B, open func() net.Conn) {
		c := open()
		defer c.Close()
		mustWrite(b, c, "d")
		buf := make([]byte, 128<<10)
		b.SetBytes(int64(len(buf)))
		cpu := cpuTime()
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		cpu = cpuTime() - cpu
		gigabits := float64(b.N) * float64(len(buf)) * 8 / 1e9
		b.ReportMetric(gigabits/b.Elapsed().Seconds(), "Gbit/s")
		b.ReportMetric(cpu.Seconds()*100/gigabits, "cs/Gbit")
	})
}

func BenchmarkOpenRR(b *testing.B) {
	benchLinks(b, func(b *testing.B, open func() net.Conn) {
		for b.Loop() {
			c := open()
			mustWrite(b, c, "ex")
			mustRead(b, c, "x")
			c.Close()
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "opens/s")
	})
}

// Load is the benchmark's server and client: one static program that runs in a
// pod, in the daemon container's network and on the host.
//
//	load serve PORT
//	load web FILE PORT                 HTTP: what the file was at the start
//	load bulk up|down ADDR SECONDS     prints Mbit/s of one flow
//	load rr ADDR SECONDS               prints the median and 99th percentile of a 64-byte round trip, µs
//	load conn ADDR SECONDS             prints new connections a second, each with one round trip, one after another
//	load conn16 ADDR SECONDS           the same, sixteen at once
//	load soak ADDR SECONDS             opens flows and ends them in every way; prints how many of each
//	load dns NAME SECONDS              prints the median of look-ups of NAME, µs ("%" in NAME: a new name each time)
//	load make DIR                      the files of the volume rows
//	load read DIR                      prints for how long they are read: the large one, stats, the small ones, ms
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		log.Fatal(serve(":" + os.Args[2]))
	}
	if len(os.Args) == 4 && os.Args[1] == "web" {
		log.Fatal(web(os.Args[2], ":"+os.Args[3]))
	}
	if len(os.Args) == 3 && os.Args[1] == "make" {
		exitOn(makeFiles(os.Args[2]))
	}
	if len(os.Args) == 3 && os.Args[1] == "read" {
		exitOn(readFiles(os.Args[2]))
	}
	if len(os.Args) < 4 {
		log.Fatal("usage: load serve PORT | bulk up|down ADDR S | rr ADDR S | conn|conn16 ADDR S | soak ADDR S | dns NAME S")
	}
	secs, err := strconv.ParseFloat(os.Args[len(os.Args)-1], 64)
	if err != nil {
		log.Fatal(err)
	}
	d := time.Duration(secs * float64(time.Second))
	switch os.Args[1] {
	case "bulk":
		err = bulk(os.Args[2], os.Args[3], d)
	case "rr":
		err = rr(os.Args[2], d)
	case "conn":
		err = conns(1, os.Args[2], d)
	case "conn16":
		err = conns(16, os.Args[2], d)
	case "soak":
		err = soak(os.Args[2], d)
	case "dns":
		err = lookup(os.Args[2], d)
	default:
		err = fmt.Errorf("unknown word %q", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// exitOn ends the program.
func exitOn(err error) {
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(0)
}

func web(path, addr string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text) }))
}

// serve does what the first byte of each connection says: e echoes, s swallows
// and tells the count at the end, d sends for ever. Datagrams come back.
func serve(addr string) error {
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			var b [1]byte
			if _, err := io.ReadFull(c, b[:]); err != nil {
				return
			}
			switch b[0] {
			case 'e':
				_, _ = io.Copy(c, c)
			case 's':
				n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
				fmt.Fprintln(c, n)
			case 'd':
				buf := make([]byte, 128<<10)
				for {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}
		}()
	}
}

func open(addr string, mode byte) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte{mode})
	return c, err
}

// warmUp is not counted: windows open and caches fill.
const warmUp = 500 * time.Millisecond

func bulk(dir, addr string, d time.Duration) error {
	mode := map[string]byte{"up": 's', "down": 'd'}[dir]
	c, err := open(addr, mode)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	var bytes int64
	begin := time.Now()
	for time.Since(begin) < warmUp+d {
		if time.Since(begin) < warmUp {
			bytes = 0
		}
		var n int
		if dir == "up" {
			n, err = c.Write(buf)
		} else {
			n, err = c.Read(buf)
		}
		if err != nil {
			return err
		}
		bytes += int64(n)
	}
	fmt.Printf("%.0f\n", float64(bytes)*8/d.Seconds()/1e6)
	return nil
}

func rr(addr string, d time.Duration) error {
	c, err := open(addr, 'e')
	if err != nil {
		return err
	}
	defer c.Close()
	var all []time.Duration
	var b [64]byte
	for begin := time.Now(); time.Since(begin) < warmUp+d; {
		t := time.Now()
		if _, err := c.Write(b[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return err
		}
		if time.Since(begin) > warmUp {
			all = append(all, time.Since(t))
		}
	}
	slices.Sort(all)
	fmt.Println(all[len(all)/2].Microseconds(), all[len(all)*99/100].Microseconds())
	return nil
}

// conns makes connections for d, so many at once.
func conns(atOnce int, addr string, d time.Duration) error {
	var made atomic.Int64
	var all errgroup.Group
	begin := time.Now()
	for range atOnce {
		all.Go(func() error {
			for time.Since(begin) < d {
				if err := conn(addr); err != nil {
					return err
				}
				made.Add(1)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return err
	}
	fmt.Printf("%.0f\n", float64(made.Load())/time.Since(begin).Seconds())
	return nil
}

func conn(addr string) error {
	c, err := open(addr, 'e')
	if err != nil {
		return err
	}
	defer c.Close()
	b := []byte{1}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(c, b)
	return err
}

func lookup(name string, d time.Duration) error {
	var all []time.Duration
	r := &net.Resolver{PreferGo: true}
	begin := time.Now()
	for i := 0; time.Since(begin) < d; i++ {
		n := strings.ReplaceAll(name, "%", strconv.FormatInt(time.Now().UnixNano(), 36)+strconv.Itoa(i))
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		t := time.Now()
		_, err := r.LookupNetIP(ctx, "ip4", n)
		all = append(all, time.Since(t))
		cancel()
		if err != nil && !strings.Contains(name, "%") {
			return err
		}
	}
	slices.Sort(all)
	fmt.Println(all[len(all)/2].Microseconds())
	return nil
}

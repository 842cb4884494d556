package dns

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A thousand queries a second, of names that exist and of others, the cluster's and
// not, cached and not, by UDP and by TCP: each has its own answer, and none is lost.
func TestThousandQueriesASecond(t *testing.T) {
	// So few clients that each query has its answer in time where the machine answers
	// a tenth of them in a second.
	const seconds, rate, clients = 3, 1000, 16
	l := newLab(t)
	ask := []func(i int) (name string, qtype uint16, network, want string){
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("n%d.shop.svc.cluster.local.", i), dns.TypeA, "udp", fmt.Sprintf("10.9.%d.%d", i>>8, i&0xff)
		},
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("N%d.", i), dns.TypeA, "udp", fmt.Sprintf("10.9.%d.%d", i>>8, i&0xff) // a short name, in capitals
		},
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("n%d.shop.", i), dns.TypeA, "tcp", fmt.Sprintf("10.9.%d.%d", i>>8, i&0xff)
		},
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("n%d.example.com.", i), dns.TypeA, "udp", fmt.Sprintf("172.30.%d.%d", i>>8, i&0xff)
		},
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("n%d.shop.svc.cluster.local.", i), dns.TypeAAAA, "udp", "NOERROR" // and no such record
		},
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("none%d.shop.svc.cluster.local.", i), dns.TypeA, "udp", "NXDOMAIN"
		},
		func(i int) (string, uint16, string, string) {
			return fmt.Sprintf("none%d.example.com.", i), dns.TypeA, "udp", "NXDOMAIN"
		},
	}
	due := make(chan int, seconds*rate)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for n := range due {
				name, qtype, network, want := ask[n%len(ask)](rand.IntN(500))
				m := new(dns.Msg)
				m.SetQuestion(name, qtype)
				// Nothing is asked twice: what is lost fails the test.
				r, _, err := (&dns.Client{Net: network, Timeout: time.Minute}).Exchange(m, l.addr)
				if err != nil {
					t.Errorf("%s %s by %s: %v", name, dns.TypeToString[qtype], network, err)
					continue
				}
				if got := short(r); got != want || r.Question[0].Name != name {
					t.Errorf("%s %s by %s: %q, want %q\n%v", name, dns.TypeToString[qtype], network, got, want, r)
				}
			}
		})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	for range seconds * 100 {
		<-tick.C
		for range rate / 100 {
			due <- rand.Int()
		}
	}
	tick.Stop()
	close(due)
	all.Wait()
	if asked := len(l.cluster.seen) + len(l.up.seen); asked >= seconds*rate {
		t.Errorf("%d queries of %d went on: nothing was cached", asked, seconds*rate)
	}
}

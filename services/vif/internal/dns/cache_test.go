package dns

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func answer(t *testing.T, rcode int, records ...string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion("x.example.", dns.TypeA)
	m.Response, m.Rcode = true, rcode
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		if rr.Header().Rrtype == dns.TypeSOA {
			m.Ns = append(m.Ns, rr)
		} else {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

func TestLifetime(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  *dns.Msg
		want time.Duration
	}{
		{"the least TTL", answer(t, 0, "x.example. 20 IN A 1.1.1.1", "x.example. 7 IN A 1.1.1.2"), 7 * time.Second},
		{"no more than the cap", answer(t, 0, "x.example. 3600 IN A 1.1.1.1"), 30 * time.Second},
		{"TTL 0", answer(t, 0, "x.example. 0 IN A 1.1.1.1"), 0},
		{"NXDOMAIN by its SOA", answer(t, dns.RcodeNameError, "example. 30 IN SOA a. b. 1 1 1 1 4"), 4 * time.Second},
		{"NXDOMAIN, SOA's own TTL less", answer(t, dns.RcodeNameError, "example. 3 IN SOA a. b. 1 1 1 1 30"), 3 * time.Second},
		{"NXDOMAIN, capped", answer(t, dns.RcodeNameError, "example. 3600 IN SOA a. b. 1 1 1 1 3600"), 5 * time.Second},
		{"NXDOMAIN, at least", answer(t, dns.RcodeNameError, "example. 0 IN SOA a. b. 1 1 1 1 0"), 2 * time.Second},
		{"NODATA without SOA", answer(t, 0), 2 * time.Second},
		{"SERVFAIL", answer(t, dns.RcodeServerFailure), 0},
		{"REFUSED", answer(t, dns.RcodeRefused), 0},
	} {
		if got := lifetime(tt.msg); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	truncated := answer(t, 0, "x.example. 20 IN A 1.1.1.1")
	truncated.Truncated = true
	if lifetime(truncated) != 0 {
		t.Error("a truncated answer is kept")
	}
}

func TestCache(t *testing.T) {
	now := time.Now()
	c := newCache()
	c.now = func() time.Time { return now }
	k := key{"x.example.", dns.TypeA, false, true}
	c.put(k, answer(t, 0, "x.example. 10 IN A 1.1.1.1"))
	now = now.Add(4 * time.Second)
	m := c.get(k)
	if m == nil || m.Answer[0].Header().Ttl != 6 {
		t.Fatalf("after 4 s: %v", m)
	}
	m.Answer[0].Header().Name = "changed."
	if c.get(k).Answer[0].Header().Name != "x.example." {
		t.Error("what get returns is not a copy")
	}
	if c.get(key{"x.example.", dns.TypeA, false, false}) != nil {
		t.Error("upstream's cache and the cluster's are mixed up")
	}
	now = now.Add(6 * time.Second)
	if c.get(k) != nil {
		t.Error("expired, and still there")
	}
	for i := range maxEntries * 2 {
		c.put(key{fmt.Sprint(i), dns.TypeA, false, true}, answer(t, 0, "x.example. 10 IN A 1.1.1.1"))
	}
	if len(c.by) > maxEntries {
		t.Errorf("%d entries", len(c.by))
	}
}

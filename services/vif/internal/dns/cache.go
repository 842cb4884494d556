package dns

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxPositive = 30 * time.Second // services come and go while one develops
	minNegative = 2 * time.Second
	maxNegative = 5 * time.Second
	maxEntries  = 4096
)

// key is what an answer depends on.
type key struct {
	name    string // lower case
	qtype   uint16
	do      bool // DNSSEC records wanted
	cluster bool // else upstream
}

type entry struct {
	msg    *dns.Msg // never changed
	stored time.Time
	ttl    time.Duration
}

// cache holds answers as long as they say, within bounds of our own.
type cache struct {
	now func() time.Time
	mu  sync.Mutex
	by  map[key]entry
}

func newCache() *cache { return &cache{now: time.Now, by: map[key]entry{}} }

// get returns a copy whose TTLs have gone down by the time it lay here.
func (c *cache) get(k key) *dns.Msg {
	c.mu.Lock()
	e, ok := c.by[k]
	age := c.now().Sub(e.stored)
	if ok && age >= e.ttl {
		delete(c.by, k)
		ok = false
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	m := e.msg.Copy()
	seconds := uint32(age / time.Second)
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, seconds)
			}
		}
	}
	return m
}

func (c *cache) put(k key, m *dns.Msg) {
	ttl := lifetime(m)
	if ttl <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.by) >= maxEntries {
		c.evict()
	}
	c.by[k] = entry{m.Copy(), c.now(), ttl}
}

// evict drops what has expired, and where that is not enough, whatever the map
// yields first.
func (c *cache) evict() {
	now := c.now()
	for k, e := range c.by {
		if now.Sub(e.stored) >= e.ttl {
			delete(c.by, k)
		}
	}
	for k := range c.by {
		if len(c.by) < maxEntries*9/10 {
			return
		}
		delete(c.by, k)
	}
}

func (c *cache) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.by)
}

// lifetime is how long an answer may be kept: the least of its TTLs, for a
// negative one what its SOA says (RFC 2308). Failures and truncated answers are
// not kept.
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated {
		return 0
	}
	switch {
	case m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0:
		least := uint32(maxPositive / time.Second)
		for _, rr := range m.Answer {
			least = min(least, rr.Header().Ttl)
		}
		return time.Duration(least) * time.Second
	case m.Rcode == dns.RcodeSuccess, m.Rcode == dns.RcodeNameError:
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				d := time.Duration(min(soa.Minttl, soa.Hdr.Ttl)) * time.Second
				return min(max(d, minNegative), maxNegative)
			}
		}
		return minNegative
	}
	return 0
}

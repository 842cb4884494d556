package dns

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// bareTimeout bounds the cluster's and upstream's part each for names that only
// may be the cluster's, so that an answer still comes before the client retries.
const bareTimeout = time.Second

// resolve answers one question by its plan. It never returns nil.
func (s *Server) resolve(ctx context.Context, q *dns.Msg) *dns.Msg {
	z, servers := s.zones()
	name := strings.ToLower(q.Question[0].Name)
	p := z.Plan(name)
	p.Cluster = z.asked(p.Cluster)
	switch {
	case p.Loopback:
		return loopback(q)
	case p.None:
		return failure(q, dns.RcodeNameError)
	case p.Cluster == "":
		return s.forward(ctx, q, 0)
	case !p.Upstream:
		r, err := s.ask(ctx, q, z, p.Cluster, servers, clusterTimeout)
		if err != nil {
			s.log.Debug("cluster name not resolved", "name", name, "err", err)
			return failure(q, dns.RcodeServerFailure)
		}
		return rename(q, r, p.Cluster)
	}
	r, err := s.ask(ctx, q, z, p.Cluster, servers, bareTimeout)
	if err == nil && r.Rcode == dns.RcodeSuccess {
		return rename(q, r, p.Cluster)
	}
	known := err == nil && r.Rcode == dns.RcodeNameError
	if known && labels(strings.TrimSuffix(name, ".")) == 1 {
		// The cluster says that there is none, and beyond the container's own
		// servers nobody knows single labels: where those fail, its word stands.
		up := s.forward(ctx, q, bareTimeout)
		if up.Rcode == dns.RcodeSuccess || up.Rcode == dns.RcodeNameError {
			return up
		}
		none := failure(q, dns.RcodeNameError)
		none.Ns = r.Ns
		return none
	}
	return s.forward(ctx, q, 0)
}

// ask asks the cluster for name, which may be longer than the client's.
func (s *Server) ask(ctx context.Context, q *dns.Msg, z Zones, name string, servers []netip.Addr, limit time.Duration) (*dns.Msg, error) {
	r, err := s.cached(ctx, q, name, true, func(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return s.cluster.exchange(ctx, servers, m)
	})
	if err == nil {
		z.answered(r)
	}
	return r, err
}

// forward asks upstream, and passes on what it says, failures included. Where
// it says nothing the answer is REFUSED, which to resolvers means what they
// would see without us: that this server is of no help.
func (s *Server) forward(ctx context.Context, q *dns.Msg, limit time.Duration) *dns.Msg {
	r, err := s.cached(ctx, q, q.Question[0].Name, false, func(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return s.upstream.exchange(ctx, m)
	})
	if err != nil {
		s.log.Debug("name not resolved upstream", "name", q.Question[0].Name, "err", err)
		return failure(q, dns.RcodeRefused)
	}
	return rename(q, r, q.Question[0].Name)
}

// cached answers from the cache, or asks once for all who want to know.
func (s *Server) cached(ctx context.Context, q *dns.Msg, name string, cluster bool, ask func(context.Context, *dns.Msg) (*dns.Msg, error)) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.Question = []dns.Question{{Name: name, Qtype: q.Question[0].Qtype, Qclass: q.Question[0].Qclass}}
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData
	k := key{strings.ToLower(name), q.Question[0].Qtype, false, cluster}
	if opt := q.IsEdns0(); opt != nil {
		k.do = opt.Do()
	}
	m.SetEdns0(udpSize, k.do)
	if q.Question[0].Qclass != dns.ClassINET || q.CheckingDisabled {
		return ask(ctx, m)
	}
	if r := s.cache.get(k); r != nil {
		return r, nil
	}
	flight := k.name + "/" + strconv.Itoa(int(k.qtype)) + "/" + strconv.FormatBool(k.do) + "/" + strconv.FormatBool(cluster)
	epoch := s.epoch.Load()
	ch := s.flights.DoChan(flight, func() (any, error) {
		r, err := ask(s.ctx, m) // for all who wait, whoever came first
		if err == nil && s.epoch.Load() == epoch {
			s.cache.put(k, r)
		}
		return r, err
	})
	select {
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*dns.Msg).Copy(), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// rename makes r the answer to q, which asked for the same by a shorter name or
// in other letters. A shorter name is an alias of the longer one.
func rename(q, r *dns.Msg, asked string) *dns.Msg {
	want := q.Question[0].Name
	out := new(dns.Msg)
	out.SetReply(q)
	out.Rcode, out.Authoritative, out.AuthenticatedData = r.Rcode, r.Authoritative, r.AuthenticatedData
	out.Truncated, out.RecursionAvailable = r.Truncated, true
	out.Ns = r.Ns
	for _, rr := range r.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			out.Extra = append(out.Extra, rr)
		}
	}
	if strings.EqualFold(want, asked) {
		for _, rr := range r.Answer { // the case that the client chose (RFC 4343, and a guard against forgery)
			if strings.EqualFold(rr.Header().Name, want) {
				rr.Header().Name = want
			}
		}
		out.Answer = r.Answer
		return out
	}
	if len(r.Answer) > 0 {
		ttl := r.Answer[0].Header().Ttl
		out.Answer = append(out.Answer, &dns.CNAME{
			Hdr:    dns.RR_Header{Name: want, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl},
			Target: asked,
		})
	}
	out.Answer = append(out.Answer, r.Answer...)
	return out
}

func failure(q *dns.Msg, rcode int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, rcode)
	m.RecursionAvailable = true
	return m
}

func loopback(q *dns.Msg) *dns.Msg {
	m := failure(q, dns.RcodeSuccess)
	hdr := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 3600}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: net.IPv4(127, 0, 0, 1)}}
	case dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr, AAAA: net.IPv6loopback}}
	}
	return m
}

// Package farside is the far end of a tunnel for tests: it dials for real, as
// the manager does, after translating the cluster's addresses into those of
// servers that the test runs.
package farside

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"berth.dev/tunnel"
)

// Far answers requests on a session.
type Far struct {
	// Translate gives the address to dial in the place of a header's, or says
	// with which code to refuse it.
	Translate func(h tunnel.Header) (netip.AddrPort, tunnel.Code)
	// Alive says whether a destination answers echo requests. Nil: none.
	Alive func(a netip.Addr) bool
	// Silent makes a destination swallow requests without an answer.
	Silent func(h tunnel.Header) bool
	// Itself makes the far side the echo server, without a socket, as for thousands
	// of connections.
	Itself func(h tunnel.Header) bool
}

// Pair is a session and its far end over a TCP connection on loopback.
func Pair(cfg tunnel.Config) (near, far *tunnel.Session, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	b, err := l.Accept()
	if err != nil {
		return nil, nil, err
	}
	return tunnel.NewSession(a, true, cfg), tunnel.NewSession(b, false, cfg), nil
}

// Serve answers until the session ends, and returns when every stream has ended.
func (f *Far) Serve(ctx context.Context, s *tunnel.Session) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		r, err := s.Accept(ctx)
		if err != nil {
			return
		}
		wg.Go(func() { f.serve(ctx, r) })
	}
}

func (f *Far) serve(ctx context.Context, r *tunnel.Request) {
	if f.Silent != nil && f.Silent(r.Header) {
		<-ctx.Done()
		r.Refuse(tunnel.CodeTimeout, "")
		return
	}
	if r.Header.Kind == tunnel.KindEcho {
		f.echo(r)
		return
	}
	if f.Itself != nil && f.Itself(r.Header) {
		if st, err := r.Accept(); err == nil {
			_, _ = io.Copy(st, st)
			_ = st.Close()
		}
		return
	}
	dst, code := f.Translate(r.Header)
	if code != 0 {
		r.Refuse(code, "")
		return
	}
	network := "tcp"
	if r.Header.Kind == tunnel.KindUDP {
		network = "udp"
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, network, dst.String())
	if err != nil {
		r.Refuse(tunnel.CodeOf(err), err.Error())
		return
	}
	st, err := r.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	if network == "udp" {
		_, _, _ = tunnel.RelayPackets(st, conn, time.Minute)
		return
	}
	_, _, _ = tunnel.Relay(st, conn.(*net.TCPConn))
}

func (f *Far) echo(r *tunnel.Request) {
	st, err := r.Accept()
	if err != nil {
		return
	}
	defer st.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := st.ReadPacket(buf)
		if err != nil {
			return
		}
		if f.Alive != nil && f.Alive(r.Header.Dst.Addr()) {
			_ = st.WritePacket(buf[:n])
		}
	}
}

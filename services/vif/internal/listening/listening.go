// Package listening tells whether somebody listens on a port, without talking to
// whoever does.
//
// For addresses of the own network namespace it reads the kernel's tables of
// sockets (/proc/net/tcp and its kin, proc(5)): a server that starts is not
// troubled by connections that say nothing, and UDP can be told as well. Other
// addresses are another machine's (a process on the host, for one): a TCP
// connection is made and closed; of UDP there is nothing to tell there, and it
// counts as listening.
package listening

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// Port is one to look for.
type Port struct {
	Number uint16
	UDP    bool
	// Forwarded: a forwarder takes connections in the place of who is to listen,
	// and hangs up where nobody does. It is tried; of UDP there is nothing to tell.
	Forwarded bool
}

// dialTime is for another machine to answer.
const dialTime = time.Second

// Missing are those of ports on which nobody listens at addr.
func Missing(ctx context.Context, addr netip.Addr, ports []Port) ([]Port, error) {
	own, err := isOwn(addr)
	if err != nil {
		return nil, err
	}
	var missing []Port
	for _, p := range ports {
		ok := p.UDP
		if p.Forwarded {
			ok = ok || stays(ctx, netip.AddrPortFrom(addr, p.Number))
		} else if own {
			ok, err = inTables("/proc/net", addr, p)
		} else if !p.UDP {
			ok = dials(ctx, netip.AddrPortFrom(addr, p.Number))
		}
		if err != nil {
			return nil, err
		}
		if !ok {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

func isOwn(addr netip.Addr) (bool, error) {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false, fmt.Errorf("list own addresses: %w", err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if b, ok := netip.AddrFromSlice(n.IP); ok && b.Unmap() == addr.Unmap() {
				return true, nil
			}
		}
	}
	return false, nil
}

// hangUpTime is how long a forwarder may take to find that nobody listens.
const hangUpTime = 200 * time.Millisecond

// stays reports whether a connection is not hung up at once.
func stays(ctx context.Context, to netip.AddrPort) bool {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(hangUpTime))
	_, err = conn.Read(make([]byte, 1))
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

func dials(ctx context.Context, to netip.AddrPort) bool {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// tcpListen is TCP_LISTEN of the kernel's include/net/tcp_states.h.
const tcpListen = "0A"

// inTables reports whether a socket in the tables of dir would get what is sent
// to addr. Tables of a protocol that the kernel does not have are not there.
func inTables(dir string, addr netip.Addr, p Port) (bool, error) {
	name := "/tcp"
	if p.UDP {
		name = "/udp"
	}
	for _, six := range []string{"", "6"} {
		f, err := os.Open(dir + name + six)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read the table of sockets: %w", err)
		}
		s := bufio.NewScanner(f)
		found := false
		for s.Scan() && !found {
			at, state, ok := parse(s.Text())
			found = ok && (p.UDP || state == tcpListen) && at.Port() == p.Number && gets(at.Addr(), addr)
		}
		err = s.Err()
		_ = f.Close()
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// gets reports whether a socket bound to at gets what is sent to addr. One that
// is bound to all of IPv6 has IPv4 too, unless it said otherwise, which the
// tables do not tell.
func gets(at, addr netip.Addr) bool {
	at, addr = at.Unmap(), addr.Unmap()
	switch {
	case at == addr:
		return true
	case at == netip.IPv6Unspecified():
		return true
	}
	return at == netip.IPv4Unspecified() && addr.Is4()
}

// parse reads a line: "0: 0100007F:1F90 00000000:0000 0A …". Addresses are
// written as 32-bit words in the machine's byte order, which is little-endian
// wherever Berth is built for.
func parse(line string) (at netip.AddrPort, state string, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 {
		return at, "", false
	}
	host, port, _ := strings.Cut(f[1], ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return at, "", false
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	addr, _ := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return at, "", false
	}
	return netip.AddrPortFrom(addr, uint16(n)), f[3], true
}

// Package listening finds out, from the kernel's tables in /proc/net (proc(5)),
// at which address of this network namespace a port is listened on.
//
// The tables are read anew each time: a connection is rare beside the bytes
// that it carries, and an answer that was kept would be one that is wrong.
package listening

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"berth.dev/services/forwarder/internal/port"
)

// Table is where the kernel's tables are; /proc/net but in tests.
type Table string

// Default is this network namespace's.
const Default Table = "/proc/net"

// states of a socket that takes what comes: TCP_LISTEN, and for UDP the state of
// one that is not connected (net/tcp_states.h).
var states = map[string]string{"tcp": "0A", "udp": "07"}

// At returns the addresses at which p is listened on: none if it is not.
func (t Table) At(p port.Port) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, file := range []string{p.Protocol, p.Protocol + "6"} {
		f, err := os.Open(string(t) + "/" + file)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("read the sockets of this network: %w", err)
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if addr, n, ok := entry(lines.Text(), states[p.Protocol]); ok && n == p.Number {
				all = append(all, addr)
			}
		}
		err = lines.Err()
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read the sockets of this network: %w", err)
		}
	}
	return all, nil
}

// Target is the address by which to reach what listens on p: loopback wherever
// that will do. Without a listener it is 127.0.0.1, which then refuses.
func (t Table) Target(p port.Port) (netip.AddrPort, error) {
	all, err := t.At(p)
	best, rank := netip.AddrFrom4([4]byte{127, 0, 0, 1}), 5
	for _, a := range all {
		to, r := a, 4
		switch {
		case a == netip.IPv4Unspecified(), a == best:
			to, r = netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1
		case a == netip.IPv6Unspecified(), a == netip.IPv6Loopback():
			to, r = netip.IPv6Loopback(), 2
		case a.IsLoopback():
			r = 3
		}
		if r < rank {
			best, rank = to, r
		}
	}
	return netip.AddrPortFrom(best, p.Number), err
}

// entry reads a line of a table, as in
//
//	0: 0100007F:1F90 00000000:0000 0A …
//
// whose addresses are words in the byte order of the machine.
func entry(line, state string) (netip.Addr, uint16, bool) {
	f := strings.Fields(line)
	if len(f) < 4 || f[3] != state {
		return netip.Addr{}, 0, false
	}
	host, num, ok := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(num, 16, 16)
	raw, herr := hex.DecodeString(host)
	if !ok || err != nil || herr != nil || len(raw)%4 != 0 {
		return netip.Addr{}, 0, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	return a.Unmap(), uint16(n), ok
}

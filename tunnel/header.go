package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Kind says what a stream carries. Its value crosses the wire.
type Kind uint8

const (
	// KindTCP is a reliable byte stream with half-close and reset. The far
	// side dials Header.Dst, or the engagement's handler.
	KindTCP Kind = 1
	// KindUDP carries datagrams of one UDP flow; boundaries are kept, and a
	// datagram is dropped rather than held back.
	KindUDP Kind = 2
	// KindEcho carries ICMP echo requests one way and replies the other. Each
	// packet is the sequence number (2 bytes, big endian) and the payload.
	KindEcho Kind = 3
	// KindRPC is a call named by Header.Method; see Call and ServeRPC.
	KindRPC Kind = 4
	// KindFiles is a reliable byte stream like KindTCP to the file server of
	// the container that Header.Engagement engages; Dst is zero. It carries
	// the protocol of package files. What the manager tells the agent of it
	// (lease.FilesAccess) is in Header.Method.
	KindFiles Kind = 5
)

// String returns the name used in logs.
func (k Kind) String() string {
	switch k {
	case KindTCP:
		return "tcp"
	case KindUDP:
		return "udp"
	case KindEcho:
		return "echo"
	case KindRPC:
		return "rpc"
	case KindFiles:
		return "files"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Packets reports whether streams of this kind carry datagrams.
func (k Kind) Packets() bool { return k == KindUDP || k == KindEcho }

// Header says what the opener of a stream wants of the other end. It rides in
// the OPEN frame.
type Header struct {
	Kind Kind
	// Dst is what the far side dials. With an Engagement, only the port
	// counts, and it is the container port. A zero Dst is legal for KindRPC.
	Dst netip.AddrPort
	// Src is the flow's origin as the opener saw it, for logs and for
	// handlers that want the caller's address. It may be zero.
	Src netip.AddrPort
	// Engagement names the engagement whose handler (or workload) is meant;
	// empty means Dst is an ordinary address. At most 255 bytes.
	Engagement string
	// Method names the call of a KindRPC stream; see KindFiles too. At most
	// 255 bytes.
	Method string
}

// String returns a short form for logs.
func (h Header) String() string {
	switch {
	case h.Kind == KindRPC:
		return "rpc " + h.Method
	case h.Kind == KindFiles:
		return "files " + h.Engagement
	case h.Engagement != "":
		return fmt.Sprintf("%v %s port %d", h.Kind, h.Engagement, h.Dst.Port())
	case h.Kind == KindEcho:
		return fmt.Sprintf("echo %v", h.Dst.Addr())
	}
	return fmt.Sprintf("%v %v", h.Kind, h.Dst)
}

var errHeader = errors.New("malformed stream header")

// appendHeader encodes h:
//
//	kind(1) addrport(dst) addrport(src) len(1)+engagement len(1)+method
//
// where addrport is 1 byte of address length (0, 4 or 16), the address, and
// 2 bytes of port.
func appendHeader(b []byte, h Header) ([]byte, error) {
	switch h.Kind {
	case KindTCP, KindUDP, KindEcho, KindRPC, KindFiles:
	default:
		return nil, fmt.Errorf("encode stream header: unknown %v", h.Kind)
	}
	if len(h.Engagement) > 255 || len(h.Method) > 255 {
		return nil, errors.New("encode stream header: engagement or method longer than 255 bytes")
	}
	b = append(b, byte(h.Kind))
	b = appendAddrPort(b, h.Dst)
	b = appendAddrPort(b, h.Src)
	b = append(b, byte(len(h.Engagement)))
	b = append(b, h.Engagement...)
	b = append(b, byte(len(h.Method)))
	return append(b, h.Method...), nil
}

// appendAddrPort drops IPv6 zones: they mean nothing on the other machine.
func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr()
	b = append(b, byte(ip.BitLen()/8))
	b = append(b, ip.WithZone("").AsSlice()...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// parseHeader decodes what appendHeader wrote; trailing bytes are an error.
func parseHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < 1 {
		return h, errHeader
	}
	h.Kind = Kind(b[0])
	if h.Kind < KindTCP || h.Kind > KindFiles {
		return h, fmt.Errorf("%w: unknown %v", errHeader, h.Kind)
	}
	var err error
	if h.Dst, b, err = parseAddrPort(b[1:]); err != nil {
		return h, err
	}
	if h.Src, b, err = parseAddrPort(b); err != nil {
		return h, err
	}
	if h.Engagement, b, err = parseString(b); err != nil {
		return h, err
	}
	if h.Method, b, err = parseString(b); err != nil {
		return h, err
	}
	if len(b) != 0 {
		return h, fmt.Errorf("%w: %d bytes too many", errHeader, len(b))
	}
	return h, nil
}

func parseAddrPort(b []byte) (netip.AddrPort, []byte, error) {
	if len(b) < 1 {
		return netip.AddrPort{}, nil, errHeader
	}
	n := int(b[0])
	if (n != 0 && n != 4 && n != 16) || len(b) < 1+n+2 {
		return netip.AddrPort{}, nil, errHeader
	}
	ip, _ := netip.AddrFromSlice(b[1 : 1+n]) // zero Addr when n is 0
	port := binary.BigEndian.Uint16(b[1+n:])
	return netip.AddrPortFrom(ip, port), b[1+n+2:], nil
}

func parseString(b []byte) (string, []byte, error) {
	if len(b) < 1 || len(b) < 1+int(b[0]) {
		return "", nil, errHeader
	}
	n := int(b[0])
	return string(b[1 : 1+n]), b[1+n:], nil
}

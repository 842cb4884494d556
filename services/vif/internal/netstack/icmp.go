package netstack

import (
	"net/netip"

	"berth.dev/services/vif/internal/tun"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// unreachable is why a packet cannot be delivered, in the terms of either ICMP.
type unreachable int

const (
	hostUnreachable unreachable = iota
	portUnreachable
	prohibited
)

func (u unreachable) v4() header.ICMPv4Code {
	switch u {
	case portUnreachable:
		return header.ICMPv4PortUnreachable
	case prohibited:
		return header.ICMPv4AdminProhibited
	}
	return header.ICMPv4HostUnreachable
}

func (u unreachable) v6() header.ICMPv6Code {
	switch u {
	case portUnreachable:
		return header.ICMPv6PortUnreachable
	case prohibited:
		return header.ICMPv6Prohibited
	}
	return header.ICMPv6AddressUnreachable
}

// ipPacket puts an IP header in front of a payload.
func ipPacket(src, dst netip.Addr, proto tcpip.TransportProtocolNumber, payload []byte) []byte {
	if src.Is4() {
		b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload))
		header.IPv4(b).Encode(&header.IPv4Fields{
			TotalLength: uint16(len(b) + len(payload)), TTL: 64, Protocol: uint8(proto),
			SrcAddr: address(src), DstAddr: address(dst),
		})
		header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
		return append(b, payload...)
	}
	b := make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(payload))
	header.IPv6(b).Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(payload)), TransportProtocol: proto, HopLimit: 64,
		SrcAddr: address(src), DstAddr: address(dst),
	})
	return append(b, payload...)
}

// unreachablePacket tells src that what it sent to dst did not arrive. quote is
// the packet it sent, or as much as identifies the flow: the IP header and the
// first 8 bytes behind it (RFC 792).
func unreachablePacket(src, dst netip.Addr, why unreachable, quote []byte) []byte {
	if src.Is4() {
		b := make([]byte, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(quote))
		h := header.ICMPv4(b)
		h.SetType(header.ICMPv4DstUnreachable)
		h.SetCode(why.v4())
		b = append(b, quote...)
		header.ICMPv4(b).SetChecksum(^checksum.Checksum(b, 0))
		return ipPacket(dst, src, header.ICMPv4ProtocolNumber, b)
	}
	b := make([]byte, header.ICMPv6DstUnreachableMinimumSize, header.ICMPv6DstUnreachableMinimumSize+len(quote))
	h := header.ICMPv6(b)
	h.SetType(header.ICMPv6DstUnreachable)
	h.SetCode(why.v6())
	return ipPacket(dst, src, header.ICMPv6ProtocolNumber, sumICMPv6(append(b, quote...), dst, src))
}

// echoReply answers an echo request that src had sent to dst.
func echoReply(src, dst netip.Addr, id, seq uint16, payload []byte) []byte {
	if src.Is4() {
		b := make([]byte, header.ICMPv4MinimumSize, header.ICMPv4MinimumSize+len(payload))
		h := header.ICMPv4(b)
		h.SetType(header.ICMPv4EchoReply)
		h.SetIdent(id)
		h.SetSequence(seq)
		b = append(b, payload...)
		header.ICMPv4(b).SetChecksum(^checksum.Checksum(b, 0))
		return ipPacket(dst, src, header.ICMPv4ProtocolNumber, b)
	}
	b := make([]byte, header.ICMPv6MinimumSize, header.ICMPv6MinimumSize+len(payload))
	h := header.ICMPv6(b)
	h.SetType(header.ICMPv6EchoReply)
	h.SetIdent(id)
	h.SetSequence(seq)
	return ipPacket(dst, src, header.ICMPv6ProtocolNumber, sumICMPv6(append(b, payload...), dst, src))
}

// sumICMPv6 fills in the checksum, which unlike ICMPv4's covers the addresses.
func sumICMPv6(b []byte, from, to netip.Addr) []byte {
	h := header.ICMPv6(b)
	h.SetChecksum(0)
	h.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: h, Src: address(from), Dst: address(to)}))
	return b
}

// quote is what a transport's first packet from src to dst looked like, as far
// as the kernel needs it to find the socket: addresses, ports and, for TCP, the
// sequence number.
func quote(proto tcpip.TransportProtocolNumber, src, dst netip.AddrPort, word uint32) []byte {
	return ipPacket(src.Addr(), dst.Addr(), proto, []byte{
		byte(src.Port() >> 8), byte(src.Port()), byte(dst.Port() >> 8), byte(dst.Port()),
		byte(word >> 24), byte(word >> 16), byte(word >> 8), byte(word),
	})
}

// inject writes a packet of our own to the TUN. Losing it is harmless: it tells
// of a loss.
func (s *Stack) inject(packet []byte) {
	if err := s.link.dev.Write(tun.Header{}, packet); err != nil {
		s.log.Debug("packet lost", "err", err)
	}
}

func address(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	ip, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(ip, port)
}

package tun

import "encoding/binary"

// The values of virtio_net_hdr that a TUN uses
// (https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html, 5.1.6).
const (
	// FlagNeedsChecksum: the transport checksum holds the pseudo-header's sum
	// only, and covers what begins at ChecksumStart.
	FlagNeedsChecksum = 1

	SegmentNone = 0 // the packet is one packet
	SegmentTCP4 = 1 // to be cut into TCP segments of SegmentSize
	SegmentTCP6 = 4
)

// headerSize is that of the original virtio_net_hdr, the default of a TUN.
const headerSize = 10

// Header precedes every packet on a TUN that was opened with IFF_VNET_HDR, in
// the host's byte order.
type Header struct {
	Flags          uint8
	Segment        uint8
	HeaderLength   uint16 // of IP and transport header together
	SegmentSize    uint16
	ChecksumStart  uint16
	ChecksumOffset uint16 // from ChecksumStart
}

func (h *Header) put(b *[headerSize]byte) {
	b[0], b[1] = h.Flags, h.Segment
	binary.NativeEndian.PutUint16(b[2:], h.HeaderLength)
	binary.NativeEndian.PutUint16(b[4:], h.SegmentSize)
	binary.NativeEndian.PutUint16(b[6:], h.ChecksumStart)
	binary.NativeEndian.PutUint16(b[8:], h.ChecksumOffset)
}

func (h *Header) parse(b *[headerSize]byte) {
	h.Flags, h.Segment = b[0], b[1]
	h.HeaderLength = binary.NativeEndian.Uint16(b[2:])
	h.SegmentSize = binary.NativeEndian.Uint16(b[4:])
	h.ChecksumStart = binary.NativeEndian.Uint16(b[6:])
	h.ChecksumOffset = binary.NativeEndian.Uint16(b[8:])
}

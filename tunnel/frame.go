package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A frame is 8 bytes of header and a payload:
//
//	type(1) length(3) stream(4) payload(length)
//
// all big endian. The top bit of the type, on OPEN and DATA, says that these
// are the sender's last bytes on the stream (FIN).
const (
	frameHeaderSize = 8
	// maxPayload makes the largest frame exactly 64 KiB: one pooled buffer,
	// and four full TLS records.
	maxPayload = 64<<10 - frameHeaderSize
	// maxPacket is the largest UDP payload over IPv4.
	maxPacket  = 65507
	maxMessage = 1024 // of REFUSE and GOAWAY, in bytes
	maxEarly   = 16 << 10
	maxHeader  = 1 << 10 // of an encoded Header; the longest has 551
	maxCredit  = 1<<31 - 1
)

type frameType uint8

const (
	frameOpen   frameType = 1  // window(4) headerlen(2) header early-data
	frameAccept frameType = 2  // window(4)
	frameRefuse frameType = 3  // code(1) message
	frameData   frameType = 4  // bytes, counted against the window
	framePacket frameType = 5  // one datagram, not counted
	frameWindow frameType = 6  // credit(4) more bytes allowed
	frameReset  frameType = 7  // code(1): both directions are dead
	frameStop   frameType = 8  // code(1): sender will not read any more
	framePing   frameType = 9  // opaque(8)
	framePong   frameType = 10 // opaque(8), as in the ping
	frameGoAway frameType = 11 // code(1) message: the session is over

	finBit = 0x80
)

// The preface opens each direction of a session.
const (
	prefaceMagic = "BERTHMX"
	muxVersion   = 1
	prefaceSize  = len(prefaceMagic) + 1
)

// ErrProtocol is matched by every error about what the peer should not have
// sent. Such an error ends the session.
var ErrProtocol = errors.New("tunnel protocol error")

func protocolErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// VersionError says that the two ends speak different versions.
type VersionError struct {
	What          string // "mux" or "protocol"
	Local, Remote int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("tunnel %s version mismatch: this end speaks version %d, the far side version %d", e.What, e.Local, e.Remote)
}

func appendPreface(b []byte) []byte {
	return append(append(b, prefaceMagic...), muxVersion)
}

func parsePreface(b []byte) error {
	if len(b) != prefaceSize || string(b[:len(prefaceMagic)]) != prefaceMagic {
		return protocolErrorf("the far side is not a Berth tunnel (preface %q)", b)
	}
	if v := b[len(prefaceMagic)]; v != muxVersion {
		return &VersionError{What: "mux", Local: muxVersion, Remote: int(v)}
	}
	return nil
}

type frameHeader struct {
	typ    frameType
	fin    bool
	length int
	id     uint32
}

func putFrameHeader(b []byte, t frameType, fin bool, length int, id uint32) {
	v := uint32(t)
	if fin {
		v |= finBit
	}
	binary.BigEndian.PutUint32(b, v<<24|uint32(length))
	binary.BigEndian.PutUint32(b[4:], id)
}

func appendFrame(b []byte, t frameType, fin bool, id uint32, payload ...byte) []byte {
	var h [frameHeaderSize]byte
	putFrameHeader(h[:], t, fin, len(payload), id)
	return append(append(b, h[:]...), payload...)
}

func appendFrameUint32(b []byte, t frameType, id uint32, v uint32) []byte {
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], v)
	return appendFrame(b, t, false, id, p[:]...)
}

// appendMessage encodes REFUSE and GOAWAY; a long message is cut.
func appendMessage(b []byte, t frameType, id uint32, code Code, msg string) []byte {
	msg = msg[:min(len(msg), maxMessage)]
	return appendFrame(b, t, false, id, append([]byte{byte(code)}, msg...)...)
}

// parseFrameHeader checks all that a header alone can tell.
func parseFrameHeader(b []byte) (frameHeader, error) {
	v := binary.BigEndian.Uint32(b)
	h := frameHeader{
		typ:    frameType(v >> 24 &^ finBit),
		fin:    v>>24&finBit != 0,
		length: int(v & 0xffffff),
		id:     binary.BigEndian.Uint32(b[4:]),
	}
	lo, hi := 0, 0
	switch h.typ {
	case frameOpen:
		lo, hi = 6, 6+maxHeader+maxEarly
	case frameAccept, frameWindow:
		lo, hi = 4, 4
	case frameReset, frameStop:
		lo, hi = 1, 1
	case frameRefuse, frameGoAway:
		lo, hi = 1, 1+maxMessage
	case framePing, framePong:
		lo, hi = 8, 8
	case frameData:
		hi = maxPayload
	case framePacket:
		hi = maxPacket
	default:
		return h, protocolErrorf("unknown frame type %d", h.typ)
	}
	if h.length < lo || h.length > hi {
		return h, protocolErrorf("frame type %d with %d bytes", h.typ, h.length)
	}
	ofSession := h.typ >= framePing
	if ofSession != (h.id == 0) {
		return h, protocolErrorf("frame type %d on stream %d", h.typ, h.id)
	}
	if h.fin && h.typ != frameOpen && h.typ != frameData {
		return h, protocolErrorf("frame type %d with FIN", h.typ)
	}
	return h, nil
}

// appendOpen encodes an OPEN frame; early rides along, outside ACCEPT's wait
// but inside the window.
func appendOpen(b []byte, id uint32, window int, h Header, early []byte, fin bool) ([]byte, error) {
	p := make([]byte, 6, 64+len(early))
	p, err := appendHeader(p, h)
	if err != nil {
		return b, err
	}
	binary.BigEndian.PutUint32(p, uint32(window))
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-6))
	p = append(p, early...)
	return appendFrame(b, frameOpen, fin, id, p...), nil
}

// parseOpen decodes an OPEN payload; early aliases b.
func parseOpen(b []byte) (window int, h Header, early []byte, err error) {
	if len(b) < 6 {
		return 0, h, nil, protocolErrorf("short OPEN")
	}
	window, err = parseCredit(b)
	if err != nil {
		return 0, h, nil, err
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < 6+n {
		return 0, h, nil, protocolErrorf("short OPEN")
	}
	early = b[6+n:]
	if len(early) > maxEarly {
		return 0, h, nil, protocolErrorf("%d bytes of early data", len(early))
	}
	h, err = parseHeader(b[6 : 6+n])
	if err != nil {
		return 0, h, nil, protocolErrorf("OPEN: %w", err)
	}
	return window, h, early, nil
}

func parseCredit(b []byte) (int, error) {
	v := binary.BigEndian.Uint32(b)
	if v > maxCredit {
		return 0, protocolErrorf("credit of %d bytes", v)
	}
	return int(v), nil
}

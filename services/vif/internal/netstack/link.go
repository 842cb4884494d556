package netstack

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"berth.dev/services/vif/internal/tun"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// Most packets (acknowledgements, small requests) fit into the first
	// buffer; bulk data spills into the second.
	smallView = 2 << 10
	bigView   = 64 << 10
	// maxSegment is the most that one packet may carry, headers left aside.
	maxSegment = 65535 - 120
)

// link is netstack's link endpoint on the TUN. Packets of any length pass whole
// in both directions; TCP's checksums are left to the kernel, which computes none
// for what never leaves the machine.
type link struct {
	dev *tun.Device
	log *slog.Logger
	// intercept takes a packet before netstack sees it, if it returns true. It
	// must not keep the slices.
	intercept func(head, rest []byte) bool
	spawn     func(func(context.Context)) bool // Stack.spawn

	mu   sync.Mutex
	disp stack.NetworkDispatcher
}

func (l *link) MTU() uint32                             { return uint32(l.dev.MTU()) }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) GSOMaxSize() uint32                      { return maxSegment }
func (l *link) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }

// Not CapabilityTXChecksumOffload, which concerns all but TCP with GSO: a datagram
// that needs fragments has to have its checksum before it is cut.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disp = d
}

func (l *link) IsAttached() bool { return l.dispatcher() != nil }

func (l *link) dispatcher() stack.NetworkDispatcher {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.disp
}

// read brings packets to netstack until the device is closed.
func (l *link) read(ctx context.Context) error {
	r := l.dev.NewReader()
	small, big := buffer.NewViewSize(smallView), buffer.NewViewSize(bigView)
	defer func() { small.Release(); big.Release() }()
	for {
		var h tun.Header
		n, err := r.Read(&h, small.AsSlice(), big.AsSlice())
		if err != nil {
			if errors.Is(err, os.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			return err
		}
		if n < header.IPv4MinimumSize {
			continue
		}
		head, rest := small.AsSlice()[:min(n, smallView)], big.AsSlice()[:max(0, n-smallView)]
		if l.intercept(head, rest) {
			continue
		}
		proto := ipv4.ProtocolNumber
		if head[0]>>4 == 6 {
			proto = ipv6.ProtocolNumber
		}
		small.CapLength(len(head))
		payload := buffer.MakeWithView(small)
		small = buffer.NewViewSize(smallView)
		switch {
		case len(rest) > bigView/4:
			big.CapLength(len(rest))
			_ = payload.Append(big) // fails for a nil view only
			big = buffer.NewViewSize(bigView)
		case len(rest) > 0:
			// What nobody reads would hold 64 KiB for each packet otherwise.
			_ = payload.Append(buffer.NewViewWithData(rest))
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: payload})
		pkt.RXChecksumValidated = true
		if d := l.dispatcher(); d != nil {
			d.DeliverNetworkPacket(proto, pkt)
		}
		pkt.DecRef()
	}
}

// WritePackets implements stack.LinkWriter. A packet that the kernel does not
// take is lost, as on any link.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, pkt := range list.AsSlice() {
		if synAck(pkt) {
			l.writeLater(pkt)
		} else if err := l.write(pkt); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return n, &tcpip.ErrClosedForSend{}
			}
			l.log.Debug("packet lost", "err", err)
		}
		n++
	}
	return n, nil
}

// synAck says that pkt accepts a connection.
func synAck(pkt *stack.PacketBuffer) bool {
	const both = header.TCPFlagSyn | header.TCPFlagAck
	h := header.TCP(pkt.TransportHeader().Slice())
	return pkt.TransportProtocolNumber == header.TCPProtocolNumber && len(h) >= header.TCPMinimumSize && h.Flags()&both == both
}

// writeLater writes a SYN-ACK once netstack has let go of its endpoint. The kernel
// answers it within the write, and netstack tries again and again to have the endpoint
// for that answer, on a processor of its own: for as long as a busy machine does not let
// the writer go on, half a millisecond of each connection.
func (l *link) writeLater(pkt *stack.PacketBuffer) {
	pkt.IncRef()
	if !l.spawn(func(context.Context) {
		defer pkt.DecRef()
		if err := l.write(pkt); err != nil {
			l.log.Debug("packet lost", "err", err)
		}
	}) {
		pkt.DecRef()
	}
}

// write hands a packet to the kernel. Of TCP, netstack leaves the checksum to it, and
// the cutting of what is longer than a segment; of all else the checksum is there.
func (l *link) write(pkt *stack.PacketBuffer) error {
	var h tun.Header
	if g := pkt.GSOOptions; g.Type != stack.GSONone && g.NeedsCsum {
		network, transport := len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
		h = tun.Header{
			Flags:          tun.FlagNeedsChecksum,
			HeaderLength:   uint16(network + transport),
			ChecksumStart:  uint16(network),
			ChecksumOffset: g.CsumOffset,
		}
		if pkt.Data().Size() > int(g.MSS) {
			h.Segment, h.SegmentSize = tun.SegmentTCP4, g.MSS
			if g.Type == stack.GSOTCPv6 {
				h.Segment = tun.SegmentTCP6
			}
		}
	}
	return l.dev.Write(h, pkt.AsSlices()...)
}

package divert

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What the kernel remembers of connections outlives the table: of a datagram
// flow for as long as datagrams come, and of a connection whose end nobody saw
// (the table went first) for days. It would bring datagrams to where they no
// longer belong, and a new connection from the same port of the same client to a
// listener that is gone. So it is made to forget when rules change.

// entry is a connection that the kernel remembers.
type entry struct {
	family byte
	udp    bool
	over   bool   // a connection of which the end was seen, and which may come anew
	port   uint16 // to which its first packet was sent
	at     uint16 // from which the answers come: where the packet was brought
	tuple  []byte // CTA_TUPLE_ORIG
	id     []byte
}

// Attributes and messages of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig    = 1
	ctaTupleReply   = 2
	ctaProtoInfo    = 4
	ctaProtoInfoTCP = 1
	ctaTCPState     = 1
	tcpEstablished  = 3 // those after it have seen a FIN or RST
	ctaID           = 12
	ctaTupleProto   = 2
	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
	ctGet           = 1
	ctDelete        = 2
)

// forget makes the kernel forget what stands in the way of a change of rules.
func forget(removed, added []Rule) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("ask for remembered connections: %w", err)
	}
	defer conn.Close()
	got, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | ctGet, Flags: netlink.Request | netlink.Dump},
		Data:   header(unix.AF_UNSPEC, 0)})
	if err != nil {
		return fmt.Errorf("ask for remembered connections: %w", err)
	}
	var batch []netlink.Message
	asked := map[uint16]bool{}
	known := func(port uint16) bool {
		l, ok := asked[port]
		if !ok {
			l = listening(port)
			asked[port] = l
		}
		return l
	}
	for _, m := range got {
		e, ok := parse(m.Data)
		if !ok || !stale(e, removed, added, known) {
			continue
		}
		attrs := []netlink.Attribute{{Type: ctaTupleOrig | unix.NLA_F_NESTED, Data: e.tuple}}
		if e.id != nil {
			attrs = append(attrs, netlink.Attribute{Type: ctaID, Data: e.id})
		}
		body, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			return fmt.Errorf("forget a connection: %w", err)
		}
		batch = append(batch, netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | ctDelete, Flags: netlink.Request},
			Data:   append(header(e.family, 0), body...)})
	}
	for some := range slices.Chunk(batch, 100) { // no answers are asked for: it may have gone by itself
		if _, err := conn.SendMessages(some); err != nil {
			return fmt.Errorf("forget connections: %w", err)
		}
	}
	return nil
}

// stale reports whether e stands in the way. A connection that others brought
// elsewhere (a service mesh) is none of ours.
func stale(e entry, removed, added []Rule, listening func(uint16) bool) bool {
	if e.udp && slices.Contains(removed, Rule{UDP: true, Port: e.port, To: e.at}) {
		return true
	}
	return slices.ContainsFunc(added, func(r Rule) bool {
		if r.UDP != e.udp || r.Port != e.port || e.at == r.To {
			return false
		}
		if e.at == e.port {
			return !e.over
		}
		return !listening(e.at)
	})
}

// listening reports whether somebody has the port: else what was brought there
// was brought by an agent that is gone.
func listening(port uint16) bool {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return true
	}
	_ = l.Close()
	u, err := net.ListenPacket("udp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return true
	}
	_ = u.Close()
	return false
}

func parse(data []byte) (entry, bool) {
	if len(data) < 4 {
		return entry{}, false
	}
	e := entry{family: data[0]}
	d, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return e, false
	}
	known := false
	for d.Next() {
		switch d.Type() {
		case ctaTupleOrig:
			e.tuple = slices.Clone(d.Bytes())
			p := protocol(e.tuple)
			e.udp, e.port = p.number == unix.IPPROTO_UDP, p.dst
			known = p.number == unix.IPPROTO_UDP || p.number == unix.IPPROTO_TCP
		case ctaTupleReply:
			e.at = protocol(d.Bytes()).src
		case ctaProtoInfo:
			e.over = tcpState(d.Bytes()) > tcpEstablished
		case ctaID:
			e.id = slices.Clone(d.Bytes())
		}
	}
	return e, known && d.Err() == nil
}

type ports struct {
	number   byte
	src, dst uint16
}

// protocol reads a tuple's CTA_TUPLE_PROTO.
func protocol(tuple []byte) (p ports) {
	d, err := netlink.NewAttributeDecoder(tuple)
	if err != nil {
		return p
	}
	for d.Next() {
		if d.Type() != ctaTupleProto {
			continue
		}
		in, err := netlink.NewAttributeDecoder(d.Bytes())
		if err != nil {
			return p
		}
		for in.Next() {
			b := in.Bytes()
			switch {
			case in.Type() == ctaProtoNum && len(b) == 1:
				p.number = b[0]
			case in.Type() == ctaProtoSrcPort && len(b) == 2:
				p.src = binary.BigEndian.Uint16(b)
			case in.Type() == ctaProtoDstPort && len(b) == 2:
				p.dst = binary.BigEndian.Uint16(b)
			}
		}
	}
	return p
}

// tcpState reads CTA_PROTOINFO; 0 if it says nothing.
func tcpState(info []byte) byte {
	for _, kind := range []uint16{ctaProtoInfoTCP, ctaTCPState} {
		d, err := netlink.NewAttributeDecoder(info)
		if err != nil {
			return 0
		}
		info = nil
		for d.Next() {
			if d.Type() == kind {
				info = d.Bytes()
			}
		}
	}
	if len(info) != 1 {
		return 0
	}
	return info[0]
}

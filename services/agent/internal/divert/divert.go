// Package divert brings the traffic of ports of the pod to other ports of it,
// with an nftables table in the pod's network namespace.
//
// The table is *owned* by the netlink socket that made it
// (NFT_TABLE_F_OWNER, Linux 5.12): the kernel removes it when that socket is
// closed, whatever closes it. An agent that is killed therefore leaves nothing,
// and the traffic is the app's again at once; no clean-up code has to run.
//
// What is diverted: packets that come from outside of the pod (not over lo, so
// that the agent and other containers of the pod reach the app as ever) to the
// port, by IPv4 and IPv6. Of TCP only what opens a connection is looked at: the
// kernel would otherwise take the next packet of one that had been there before
// the table for a new one, and tear it out of the app's hands. So connections
// that are open stay with the app until they end; datagrams, which have no such
// state, move at once.
//
// The expressions are made by google/nftables, the messages here: that library
// cannot set a table's flags, and only the socket that owns a table may change it.
package divert

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Rule says that the traffic of a port goes to another.
type Rule struct {
	UDP      bool
	Port, To uint16
}

// Diverter applies rules. It is safe for concurrent use.
type Diverter struct {
	name string

	mu    sync.Mutex
	conn  *netlink.Conn // owns the table; nil: there is none
	rules []Rule        // that hold
}

// New returns a diverter whose table is to have that name.
func New(name string) *Diverter { return &Diverter{name: name} }

const chain = "prerouting"

// priority is a bit before the usual one of destination NAT.
const priority = -101

// Set makes rules the ones that hold, in one transaction. When it fails nothing
// is diverted. Connections that were diverted before go on, with rules or without,
// until Close: it is the table's being there that keeps their packets translated.
func (d *Diverter) Set(rules []Rule) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(rules) == 0 && d.conn == nil {
		return nil
	}
	var batch []netlink.Message
	if d.conn == nil {
		conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return explain(err)
		}
		d.conn = conn
		_ = forget(nil, rules) // or the table would wake what it must not
		batch = append(batch, d.table(), d.chain())
	} else {
		batch = append(batch, d.flush())
	}
	for _, r := range append([]Rule{{}}, rules...) {
		m, err := d.rule(r)
		if err != nil {
			d.drop()
			return err
		}
		batch = append(batch, m)
	}
	if err := send(d.conn, batch); err != nil {
		d.drop()
		return explain(err)
	}
	was := d.rules
	d.rules = slices.Clone(rules)
	// Where the kernel does not tell what it remembers, that is as good as it gets.
	_ = forget(without(was, rules), without(rules, was))
	return nil
}

// without are the rules of a that b has not.
func without(a, b []Rule) []Rule {
	return slices.DeleteFunc(slices.Clone(a), func(r Rule) bool { return slices.Contains(b, r) })
}

// Close removes the table. Set makes another one.
func (d *Diverter) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop()
}

func (d *Diverter) drop() {
	if d.conn != nil {
		_ = d.conn.Close() // and with it goes the table
		d.conn, d.rules = nil, nil
	}
}

// explain names what the kernel's bare number does not.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the agent may not change the pod's nftables: NET_ADMIN is missing: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the node's kernel cannot divert: it takes Linux 5.12 with nftables and NAT: %w", err)
	}
	return fmt.Errorf("change the pod's nftables: %w", err)
}

// send sends a transaction and reads the answer to each of its messages.
func send(conn *netlink.Conn, batch []netlink.Message) error {
	begin := netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	end := netlink.Message{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: header(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)}
	all := append(append([]netlink.Message{begin}, batch...), end)
	if _, err := conn.SendMessages(all); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	for answered := 0; answered < len(batch); {
		got, err := conn.Receive()
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		answered += len(got)
	}
	return nil
}

// header is struct nfgenmsg.
func header(family byte, res uint16) []byte { return []byte{family, 0, byte(res >> 8), byte(res)} }

func message(kind int, flags netlink.HeaderFlags, attrs []netlink.Attribute) netlink.Message {
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err) // attributes of a constant shape
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(header(unix.NFPROTO_INET, 0), body...),
	}
}

func text(kind uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(s), 0)}
}

func number(kind uint16, n uint32) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: binary.BigEndian.AppendUint32(nil, n)}
}

func nested(kind uint16, attrs ...netlink.Attribute) netlink.Attribute {
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err) // likewise
	}
	return netlink.Attribute{Type: kind | unix.NLA_F_NESTED, Data: body}
}

// tableOwner is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h.
const tableOwner = 2

func (d *Diverter) table() netlink.Message {
	return message(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, []netlink.Attribute{
		text(unix.NFTA_TABLE_NAME, d.name), number(unix.NFTA_TABLE_FLAGS, tableOwner)})
}

func (d *Diverter) chain() netlink.Message {
	p := int32(priority)
	return message(unix.NFT_MSG_NEWCHAIN, netlink.Create, []netlink.Attribute{
		text(unix.NFTA_CHAIN_TABLE, d.name), text(unix.NFTA_CHAIN_NAME, chain),
		nested(unix.NFTA_CHAIN_HOOK, number(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING), number(unix.NFTA_HOOK_PRIORITY, uint32(p))),
		text(unix.NFTA_CHAIN_TYPE, "nat")})
}

// flush takes all rules out of the chain.
func (d *Diverter) flush() netlink.Message {
	return message(unix.NFT_MSG_DELRULE, 0, []netlink.Attribute{
		text(unix.NFTA_RULE_TABLE, d.name), text(unix.NFTA_RULE_CHAIN, chain)})
}

// rule is one rule; that of the zero Rule lets be what comes over lo.
func (d *Diverter) rule(r Rule) (netlink.Message, error) {
	var list []netlink.Attribute
	for _, e := range expressions(r) {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return netlink.Message{}, fmt.Errorf("encode rule for port %d: %w", r.Port, err)
		}
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: b})
	}
	return message(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, []netlink.Attribute{
		text(unix.NFTA_RULE_TABLE, d.name), text(unix.NFTA_RULE_CHAIN, chain), nested(unix.NFTA_RULE_EXPRESSIONS, list...)}), nil
}

// Flags of TCP, in its fourteenth byte.
const (
	fin = 1 << iota
	syn
	rst
	_
	ack
)

func expressions(r Rule) []expr.Any {
	if r.Port == 0 {
		lo := make([]byte, unix.IFNAMSIZ)
		copy(lo, "lo")
		return []expr.Any{
			// Asked for nothing but this: as long as some rule looks at
			// connections the kernel tracks them, and translates what is open.
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: lo},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
	}
	protocol := byte(unix.IPPROTO_TCP)
	if r.UDP {
		protocol = unix.IPPROTO_UDP
	}
	es := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, r.Port)},
	}
	if !r.UDP {
		es = append(es,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
		)
	}
	return append(es,
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, r.To)},
		&expr.Redir{RegisterProtoMin: 1},
	)
}

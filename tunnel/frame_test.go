package tunnel

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

var headers = []Header{ //nolint: a table of values, not state
	{Kind: KindTCP, Dst: netip.MustParseAddrPort("10.0.0.1:443"), Src: netip.MustParseAddrPort("192.168.7.9:51234")},
	{Kind: KindUDP, Dst: netip.MustParseAddrPort("[fd00::1]:53")},
	{Kind: KindEcho, Dst: netip.AddrPortFrom(netip.MustParseAddr("10.96.0.10"), 0)},
	{Kind: KindRPC, Method: "leases.renew"},
	{Kind: KindFiles, Engagement: "e1", Method: `{"tokenHash":"00"}`},
	{Kind: KindTCP, Dst: netip.AddrPortFrom(netip.Addr{}, 8080), Engagement: "e-01J9"},
	{Kind: KindTCP, Engagement: strings.Repeat("e", 255), Method: strings.Repeat("m", 255)},
}

func TestHeaderRoundTrip(t *testing.T) {
	for _, h := range headers {
		b, err := appendHeader(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseHeader(b)
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("%v became %v, %v", h, got, err)
		}
		for i := range b { // a prefix is never a header
			if _, err := parseHeader(b[:i]); err == nil {
				t.Errorf("%v: the first %d of %d bytes pass", h, i, len(b))
			}
		}
	}
	for _, h := range []Header{{}, {Kind: 9}, {Kind: KindRPC, Method: strings.Repeat("m", 256)}} {
		if _, err := appendHeader(nil, h); err == nil {
			t.Errorf("encoded %v", h)
		}
	}
	zoned := Header{Kind: KindTCP, Dst: netip.MustParseAddrPort("[fe80::1%eth0]:80")}
	b, _ := appendHeader(nil, zoned)
	if got, err := parseHeader(b); err != nil || got.Dst.Addr().Zone() != "" {
		t.Errorf("zone crossed the wire: %v, %v", got, err)
	}
}

func FuzzHeader(f *testing.F) {
	for _, h := range headers {
		b, _ := appendHeader(nil, h)
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 4, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		again, err := appendHeader(nil, h)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x parses to %v, which encodes to %x, %v", b, h, again, err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for typ := frameOpen; typ <= frameGoAway; typ++ {
		f.Add(appendFrame(nil, typ, false, 1, 0, 0, 0, 1))
		f.Add(appendFrame(nil, typ, true, 0, 0, 0, 0, 0, 0, 0, 0, 1))
	}
	for _, h := range headers {
		b, _ := appendOpen(nil, 5, 1<<16, h, []byte("early"), true)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameHeaderSize {
			return
		}
		h, err := parseFrameHeader(b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("%v is no protocol error", err)
			}
			return
		}
		if h.length > 64<<10 {
			t.Errorf("length %d passes", h.length)
		}
		var again [frameHeaderSize]byte
		putFrameHeader(again[:], h.typ, h.fin, h.length, h.id)
		if !bytes.Equal(again[:], b[:frameHeaderSize]) {
			t.Errorf("%x parses to %+v, which encodes to %x", b[:frameHeaderSize], h, again)
		}
		if h.typ == frameOpen {
			if _, _, early, err := parseOpen(b[frameHeaderSize:]); err == nil && len(early) > maxEarly {
				t.Errorf("%d bytes of early data pass", len(early))
			}
		}
	})
}

// FuzzSession feeds a session whatever, after a valid preface and a stream.
func FuzzSession(f *testing.F) {
	open, _ := appendOpen(nil, 1, 1<<16, headers[0], nil, false)
	f.Add(open)
	f.Add(appendFrame(bytes.Clone(open), frameReset, false, 1, 6))
	f.Add(appendFrame(bytes.Clone(open), frameStop, false, 1, 6))
	f.Add(appendFrameUint32(bytes.Clone(open), frameWindow, 1, 5))
	f.Add(appendFrame(bytes.Clone(open), frameData, true, 1))
	f.Add(appendFrame(nil, framePing, false, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	f.Add(appendMessage(nil, frameGoAway, 0, 0, "bye"))
	early, _ := appendOpen(nil, 3, 1<<16, headers[3], []byte("{}"), true)
	f.Add(early)
	f.Fuzz(func(t *testing.T, b []byte) {
		conn := &scriptConn{in: bytes.NewReader(append(appendPreface(nil), b...))}
		s := NewSession(conn, false, Config{KeepAlive: -1})
		go serve(s, echo)
		<-s.Done() // at the end of the script, if not before
		s.Close()
		if s.NumStreams() != 0 {
			t.Error("streams left after the end")
		}
	})
}

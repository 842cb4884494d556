package buildstream_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"berth.dev/bus/buildstream"
)

func TestFrames(t *testing.T) {
	a, b := net.Pipe()
	ctl, builder := buildstream.New(a), buildstream.New(b)
	go func() {
		_ = ctl.SendJSON(buildstream.KindHello, 0, buildstream.Hello{ID: "b1", Token: "t"})
		_ = ctl.Send(buildstream.KindData, 7, []byte{buildstream.Last}, []byte("body"))
		_ = ctl.Close()
	}()
	f, err := builder.Receive()
	if err != nil || f.Kind != buildstream.KindHello || string(f.Payload) != `{"id":"b1","token":"t"}` {
		t.Fatalf("%+v, %v", f, err)
	}
	f, err = builder.Receive()
	if err != nil || f.Kind != buildstream.KindData || f.ID != 7 || string(f.Payload) != "\x01body" {
		t.Fatalf("%+v, %v", f, err)
	}
	if _, err := builder.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	if err := builder.Send(buildstream.KindData, 0, make([]byte, buildstream.MaxFrame+1)); err == nil {
		t.Error("sent a frame that is too large")
	}
}

type readOnly struct{ io.Reader }

func (readOnly) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (readOnly) Close() error              { return nil }

func TestBadFrames(t *testing.T) {
	large := make([]byte, 9)
	binary.BigEndian.PutUint32(large[5:], buildstream.MaxFrame+1)
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"too large":    {large, "too many"},
		"cut head":     {[]byte{1, 0}, "unexpected EOF"},
		"cut payload":  {[]byte{1, 0, 0, 0, 0, 0, 0, 0, 5, 'x'}, "unexpected EOF"},
		"no payload":   {[]byte{1, 0, 0, 0, 0, 0, 0, 0, 5}, "unexpected EOF"},
		"empty stream": {nil, "EOF"},
	} {
		_, err := buildstream.New(readOnly{bytes.NewReader(c.in)}).Receive()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestPlain(t *testing.T) {
	for _, c := range []struct {
		p    buildstream.Progress
		want string
	}{
		{buildstream.Progress{State: buildstream.Begun, Step: 2, Name: "[2/3] RUN make"}, "#2 [2/3] RUN make\n"},
		{buildstream.Progress{State: buildstream.Line, Step: 2, Text: "a\nb\r\nc"}, "#2 a\n#2 b\n#2 c\n"},
		{buildstream.Progress{State: buildstream.Cached, Step: 2}, "#2 CACHED\n"},
		{buildstream.Progress{State: buildstream.Ended, Step: 2, Millis: 1240}, "#2 DONE 1.2s\n"},
		{buildstream.Progress{State: buildstream.Broken, Step: 2, Text: "exit code 1"}, "#2 ERROR after 0.0s: exit code 1\n"},
		{buildstream.Progress{State: buildstream.Line, Text: "note"}, "note\n"},
	} {
		if got := c.p.Plain(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.p, got, c.want)
		}
	}
}

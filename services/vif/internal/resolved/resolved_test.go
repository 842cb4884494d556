package resolved

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeService is a system bus with a systemd-resolved on it that notes what it is
// told, and refuses the methods named.
type fakeService struct {
	absent  bool
	unknown string

	mu    sync.Mutex
	calls []string
}

// listen makes it the system bus of this test.
func (f *fakeService) listen(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); f.serve(c) })
		}
	})
}

// serve speaks the server's side: the authentication line by line, then messages.
func (f *fakeService) serve(c net.Conn) {
	r := bufio.NewReader(c)
	if b, err := r.ReadByte(); err != nil || b != 0 {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch word, _, _ := strings.Cut(strings.TrimSpace(line), " "); {
		case word == "BEGIN":
			f.messages(c, r)
			return
		case strings.HasPrefix(line, "AUTH EXTERNAL"):
			fmt.Fprintf(c, "OK 0123456789abcdef0123456789abcdef\r\n")
		case word == "AUTH":
			fmt.Fprintf(c, "REJECTED EXTERNAL\r\n")
		default:
			fmt.Fprintf(c, "ERROR\r\n")
		}
	}
}

func (f *fakeService) messages(c net.Conn, r *bufio.Reader) {
	for serial := uint32(1); ; serial++ {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}}
		answer := func(v any) {
			reply.Body = []any{v}
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(v))
		}
		switch member, _ := m.Headers[dbus.FieldMember].Value().(string); member {
		case "Hello":
			answer(":1.1")
		case "NameHasOwner":
			answer(!f.absent)
		default:
			if m.Flags&dbus.FlagNoReplyExpected != 0 {
				continue
			}
			if member == f.unknown {
				reply.Type = dbus.TypeError
				reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.DBus.Error.UnknownMethod")
				break
			}
			sig, _ := m.Headers[dbus.FieldSignature].Value().(dbus.Signature)
			f.mu.Lock()
			f.calls = append(f.calls, fmt.Sprintf("%s(%s) %v", member, strings.Trim(sig.String(), `"`), m.Body))
			f.mu.Unlock()
		}
		if err := f.reply(c, reply, serial); err != nil {
			return
		}
	}
}

// reply sends a message; its serial can be set by a connection alone, so that it
// is written behind the fixed part.
func (f *fakeService) reply(c net.Conn, m *dbus.Message, serial uint32) error {
	var b strings.Builder
	if err := m.EncodeTo(&b, order); err != nil {
		return err
	}
	raw := []byte(b.String())
	order.PutUint32(raw[8:], serial)
	_, err := c.Write(raw)
	return err
}

// order is that of this machine, in which the bus speaks.
var order = binary.LittleEndian

// files are a resolv.conf that is a link to the service's, and where that is.
func files(t *testing.T) (resolvConf, dir string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{stubFile: "nameserver 127.0.0.53\n", uplinksFile: "nameserver 192.0.2.53\nnameserver 198.18.0.2\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	resolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.Symlink(filepath.Join(dir, stubFile), resolvConf); err != nil {
		t.Fatal(err)
	}
	return resolvConf, dir
}

func TestPointAndRestore(t *testing.T) {
	for _, unknown := range []string{"", "SetLinkDNSOverTLS"} {
		f := &fakeService{unknown: unknown}
		f.listen(t)
		link, dir := files(t)
		r, err := Open(link, dir, "lo")
		if err != nil {
			t.Fatal(err)
		}
		search, err := r.Point(netip.MustParseAddr("198.18.0.2"), []string{"tel2-search"}, []string{"cluster.local", "svc", "shop"})
		if err != nil || !slices.Equal(search, []string{"tel2-search"}) {
			t.Fatal(search, err)
		}
		if s := r.Original().Servers; len(s) != 1 || s[0].String() != "192.0.2.53" {
			t.Errorf("the original servers are %v: names would come back to us for ever", s)
		}
		if err := r.Restore(); err != nil {
			t.Fatal(err)
		}
		if err := r.Restore(); err != nil {
			t.Error("a second time:", err)
		}
		r.Close()
		want := []string{
			"SetLinkDefaultRoute(ib) [1 false]",
			"SetLinkDomains(ia(sb)) [1 [[tel2-search false] [cluster.local true] [svc true] [shop true]]]",
			"SetLinkDNSSEC(is) [1 no]", "SetLinkDNSOverTLS(is) [1 no]", "SetLinkLLMNR(is) [1 no]", "SetLinkMulticastDNS(is) [1 no]",
			"SetLinkDNS(ia(iay)) [1 [[2 [198 18 0 2]]]]", "FlushCaches() []", "RevertLink(i) [1]", "FlushCaches() []",
		}
		want = slices.DeleteFunc(want, func(s string) bool { return unknown != "" && strings.HasPrefix(s, unknown) })
		if !slices.Equal(f.calls, want) {
			t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(f.calls, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestNotUsed(t *testing.T) {
	link, dir := files(t)
	if _, err := Open(filepath.Join(dir, uplinksFile), dir, "lo"); !errors.Is(err, ErrNotUsed) {
		t.Error("a resolv.conf that is none of the service's:", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if _, err := Open(link, dir, "lo"); !errors.Is(err, ErrNotUsed) {
		t.Error("no bus:", err)
	}
	(&fakeService{absent: true}).listen(t)
	if _, err := Open(link, dir, "lo"); !errors.Is(err, ErrNotUsed) {
		t.Error("no service:", err)
	}
}

package tunnelclient

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus/fault"
	"berth.dev/services/vif/internal/resolvconf"
	"berth.dev/tunnel"
	"berth.dev/tunnel/apidial"
)

func config(cluster, user string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{%s}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{%s}}]}`, cluster, user)
}

func TestValidate(t *testing.T) {
	const server, token = `"server":"https://10.0.0.1:6443"`, `"token":"s3cret"`
	if err := Validate(config(server, token)); err != nil {
		t.Error(err)
	}
	for name, c := range map[string][]byte{
		"nothing":           nil,
		"no kubeconfig":     []byte(`{"s3cret":`),
		"no context":        []byte(`{"kind":"Config"}`),
		"credential plugin": config(server, `"exec":{"apiVersion":"client.authentication.k8s.io/v1","command":"s3cret","interactiveMode":"Never"}`),
	} {
		err := Validate(c)
		if fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error quotes the kubeconfig: %v", name, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	c := New(nil, resolvconf.NewDialer(resolvconf.Config{}), "", nil)
	for cluster, want := range map[string][]netip.Addr{
		`"server":"https://10.0.0.1:6443"`:                                    {netip.MustParseAddr("10.0.0.1")},
		`"server":"https://[fd00::1]:6443"`:                                   {netip.MustParseAddr("fd00::1")},
		`"server":"https://10.0.0.1:6443","proxy-url":"http://10.0.0.9:3128"`: {netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")},
	} {
		want = append(want, netip.MustParseAddr("192.0.2.1"))
		if got, err := c.Addresses(t.Context(), Target{Kubeconfig: config(cluster, `"token":"t"`), Direct: []string{"192.0.2.1:30123", "no address"}}); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", cluster, got, err, want)
		}
	}
}

func TestExplain(t *testing.T) {
	target := Target{Namespace: "berth"}
	for _, tt := range []struct {
		err       error
		code      fault.Code
		hint      string
		permanent bool
	}{
		{&apidial.PermissionError{Verb: "get", Resource: "pods/proxy", Namespace: "berth", Err: errors.New("no")}, fault.PermissionDenied, "ctl doctor", true},
		{&tunnel.PinError{Want: "a", Got: "b"}, fault.FailedPrecondition, "ctl quit && ctl connect", true},
		{&tunnel.VersionError{Local: 1, Remote: 2}, fault.FailedPrecondition, "ctl install", true},
		{&tunnel.RPCError{Message: "unknown key", Hint: "x"}, fault.Unavailable, "x", false},
		{apidial.ErrNoPod, fault.Unavailable, "ctl install", false},
		{errors.New("connection reset"), fault.Unavailable, "ctl doctor", false},
	} {
		got := explain(fmt.Errorf("reach manager: %w", tt.err), target)
		f := fault.From(got)
		if f.Code != tt.code || f.Hint != tt.hint || Permanent(got) != tt.permanent {
			t.Errorf("%v: %+v, permanent %v", tt.err, f, Permanent(got))
		}
	}
}

package connections

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"
)

// validate checks what can be checked without the cluster, and fills in what
// has a default.
func validate(req *command.OpenConnection) error {
	bad := func(hint, format string, args ...any) error {
		return fault.New(fault.InvalidArgument, hint, format, args...)
	}
	switch {
	case !subject.Valid(req.ID):
		return bad("", "the connection's id %q is not a token", req.ID)
	case !subject.Valid(req.Name):
		return bad("ctl connect --docker --name dev", "the name %q cannot be used: 1 to 63 characters of a-z, 0-9 and '-', not starting or ending in '-'", req.Name)
	case len(req.Kubeconfig) == 0:
		return bad("", "the connection has no kubeconfig")
	case req.Namespace == "":
		return bad("ctl connect --docker -n default", "the connection has no namespace")
	}
	if req.ManagerNamespace == "" {
		req.ManagerNamespace = lease.DefaultNamespace
	}
	for flag, cidrs := range map[string][]string{"also-proxy": req.AlsoProxy, "never-proxy": req.NeverProxy, "vnat": req.Virtual} {
		for _, c := range cidrs {
			if flag == "vnat" && c == command.VirtualAuto {
				continue
			}
			if _, err := netip.ParsePrefix(c); err != nil {
				if _, err := netip.ParseAddr(c); err != nil {
					return bad("", "--%s %s: neither a CIDR nor an address", flag, c)
				}
			}
		}
	}
	return nil
}

// digest tells a repeated connect from a changed one: the flags and the cluster
// they lead to, but neither the id nor who asks nor the credentials, which may
// have been renewed.
func digest(req command.OpenConnection) string {
	req.ID, req.Client, req.Kubeconfig, req.Expires = "", "", nil, time.Time{}
	b, err := json.Marshal(req)
	if err != nil { // cannot be: the type has no field that fails
		b = fmt.Appendf(nil, "%+v", req)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:8])
}

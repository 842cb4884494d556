package hostspace

import (
	"context"
	"os"
	"os/exec"
	"strings"

	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
)

// Examine says whether this machine can be connected itself, or is. Only what is
// broken is an error: a machine without what it takes has --docker.
func (s *Space) Examine(ctx context.Context) (string, error) {
	if s.Exists() {
		if _, lives, err := proclock.Holder(s.lockOf(subject.Connector)); err != nil || !lives {
			return "", fault.New(fault.Unavailable, "ctl quit --all", "what an earlier ctl connect left is in %s, and its connector does not live", s.dir)
		}
		names, err := s.Names(ctx)
		return "up: " + strings.Join(names, ", "), err
	}
	for _, c := range []subject.Service{subject.Connector, subject.Runner, subject.VIF} {
		if _, err := program(c); err != nil {
			return "ctl connect takes --docker here: " + fault.From(err).Message, nil
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return "ctl connect takes --docker here: there is no /dev/net/tun (modprobe tun)", nil
	}
	how := "as root"
	if os.Geteuid() != 0 {
		how = "with sudo, for the process vif"
		if _, err := exec.LookPath("sudo"); err != nil {
			return "ctl connect takes --docker here: there is no sudo, and you are not root", nil
		}
	}
	return "can be connected itself, without --docker, " + how, nil
}

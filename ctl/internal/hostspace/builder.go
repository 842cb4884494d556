package hostspace

import (
	"context"
	"fmt"
	"io"
	"net"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/proclock"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/workspace"
)

// builderSocket is builder's door, in the directory that only the user may enter.
const builderSocket = "builder.sock"

// Builder is a stream to builder, which is started if it does not run.
func (s *Space) Builder(ctx context.Context, conn *bus.Conn) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not ready within %v", readyWithin))
	defer cancel()
	mine, err := s.exclusive(ctx)
	if err != nil {
		return nil, err
	}
	defer mine.Release()
	if _, lives, err := proclock.Holder(s.lockOf(subject.Builder)); err != nil {
		return nil, err
	} else if !lives {
		p, err := s.start(subject.Builder, "-workspace", s.Name, "-door", s.path(builderSocket))
		if err != nil {
			return nil, err
		}
		var stop context.CancelFunc
		ctx, stop = p.orGone(ctx)
		defer stop()
	}
	live := subject.Live(subject.Builder, workspace.RunnerPresence)
	for {
		_, err := conn.NC.RequestWithContext(ctx, live, nil)
		if err == nil {
			break
		}
		if perr := pause(ctx); perr != nil {
			return nil, fault.New(fault.Unavailable, "ctl quit --all", "the builder does not answer: %v", perr)
		}
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", s.path(builderSocket))
}

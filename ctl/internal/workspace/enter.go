package workspace

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/docker/docker/api/types/container"
)

// errIgnored says that connector admits nobody who introduces itself.
var errIgnored = errors.New("not admitted")

// enter connects to the bus of a connector that runs. A connector that does not answer
// within limit is errSilent.
func (w *Workspace) enter(ctx context.Context, id string, limit time.Duration) (*bus.Conn, error) {
	conn, err := w.introduced(ctx, id, limit)
	if !errors.Is(err, errIgnored) {
		return conn, err
	}
	// With the key that lies in its container, which some engines take a tenth of a
	// second to hand out. It comes a moment after the container's name.
	var pace pacer
	for began := time.Now(); ; {
		cfg, err := w.identity(ctx, id)
		if err == nil {
			return w.dial(ctx, id, cfg, limit)
		}
		if pace.pause(ctx) != nil {
			return nil, err
		}
		if time.Since(began) > limit {
			return nil, fmt.Errorf("%w: %w", errSilent, err)
		}
	}
}

// introduced enters with a new key.
func (w *Workspace) introduced(ctx context.Context, id string, limit time.Duration) (*bus.Conn, error) {
	seed, me, err := bus.NewIdentity("ctl-"+strings.ToLower(rand.Text()[:12]), subject.Ctl, "")
	if err != nil {
		return nil, err
	}
	text, err := bus.Introduce(me)
	if err != nil {
		return nil, err
	}
	in, err := w.Engine.API.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdin: true})
	if err != nil {
		return nil, fmt.Errorf("%w: attach to the connector: %w", errIgnored, err)
	}
	defer in.Close()
	if _, err := in.Conn.Write(text); err != nil {
		return nil, fmt.Errorf("%w: write to the connector: %w", errIgnored, err)
	}
	conn, err := w.dial(ctx, id, bus.Config{Seed: seed, Identity: me.Name, Service: me.Service}, limit)
	if fault.CodeOf(err) == fault.PermissionDenied {
		return nil, fmt.Errorf("%w: %w", errIgnored, err)
	}
	return conn, err
}

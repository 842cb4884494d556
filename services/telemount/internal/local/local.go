// Package local mounts the volumes of one engagement on the machine that it runs
// on, for a handler that is no container. It is a program's child: `ctl replace …
// -- COMMAND` starts it, whatever user that is.
//
// # Protocol
//
// Lines of JSON. The first on stdout is a [Hello] with the pin of a key that was
// made for this process alone; the parent opens the engagement with it, so that
// vif's door lets nobody else in. Then the parent writes the engagement's
// command.RemoteVolumes to stdin, and gets a [Mounted] when they are there, or a
// [Failed] and exit code 1. The end of stdin, or SIGTERM, unmounts.
//
// # Who takes the mount away
//
// This process, when its parent has ended, however that ended. If this process is
// killed, its guard, a second process that waits for the end of a pipe. If both
// are killed at once, the mount is dead (ENOTCONN at once, nothing hangs) and in
// the mount table under [mount.SourcePrefix]: `ctl quit` and `ctl gc` look for
// those.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"berth.dev/bus/command"
	"berth.dev/files"
	"berth.dev/services/telemount/internal/door"
	"berth.dev/services/telemount/internal/mount"
	"berth.dev/tunnel"
)

// Hello is the first line.
type Hello struct {
	Pin string `json:"pin"`
}

// Mounted is the second line, when all is mounted.
type Mounted struct {
	Mounted []string `json:"mounted"` // paths in the container
}

// Failed is the second line, when it is not.
type Failed struct {
	Error string `json:"error"`
}

// within bounds the mounting: somebody waits at a terminal.
const within = 20 * time.Second

// Run mounts below dir, which it makes if it is not there, and then removes again.
// It returns when in has ended or ctx has, and all is unmounted.
func Run(ctx context.Context, dir string, in io.Reader, out io.Writer, version string, log *slog.Logger) (err error) {
	say := json.NewEncoder(out)
	defer func() {
		if err != nil {
			_ = say.Encode(Failed{Error: err.Error()})
		}
	}()
	id, err := tunnel.NewIdentity()
	if err != nil {
		return err
	}
	place, err := take(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.release()) }()
	if err := say.Encode(Hello{Pin: string(id.Pin())}); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	var v command.RemoteVolumes
	lines := json.NewDecoder(in)
	if err := lines.Decode(&v); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // there was no engagement after all
		}
		return fmt.Errorf("read what to mount: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		stop()
	}()
	dial := door.New(id, "telemount-local/"+version, log)
	defer dial.Close()
	m, err := tree(ctx, dir, v, dial)
	if err != nil {
		return err
	}
	done := Mounted{Mounted: []string{}}
	for _, x := range v.Mounts {
		done.Mounted = append(done.Mounted, x.Path)
	}
	if err := say.Encode(done); err != nil {
		return errors.Join(fmt.Errorf("say that it is mounted: %w", err), m.Close())
	}
	<-ctx.Done()
	return m.Close()
}

func tree(ctx context.Context, dir string, v command.RemoteVolumes, dial *door.Dialer) (*mount.Mount, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	to := door.Target{Door: v.Door, Pin: v.DoorPin, Engagement: v.Engagement}
	token, err := dial.Token(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("ask for the engagement's token: %w", err)
	}
	var all []files.Options
	for _, x := range v.Mounts {
		all = append(all, files.Options{
			Token: token, Root: x.Path, ReadOnly: x.ReadOnly, Timeout: time.Duration(v.TimeoutMillis) * time.Millisecond,
			Dial: func(ctx context.Context) (net.Conn, error) { return dial.Dial(ctx, to) },
		})
	}
	return mount.Tree(ctx, dir, v.Engagement, all)
}

// Package door is where callers hand over build contexts: a unix socket in
// builder's own container, mode 0600, that no network leads to. ctl comes to it
// through the Docker Engine, by an exec of `builder stream`, so whoever may use
// the engine may knock; which build a stream is for, its token decides.
package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"berth.dev/bus/buildstream"
)

// Door is an open door.
type Door struct {
	l      net.Listener
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Open listens at path. What an earlier builder left there is removed: a
// container has one builder. admit gets each stream, in a goroutine of its own.
func Open(path string, admit func(context.Context, *buildstream.Conn) error, log *slog.Logger) (*Door, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open the door: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the door: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the door: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open the door: %w", err), l.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &Door{l: l, cancel: cancel}
	d.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			d.wg.Go(func() {
				if err := admit(ctx, buildstream.New(c)); err != nil {
					log.Warn("a stream was not taken", "err", err)
				}
			})
		}
	})
	return d, nil
}

// Close takes no more streams, ends those that are open, and waits for them.
func (d *Door) Close() {
	_ = d.l.Close()
	d.cancel()
	d.wg.Wait()
}

// Pipe connects standard input and output with the door at path, until either
// side has ended.
func Pipe(ctx context.Context, path string, in io.Reader, out io.Writer) error {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("knock at builder's door: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(c, in)
		// The caller is gone, whose end has to be seen by builder.
		ended <- err
	}()
	go func() {
		_, err := io.Copy(out, c)
		ended <- err
	}()
	return <-ended
}

// Package handover passes open sockets from one process to another, which may
// be in another network namespace: a socket stays in the one in which it was
// made.
//
// Front opens a Unix socket of type SEQPACKET and sends, to whoever connects,
// all of its sockets in order: messages of up to [batch] file descriptors
// (SCM_RIGHTS, unix(7)), each with a line that counts them and says how many
// are still to come. Nothing else is ever sent; the connection then stands for
// as long as both live, which is how either learns of the other's end.
//
// Who may connect is decided by who can open the socket's file: it lies in a
// volume that only the two containers mount.
package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// batch is below the kernel's limit on descriptors in one message, 253.
const batch = 200

// Listen opens the socket at path, in the place of what an earlier front left.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the old socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Serve sends the files to everybody who connects, until ctx ends.
func Serve(ctx context.Context, l *net.UnixListener, files []*os.File) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() { // ends with the peer, or with this process
			defer c.Close()
			if err := send(c, files); err != nil {
				return // the peer is gone, and will tell its own story
			}
			_, _ = c.Read(make([]byte, 1))
		}()
	}
}

func send(c *net.UnixConn, files []*os.File) error {
	for len(files) > 0 {
		n := min(len(files), batch)
		fds, err := numbers(files[:n])
		if err != nil {
			return err
		}
		files = files[n:]
		head := fmt.Sprintf("%d %d", n, len(files))
		if _, _, err := c.WriteMsgUnix([]byte(head), syscall.UnixRights(fds...), nil); err != nil {
			return err
		}
	}
	return nil
}

// numbers are the files' descriptors. Not by Fd, which would take them out of
// the mode in which a back that runs already waits for them.
func numbers(files []*os.File) ([]int, error) {
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		}
		if err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// Fetch connects to the socket at path, waiting for it to appear, and returns
// front's sockets. The connection that is returned too ends when front does.
func Fetch(ctx context.Context, path string) ([]*os.File, *net.UnixConn, error) {
	c, err := dial(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	files, err := receive(c)
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		c.Close()
		return nil, nil, fmt.Errorf("fetch the sockets of front: %w", err)
	}
	return files, c, nil
}

// dial tries until front is there: the two start side by side.
func dial(ctx context.Context, path string) (*net.UnixConn, error) {
	for {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("front does not come: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func receive(c *net.UnixConn) (files []*os.File, err error) {
	head, oob := make([]byte, 64), make([]byte, syscall.CmsgSpace(batch*4))
	for more := 1; more > 0; {
		n, oobn, flags, _, err := c.ReadMsgUnix(head, oob)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err == nil && flags&syscall.MSG_CTRUNC != 0 {
			err = errors.New("some were cut off: too many files are open")
		}
		if err != nil {
			return files, err
		}
		var count int
		if _, err := fmt.Sscanf(string(head[:n]), "%d %d", &count, &more); err != nil {
			return files, fmt.Errorf("read %q: %w", head[:n], err)
		}
		got, err := descriptors(oob[:oobn])
		files = append(files, got...)
		if err != nil {
			return files, err
		}
		if len(got) != count {
			return files, fmt.Errorf("%d of %d came", len(got), count)
		}
	}
	return files, nil
}

func descriptors(oob []byte) (files []*os.File, err error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

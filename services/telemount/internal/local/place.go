package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"berth.dev/services/telemount/internal/mount"

	"golang.org/x/sys/unix"
)

// place is the directory of the mount.
type place struct {
	dir   string
	made  bool
	lock  *os.File
	guard *guard
}

// take makes sure of the directory: a new one, or an empty one that is there. It
// is locked for as long as it is used, so that who removes leftovers knows.
func take(dir string) (p *place, err error) {
	p = &place{dir: dir}
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		p.made = true
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("make the mount point: %w", err)
	default:
		es, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("look at the mount point: %w", err)
		}
		if len(es) > 0 {
			return nil, fmt.Errorf("%s is not empty: a mount would hide what is there", dir)
		}
	}
	defer func() {
		if err != nil {
			p.undo()
		}
	}()
	if p.lock, err = os.Open(dir); err != nil {
		return nil, fmt.Errorf("open the mount point: %w", err)
	}
	if err := unix.Flock(int(p.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s is another one's mount point: %w", dir, err)
	}
	if p.guard, err = startGuard(dir, p.made); err != nil {
		return nil, err
	}
	return p, nil
}

// release lets go of the directory, when nothing is mounted there any more.
func (p *place) release() error {
	p.undo()
	return p.guard.dismiss()
}

func (p *place) undo() {
	if p.lock != nil {
		_ = p.lock.Close()
	}
	if p.made {
		_ = os.Remove(p.dir)
	}
}

// clean is the guard's work.
func clean(dir string, made bool) error {
	err := mount.Unmount(dir)
	if made {
		if rerr := os.Remove(dir); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

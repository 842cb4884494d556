package envfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"berth.dev/bus/fault"
)

// Check tells whether Write could write path: there is no such file, or an empty
// one (mktemp's). What a file holds already is nobody's to overwrite, and still
// less to remove.
func Check(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		dir := filepath.Dir(path)
		if d, err := os.Stat(dir); err != nil || !d.IsDir() {
			return fault.New(fault.InvalidArgument, "mkdir -p "+dir, "%s: there is no folder %s", path, dir)
		}
		return nil
	case err != nil:
		return fault.New(fault.InvalidArgument, "", "%v", err)
	case !info.Mode().IsRegular():
		return fault.New(fault.InvalidArgument, "", "%s is no regular file", path)
	case info.Size() > 0:
		return fault.New(fault.InvalidArgument, "rm "+path, "%s exists: it would be overwritten, and removed when the engagement ends", path)
	}
	return nil
}

// Write writes a file that only its owner may read, and returns what removes it
// again. If this process is killed, a guard removes it: a shell that waits for
// the end of a pipe of which we hold the other end. (A machine that loses its
// power leaves the file.)
func Write(path string, data []byte) (remove func(), err error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("make %s absolute: %w", path, err)
	}
	done, err := guard(path) // before there is anything to guard
	if err != nil {
		return nil, err
	}
	remove = func() {
		if err := os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			_, _ = io.WriteString(done, "removed\n")
		}
		_ = done.Close()
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		// One that was there keeps its mode otherwise.
		err = errors.Join(f.Chmod(0o600), write(f, data))
	}
	if err != nil {
		remove()
		return nil, fmt.Errorf("write the environment: %w", err)
	}
	return remove, nil
}

func write(f *os.File, data []byte) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Close())
}

// guard starts the shell. It outlives us for a moment only, and no signal of our
// terminal reaches it.
func guard(path string) (io.WriteCloser, error) {
	cmd := exec.Command("sh", "-c", `read -r word || rm -f -- "$1"`, "sh", path)
	cmd.SysProcAttr = ownGroup()
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start what removes %s if this process is killed: %w", path, err)
	}
	go func() { _ = cmd.Wait() }()
	return in, nil
}

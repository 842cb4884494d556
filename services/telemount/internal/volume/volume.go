// Package volume owns the volumes that Docker knows of and their mounts.
//
// A volume is mounted while any container uses it: Docker gives each use an ID,
// and the same ID twice counts once. Volumes and the IDs that use them are in a
// state file, written before a call is answered, so that after a kill -9 the next
// process mounts again what containers that still run use; the mounts of the
// process that is gone are detached lazily at start. Those containers keep the
// dead mount (every call in it fails at once with ENOTCONN) until they restart. So
// what is lost, or will be in a moment as this process ends, is told to the door
// of its engagement, which ends that.
//
// One lock per volume is held while it is mounted, so that ten volumes mount side
// by side; list, path and get wait for no file server, ever.
package volume

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.dev/files"
	"berth.dev/services/telemount/internal/door"
	"berth.dev/services/telemount/internal/mount"

	"golang.org/x/sys/unix"
)

// Dialer reaches the file servers of engaged containers; *door.Dialer is one.
type Dialer interface {
	Dial(ctx context.Context, t door.Target) (net.Conn, error)
	Token(ctx context.Context, t door.Target) (string, error)
	// Release says that a volume of t is no longer mounted.
	Release(t door.Target)
	// Lost tells t's side that what was mounted is lost for who uses it.
	Lost(ctx context.Context, t door.Target, cause string) error
}

// Spec is what the driver options say.
type Spec struct {
	Engagement string        `json:"engagement,omitempty"`
	Container  string        `json:"container,omitempty"` // for people
	Door       string        `json:"door,omitempty"`
	Pin        string        `json:"pin,omitempty"`
	Path       string        `json:"path"`
	ReadOnly   bool          `json:"ro,omitempty"`
	Timeout    time.Duration `json:"timeout"`
	Server     string        `json:"server,omitempty"`
	TokenFile  string        `json:"tokenFile,omitempty"`
}

func (s Spec) target() door.Target {
	return door.Target{Door: s.Door, Pin: s.Pin, Engagement: s.Engagement}
}

type entry struct {
	Spec Spec            `json:"spec"`
	IDs  map[string]bool `json:"ids,omitempty"`

	lock sync.Mutex // while mounting and unmounting
	m    *mount.Mount
	// giveUp ends Open's attempt to mount again, which holds lock as long as the
	// door is away.
	giveUp context.CancelFunc
	// lost are the uses whose mount went with a process that was killed; guarded by
	// Set.mu.
	lost map[string]bool
}

// Set is all volumes of an engine.
type Set struct {
	root, state string
	dial        Dialer
	log         *slog.Logger
	stop        context.CancelFunc // ends what Open has begun
	work        sync.WaitGroup     // what it and Close have
	unmounted   chan struct{}      // one has been

	mu  sync.Mutex
	all map[string]*entry
}

// mountWait bounds a Mount: Docker holds a container's start for as long.
const mountWait = 20 * time.Second

// How long a door is tried to be told of lost volumes: at start, when nothing
// waits for it, and at the end, which a supervisor allows some seconds.
const (
	tellWithin = time.Minute
	byeWithin  = 2 * time.Second
)

// Open reads the state, detaches what a killed process left mounted below root,
// and mounts again what is in use. dial may be nil: then only volumes with the
// option server can be mounted.
func Open(root, state string, dial Dialer, log *slog.Logger) (*Set, error) {
	s := &Set{root: root, state: state, dial: dial, log: log, unmounted: make(chan struct{}, 1), all: map[string]*entry{}}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("make folder of mount points: %w", err)
	}
	if err := detach(root); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(state)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if err == nil {
		if err := json.Unmarshal(b, &s.all); err != nil {
			return nil, fmt.Errorf("read state %s: %w", state, err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.work.Go(func() { s.giveBack(ctx) })
	s.tell(ctx, tellWithin, "was killed")
	for name, e := range s.all {
		if len(e.IDs) == 0 {
			continue
		}
		e.lost = maps.Clone(e.IDs)
		again, giveUp := context.WithCancel(ctx)
		e.giveUp = giveUp
		log.Warn("this plugin was killed while the volume was in use: the containers that use it have to be restarted", "volume", name, "uses", len(e.lost))
		s.work.Go(func() { // the engine must not wait for a cluster that is away
			defer giveUp()
			e.lock.Lock()
			defer e.lock.Unlock()
			if err := s.mount(again, name, e); err != nil {
				log.Warn("mount again", "volume", name, "err", err)
			}
		})
	}
	return s, nil
}

// giveBack returns the memory of mounts that are gone. Each has had buffers of a
// megabyte in pools of its own, which outlive it by two collections: many of them,
// one after the other, put off the next collection further and further.
func (s *Set) giveBack(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.unmounted:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second): // those of a handler go together
		}
		runtime.GC()
		debug.FreeOSMemory()
	}
}

func detach(root string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) > 4 && strings.HasPrefix(w[4], root+"/") && strings.Contains(sc.Text(), " fuse.berth ") {
			if err := unix.Unmount(w[4], unix.MNT_DETACH); err != nil {
				return fmt.Errorf("detach stale mount %s: %w", w[4], err)
			}
		}
	}
	return nil
}

// tell says to the doors of the engagements whose volumes are used that these are
// lost, or are about to be; whom Close waits for.
func (s *Set) tell(ctx context.Context, within time.Duration, cause string) {
	if s.dial == nil {
		return
	}
	used := map[door.Target]bool{}
	s.mu.Lock()
	for _, e := range s.all {
		if len(e.IDs) > 0 && e.Spec.Engagement != "" {
			used[e.Spec.target()] = true
		}
	}
	s.mu.Unlock()
	for t := range used {
		s.work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			if err := s.dial.Lost(ctx, t, cause); err != nil { // of a connection that is gone, as a rule
				s.log.Info("nobody is told that volumes are lost", "engagement", t.Engagement, "door", t.Door, "err", err)
			}
		})
	}
}

// Close unmounts everything.
func (s *Set) Close() {
	s.stop()
	s.work.Wait()
	s.tell(context.Background(), byeWithin, "is ending")
	s.work.Wait()
	s.mu.Lock()
	all := maps.Clone(s.all)
	s.mu.Unlock()
	for name, e := range all {
		e.lock.Lock()
		if err := s.unmount(name, e); err != nil {
			s.log.Warn("unmount", "volume", name, "err", err)
		}
		e.lock.Unlock()
	}
}

// save writes the state; mu is held.
func (s *Set) save() error {
	b, err := json.Marshal(s.all)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := os.WriteFile(s.state+".new", b, 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.Rename(s.state+".new", s.state); err != nil {
		return fmt.Errorf("replace state: %w", err)
	}
	return nil
}

// Parse reads driver options.
func Parse(opts map[string]string) (Spec, error) {
	x := Spec{Timeout: files.DefaultTimeout}
	for k, v := range opts {
		var err error
		switch k {
		case "engagement":
			x.Engagement = v
		case "container":
			x.Container = v
		case "door":
			x.Door = v
			if _, err = netip.ParseAddrPort(v); err != nil {
				err = errors.New("want IP:port of the daemon container")
			}
		case "pin":
			x.Pin = v
		case "path":
			x.Path = v
		case "ro":
			x.ReadOnly, err = strconv.ParseBool(v)
		case "timeout":
			if x.Timeout, err = time.ParseDuration(v); err == nil && (x.Timeout < 100*time.Millisecond || x.Timeout > time.Hour) {
				err = errors.New("want 100ms to 1h")
			}
		case "server":
			x.Server = v
		case "token-file":
			x.TokenFile = v
		default:
			err = errors.New("unknown option; there are engagement, container, door, pin, path, ro, timeout, server, token-file")
		}
		if err != nil {
			return x, fmt.Errorf("option %s=%q: %w", k, v, err)
		}
	}
	if !filepath.IsAbs(x.Path) || filepath.Clean(x.Path) != x.Path {
		return x, fmt.Errorf("option path=%q: want a mount path of the container, absolute and clean", x.Path)
	}
	if (x.Engagement == "") == (x.Server == "") {
		return x, errors.New("want either the option engagement or the option server")
	}
	if (x.Server == "") != (x.TokenFile == "") {
		return x, errors.New("the options server and token-file go together")
	}
	if n := x.Engagement == ""; n != (x.Door == "") || n != (x.Pin == "") {
		return x, errors.New("the options engagement, door and pin go together: `ctl replace` sets them")
	}
	return x, nil
}

// validName: what Docker accepts, so that no name leaves the folder of the mounts.
func validName(n string) bool {
	ok := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	}
	if len(n) == 0 || len(n) > 200 || !ok(rune(n[0])) {
		return false
	}
	return !strings.ContainsFunc(n, func(c rune) bool { return !ok(c) && !strings.ContainsRune("_.-", c) })
}

// Create notes a volume; nothing is mounted. The same twice is no error.
func (s *Set) Create(name string, opts map[string]string) error {
	if !validName(name) {
		return fmt.Errorf("%q is no name for a volume", name)
	}
	x, err := Parse(opts)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[name]; e != nil {
		if e.Spec != x {
			return fmt.Errorf("volume %s exists with other options", name)
		}
		return nil
	}
	s.all[name] = &entry{Spec: x}
	return s.save()
}

func (s *Set) get(name string) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[name]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("no such volume: %s", name)
}

func (s *Set) dir(name string) string { return filepath.Join(s.root, name) }

// Remove forgets a volume. Docker asks for it only when no container has it: what
// is still noted as a use is of an engine that was killed and never said that it
// had ended.
func (s *Set) Remove(name string) error {
	e, err := s.get(name)
	if err != nil {
		return err
	}
	e.unwanted()
	e.lock.Lock()
	defer e.lock.Unlock()
	if err := s.unmount(name, e); err != nil {
		return fmt.Errorf("unmount volume %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(e.IDs) > 0 {
		s.log.Warn("removed with uses that were never ended", "volume", name, "uses", len(e.IDs))
	}
	delete(s.all, name)
	return s.save()
}

// Names lists the volumes.
func (s *Set) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.all))
}

// Path is where a volume is mounted, "" while nobody uses it.
func (s *Set) Path(name string) (string, error) {
	e, err := s.get(name)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(e.IDs) == 0 {
		return "", nil
	}
	return s.dir(name), nil
}

// Trouble says what is wrong with a volume, and what helps; "" if nothing is known
// to be.
func (s *Set) Trouble(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[name]; e == nil || len(e.lost) == 0 {
		return ""
	}
	return "the volume plugin was killed while this volume was in use: containers that were running then have lost it for good (ENOTCONN) and have to be restarted; new ones have it"
}

// Mount makes sure that the volume is mounted, for the user id.
func (s *Set) Mount(ctx context.Context, name, id string) (string, error) {
	e, err := s.get(name)
	if err != nil {
		return "", err
	}
	e.lock.Lock()
	defer e.lock.Unlock()
	if err := s.mount(ctx, name, e); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.IDs == nil {
		e.IDs = map[string]bool{}
	}
	e.IDs[id] = true
	return s.dir(name), s.save()
}

// Unmount ends the use id; the last one unmounts.
func (s *Set) Unmount(name, id string) error {
	e, err := s.get(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(e.IDs, id)
	delete(e.lost, id)
	last := len(e.IDs) == 0
	err = s.save()
	s.mu.Unlock()
	if !last {
		return err
	}
	e.unwanted()
	e.lock.Lock()
	defer e.lock.Unlock()
	if s.used(e) { // again: who mounts meanwhile
		return err
	}
	return errors.Join(err, s.unmount(name, e))
}

func (s *Set) used(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(e.IDs) > 0
}

// unwanted ends an attempt to mount again what nobody uses any more: an engine that
// starts removes what it had, and would wait for a door that is gone.
func (e *entry) unwanted() {
	if e.giveUp != nil {
		e.giveUp()
	}
}

// mount mounts; e.lock is held.
func (s *Set) mount(ctx context.Context, name string, e *entry) error {
	if e.m != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, mountWait)
	defer cancel()
	o := files.Options{Root: e.Spec.Path, ReadOnly: e.Spec.ReadOnly, Timeout: e.Spec.Timeout}
	switch {
	case e.Spec.Server != "":
		b, err := os.ReadFile(e.Spec.TokenFile)
		if err != nil {
			return fmt.Errorf("read token: %w", err)
		}
		o.Token = strings.TrimSpace(string(b))
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", e.Spec.Server)
		}
	case s.dial != nil:
		var err error
		if o.Token, err = s.dial.Token(ctx, e.Spec.target()); err != nil {
			s.release(e)
			return fmt.Errorf("mount volume %s: ask for the engagement's token: %w", name, err)
		}
		o.Dial = func(ctx context.Context) (net.Conn, error) { return s.dial.Dial(ctx, e.Spec.target()) }
	default:
		return errors.New("this plugin has no key to reach a cluster with: only volumes with the option server can be mounted")
	}
	dir := s.dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	m, err := mount.New(ctx, dir, o)
	if err != nil {
		_ = os.Remove(dir)
		s.release(e)
		return fmt.Errorf("mount volume %s: %w", name, err)
	}
	e.m = m
	return nil
}

func (s *Set) unmount(name string, e *entry) error {
	if e.m == nil {
		return nil
	}
	err := e.m.Close()
	e.m = nil
	s.release(e)
	_ = os.Remove(s.dir(name))
	select {
	case s.unmounted <- struct{}{}:
	default:
	}
	return err
}

// release says that e is not mounted.
func (s *Set) release(e *entry) {
	if s.dial != nil && e.Spec.Engagement != "" {
		s.dial.Release(e.Spec.target())
	}
}

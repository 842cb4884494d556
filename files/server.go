package files

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Root is a mount path of the engaged container. It may be a single file
// (subPath); then "" is its only path.
type Root struct {
	Path     string
	ReadOnly bool
}

// Export is all that a server gives access to.
type Export struct {
	Roots []Root
}

// TokenIs makes a check for one token that takes equally long for every wrong one.
func TokenIs(want string) func(string) bool {
	w := sha256.Sum256([]byte(want))
	return func(got string) bool {
		g := sha256.Sum256([]byte(got))
		return want != "" && subtle.ConstantTimeCompare(w[:], g[:]) == 1
	}
}

// TokenHashIs makes the same check of the SHA-256 of a token, in hexadecimal.
func TokenHashIs(want string) func(string) bool {
	w, err := hex.DecodeString(want)
	return func(got string) bool {
		g := sha256.Sum256([]byte(got))
		return err == nil && subtle.ConstantTimeCompare(w, g[:]) == 1
	}
}

// Access is what one connection may do.
type Access struct {
	Check    func(token string) bool
	ReadOnly bool
}

// Server serves an export to any number of clients. Its sessions survive their
// connections for Keep, so one Server is to be kept for as long as the export.
type Server struct {
	export Export
	check  func(token string) bool
	log    *slog.Logger
	// Keep is for how long the open files of a client that is away stay open.
	Keep time.Duration

	mu       sync.Mutex
	closed   bool
	sessions map[string]*session
}

// NewServer serves export to those whose token check accepts; nil where each
// connection has its own, see ServeAs. log may be nil.
func NewServer(export Export, check func(token string) bool, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{export: export, check: check, log: log, Keep: sessionKeep, sessions: map[string]*session{}}
}

// Close ends all sessions and closes their files. Serve calls still running end.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	all := s.sessions
	s.sessions = map[string]*session{}
	s.mu.Unlock()
	for _, x := range all {
		x.close()
	}
}

// Serve serves one connection until it ends, ctx does, or the client breaks the
// protocol; it closes conn. A client that went away is no error.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	return s.ServeAs(ctx, conn, Access{Check: s.check})
}

// ServeAs is Serve for a connection of which the caller knows what it may do.
func (s *Server) ServeAs(ctx context.Context, conn net.Conn, a Access) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := readFrame(conn, maxHello)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	f := fields{b: b}
	h, ver, ok := f.hello()
	if !ok && ver == 0 {
		return fmt.Errorf("read hello: %w", errFrame)
	}
	refuse := func(no unix.Errno, msg string) error {
		var r buffer
		r.u32(0)
		r.u32(uint32(no))
		r.str(msg)
		_, _ = conn.Write(frame{head: r}.seal().head)
		return errors.New("refuse client: " + msg)
	}
	if ver != version {
		return refuse(unix.EPROTONOSUPPORT, fmt.Sprintf("this server speaks version %d of the protocol, the client %d", version, ver))
	}
	if a.Check == nil || !a.Check(h.token) {
		return refuse(unix.EACCES, "the token is not of this engagement")
	}
	if len(h.client) < 16 {
		return refuse(unix.EINVAL, "no client id")
	}
	h.readOnly = h.readOnly || a.ReadOnly
	x, resumed, err := s.session(h)
	if err != nil {
		return refuse(Errno(err), err.Error())
	}
	return x.serve(conn, resumed)
}

func (s *Server) session(h hello) (*session, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, unix.ESHUTDOWN
	}
	// Who resumes a session must have what it began with.
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%v", h.token, h.client, h.root, h.readOnly)
	if x := s.sessions[key]; x != nil && x.attach() {
		return x, true, nil
	}
	for _, r := range s.export.Roots {
		if strings.TrimSuffix(r.Path, "/") != strings.TrimSuffix(h.root, "/") {
			continue
		}
		x, err := newSession(s, r, h.readOnly)
		if err != nil {
			return nil, false, err
		}
		x.gone = func() {
			s.mu.Lock()
			if s.sessions[key] == x {
				delete(s.sessions, key)
			}
			s.mu.Unlock()
			x.close()
		}
		s.sessions[key] = x
		return x, false, nil
	}
	return nil, false, fmt.Errorf("%q is no mount path of this container: %w", h.root, unix.ENOENT)
}

func newSession(s *Server, r Root, readOnly bool) (*session, error) {
	rt, err := openRoot(r.Path)
	if err != nil {
		return nil, err
	}
	x := &session{id: rand.Text(), keep: s.Keep, log: s.log, ops: &ops{root: rt, super: os.Geteuid() == 0}, users: 1,
		readOnly: r.ReadOnly || readOnly, handles: map[uint64]*handle{}, done: map[uint64][]byte{}, running: map[uint64]bool{},
		slots: make(chan struct{}, 64)}
	var vfs unix.Statfs_t
	if unix.Fstatfs(rt.fd, &vfs) == nil && vfs.Flags&unix.ST_RDONLY != 0 {
		x.readOnly = true
	}
	if observable(rt.fd) && rt.dir {
		if x.watch, err = newWatcher(x.ops.stat, x.push); err != nil {
			s.log.Warn("no inotify: clients keep attributes for a second only", "err", err)
		}
	}
	return x, nil
}

// bootID tells kernels apart: what another one wrote but did not sync may be lost.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

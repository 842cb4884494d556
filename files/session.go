package files

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// session is what the server holds for one client and root, beyond any one
// connection: open files, and the answers that the client may not have got.
//
// Requests run side by side, up to 64 at a time, but for those on one open file
// that are not reads: they run in the order in which they arrived.
type session struct {
	id       string // another one knows nothing of this one's files
	keep     time.Duration
	log      *slog.Logger
	ops      *ops
	watch    *watcher
	lost     lost
	readOnly bool
	gone     func()
	slots    chan struct{}
	wg       sync.WaitGroup

	mu      sync.Mutex
	users   int // connections being served
	closed  bool
	bye     bool // the client has said that it will not come back
	expire  *time.Timer
	out     *sender // of the newest connection, nil without one
	handles map[uint64]*handle
	done    map[uint64][]byte // answers of changes, until acknowledged
	running map[uint64]bool   // changes under way
}

type handle struct {
	path   string
	flags  uint32
	append bool

	mu   sync.Mutex
	f    *os.File
	q    []func()
	busy bool
}

// attach counts a new connection; false: the session has just been closed.
func (s *session) attach() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.users++
	if s.expire != nil {
		s.expire.Stop()
	}
	return true
}

func (s *session) detach(out *sender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out == out {
		s.out = nil
	}
	if s.users--; s.users == 0 && !s.closed {
		keep := s.keep
		if s.bye {
			keep = 0
		}
		s.expire = time.AfterFunc(keep, s.gone)
	}
}

func (s *session) close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	if s.expire != nil {
		s.expire.Stop()
	}
	out := s.out
	s.mu.Unlock()
	if out != nil {
		out.close()
	}
	s.watch.close()
	s.wg.Wait()
	for _, h := range s.handles {
		_ = h.f.Close()
	}
	s.lost.close()
	s.ops.root.close()
}

func (s *session) serve(conn net.Conn, resumed bool) error {
	out := newSender(conn)
	defer out.wg.Wait()
	defer out.close()
	defer s.detach(out)

	a, err := s.ops.root.attr(s.ops.root.fd)
	if err != nil {
		return err
	}
	var r buffer
	r.u32(0)
	r.u32(0)
	r.attr(a)
	r.bool(s.readOnly)
	r.bool(s.watch != nil)
	r.bool(s.ops.super)
	r.str(s.id)
	r.str(bootID())
	out.send(frame{head: r}.seal())

	s.mu.Lock()
	if s.out != nil {
		s.out.close()
	}
	s.out = out
	s.mu.Unlock()
	if resumed { // pushes may have been lost with the connection
		s.watch.forget("", true)
		s.push(Event{Tree: true})
	}
	br := bufio.NewReaderSize(conn, 128<<10)
	for {
		b, err := readFrame(br, maxRequest)
		if errors.Is(err, errFrame) {
			return err
		}
		if err != nil {
			return nil
		}
		if err := s.dispatch(b); err != nil {
			return err
		}
	}
}

func (s *session) push(e Event) {
	var b buffer
	b.u32(0)
	b.u64(0)
	if e.Tree {
		b.u32(pushTree)
	} else {
		b.u32(pushEntry)
	}
	b.str(e.Dir)
	b.str(e.Name)
	s.mu.Lock()
	out := s.out
	s.mu.Unlock()
	if out != nil {
		out.send(frame{head: b}.seal())
	}
}

// answer sends an answer, whose head is filled in here, and records it if need be.
func (s *session) answer(id uint64, o op, b []byte, err error) {
	if len(b) < answerHead || err != nil {
		b = make([]byte, answerHead)
	}
	le.PutUint64(b[4:], id)
	le.PutUint32(b[12:], uint32(Errno(err)))
	frame{head: b}.seal()
	s.mu.Lock()
	if o.changes() {
		delete(s.running, id)
		s.done[id] = b
	}
	out := s.out
	s.mu.Unlock()
	if out != nil {
		out.send(frame{head: b})
	}
}

// dispatch starts a request. An error is a breach of the protocol.
func (s *session) dispatch(b []byte) error {
	f := fields{b: b}
	id, acked, o := f.u64(), f.u64(), op(f.u8())
	if f.bad || id == 0 || o == 0 || o >= opLast {
		return errFrame
	}
	if o.changes() {
		s.mu.Lock()
		if len(s.done) > 256 {
			for i := range s.done {
				if i < acked {
					delete(s.done, i)
				}
			}
		}
		old, done := s.done[id]
		again := done || s.running[id]
		if !again {
			s.running[id] = true
		}
		out := s.out
		s.mu.Unlock()
		if done && out != nil {
			out.send(frame{head: old})
		}
		if again {
			return nil
		}
	}
	s.slots <- struct{}{}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return io.ErrClosedPipe
	}
	s.wg.Add(1)
	s.mu.Unlock()
	run := func() {
		defer s.wg.Done()
		defer func() { <-s.slots }()
		b, err := s.do(o, &f)
		s.answer(id, o, b, err)
	}
	if h := s.ordered(o, f); h != nil {
		h.enqueue(run)
	} else {
		go run()
	}
	return nil
}

// ordered finds the open file whose queue a request belongs to. f is a copy:
// nothing is consumed.
func (s *session) ordered(o op, f fields) *handle {
	switch o {
	case opFstat, opWrite, opFsync, opFlush, opRelease, opAllocate, opSeek, opSetattr:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.handles[f.u64()]
	}
	return nil
}

func (h *handle) enqueue(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.q = append(h.q, f)
	if h.busy {
		return
	}
	h.busy = true
	go func() {
		for {
			h.mu.Lock()
			if len(h.q) == 0 {
				h.busy = false
				h.mu.Unlock()
				return
			}
			f := h.q[0]
			h.q = h.q[1:]
			h.mu.Unlock()
			f()
		}
	}()
}

func (s *session) handle(id uint64) (*handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handles[id]; h != nil {
		return h, nil
	}
	return nil, unix.ESTALE
}

// observe starts to watch the directory of path; what is read after that will be
// told when it changes.
func (s *session) observe(path string) bool {
	if path == "" {
		return s.observeDir("")
	}
	dir, _ := split(path)
	return s.observeDir(dir)
}

func (s *session) observeDir(dir string) bool {
	return s.watch.watch(dir, func() (int, error) { return s.ops.root.open(dir, unix.O_PATH|unix.O_DIRECTORY, 0) })
}

// told marks an attribute as the watcher allows, and notes it there. A file with
// other names can change under those; a directory's own times change with its
// content, which its own watch sees.
func (s *session) told(path string, a *Attr, watched bool) {
	a.Named = watched
	a.Watched = watched && (a.IsDir() && s.watch.has(path) || !a.IsDir() && a.Nlink == 1)
	if watched {
		s.watch.tell(path, *a)
	}
}

package files

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Limits of frames, in bytes. They bound what a peer can make us allocate.
const (
	MaxIO       = 1 << 20        // data of one read or write
	maxHello    = 8 << 10        // before the token has been seen
	maxRequest  = MaxIO + 64<<10 // a write and its header
	maxAnswer   = 6 << 20        // a bundle
	maxPath     = 4096           // PATH_MAX
	pageBudget  = 4 << 20        // of names, attributes and bodies in one answer
	bodyMax     = 64 << 10       // largest file that rides in a bundle
	coalesceMax = 16 << 10       // smaller pieces are copied together before a write
	scratchSize = 64 << 10       // of the buffer in which they are
	queueLength = 256            // frames waiting to be written
	answerHead  = 4 + 8 + 4      // length, id, errno
	requestHead = 4 + 8 + 8 + 1  // length, id, acknowledged, operation
)

// errFrame is what a frame that breaks the protocol ends a connection with.
var errFrame = errors.New("malformed frame")

var le = binary.LittleEndian

// readFrame reads one frame into memory of its own.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := le.Uint32(h[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", errFrame, n, limit)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// fields reads the fields of a frame in order. After the first that is missing
// all are zero and bad is set, so that callers check once.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n < 0 || n > len(f.b) {
		f.bad, f.b = true, nil
		return nil
	}
	x := f.b[:n:n]
	f.b = f.b[n:]
	return x
}

func (f *fields) u8() byte {
	if x := f.take(1); x != nil {
		return x[0]
	}
	return 0
}

func (f *fields) u32() uint32 {
	if x := f.take(4); x != nil {
		return le.Uint32(x)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if x := f.take(8); x != nil {
		return le.Uint64(x)
	}
	return 0
}

func (f *fields) i64() int64 { return int64(f.u64()) }
func (f *fields) bool() bool { return f.u8() != 0 }

func (f *fields) bytes() []byte { return f.take(int(f.u32())) }

func (f *fields) str() string { return string(f.bytes()) }

func (f *fields) rest() []byte { x := f.b; f.b = nil; return x }

// Appending is plain: fields of fixed size, and bytes after their length.
type buffer []byte

func (b *buffer) u8(x byte)    { *b = append(*b, x) }
func (b *buffer) u32(x uint32) { *b = le.AppendUint32(*b, x) }
func (b *buffer) u64(x uint64) { *b = le.AppendUint64(*b, x) }
func (b *buffer) i64(x int64)  { b.u64(uint64(x)) }
func (b *buffer) bool(x bool) {
	if x {
		b.u8(1)
	} else {
		b.u8(0)
	}
}
func (b *buffer) str(s string)   { b.u32(uint32(len(s))); *b = append(*b, s...) }
func (b *buffer) bytes(x []byte) { b.u32(uint32(len(x))); *b = append(*b, x...) }

// frame is a head, which begins with room for the length, and data that is not
// copied behind it.
type frame struct{ head, data []byte }

func (f frame) seal() frame {
	le.PutUint32(f.head, uint32(len(f.head)-4+len(f.data)))
	return f
}

// sender writes frames to a connection from one goroutine, small ones together.
// An error closes the connection, by which the reader learns of it.
type sender struct {
	conn net.Conn
	q    chan frame
	done chan struct{} // closed when nothing more will be written
	once sync.Once
	wg   sync.WaitGroup
}

func newSender(c net.Conn) *sender {
	s := &sender{conn: c, q: make(chan frame, queueLength), done: make(chan struct{})}
	s.wg.Add(1)
	go s.run()
	return s
}

// send sends a sealed frame, which others may be sending too. It blocks while the queue is full. False: the connection is gone.
func (s *sender) send(f frame) bool {
	select {
	case s.q <- f:
		return true
	case <-s.done:
		return false
	}
}

func (s *sender) close() {
	s.once.Do(func() {
		close(s.done)
		_ = s.conn.Close()
	})
}

func (s *sender) run() {
	defer s.wg.Done()
	defer s.close()
	scratch := make([]byte, 0, scratchSize)
	flush := func() bool {
		if len(scratch) == 0 {
			return true
		}
		_, err := s.conn.Write(scratch)
		scratch = scratch[:0]
		return err == nil
	}
	put := func(p []byte) bool {
		if len(p) > coalesceMax {
			if !flush() {
				return false
			}
			_, err := s.conn.Write(p)
			return err == nil
		}
		if len(scratch)+len(p) > scratchSize && !flush() {
			return false
		}
		scratch = append(scratch, p...)
		return true
	}
	for {
		var f frame
		select {
		case f = <-s.q:
		case <-s.done:
			return
		}
		for more := true; more; {
			if !put(f.head) || !put(f.data) {
				return
			}
			select {
			case f = <-s.q:
			default:
				more = false
			}
		}
		if !flush() {
			return
		}
	}
}

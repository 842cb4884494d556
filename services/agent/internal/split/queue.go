package split

import (
	"io"
	"sync"
)

// queue is bytes on their way from one goroutine to another.
type queue struct {
	most int

	mu    sync.Mutex
	more  sync.Cond // on mu: one of what follows has changed
	bytes []byte
	err   error // what Read returns after the bytes; nil while more may come
}

func newQueue(most int) *queue {
	q := &queue{most: most}
	q.more.L = &q.mu
	return q
}

// put reports whether there was room for b, which after the end there always is.
func (q *queue) put(b []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil || len(b) == 0 {
		return true
	}
	if len(q.bytes)+len(b) > q.most {
		return false
	}
	q.bytes = append(q.bytes, b...)
	q.more.Broadcast()
	return true
}

// fill puts b when there is room.
func (q *queue) fill(b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && len(q.bytes) > 0 && len(q.bytes)+len(b) > q.most {
		q.more.Wait()
	}
	if q.err == nil {
		q.bytes = append(q.bytes, b...)
		q.more.Broadcast()
	}
}

// end says that nothing more comes, and why. Only the first call counts.
func (q *queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
		q.more.Broadcast()
	}
}

// stop also drops what is there.
func (q *queue) stop(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes, q.err = nil, err
	q.more.Broadcast()
}

// Read waits for bytes, or the end. It has one caller at a time.
func (q *queue) Read(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.bytes) == 0 && q.err == nil {
		q.more.Wait()
	}
	if len(q.bytes) == 0 {
		return 0, q.err
	}
	n := copy(b, q.bytes)
	if q.bytes = q.bytes[n:]; len(q.bytes) == 0 {
		q.bytes = nil
	}
	q.more.Broadcast()
	return n, nil
}

// Close is for who reads: what comes is dropped.
func (q *queue) Close() error {
	q.stop(io.ErrClosedPipe)
	return nil
}

// Package inbox is a queue between whoever learns something and the one
// goroutine that decides.
//
// Put never blocks and never drops, whatever the reader does: a fact reader, a
// command handler and a probe may all hold locks of their own while they put,
// and none of them can be part of a deadlock. What is put is bounded by what the
// world tells about one connection or engagement, some dozens of inputs.
package inbox

import (
	"context"
	"sync"
)

// Inbox is the queue. Its zero value is not usable; see New.
type Inbox[T any] struct {
	mu    sync.Mutex
	items []T
	more  chan struct{}
}

// New returns an empty inbox.
func New[T any]() *Inbox[T] { return &Inbox[T]{more: make(chan struct{}, 1)} }

// Put appends v. It may be called concurrently, and after the reader has gone.
func (b *Inbox[T]) Put(v T) {
	b.mu.Lock()
	b.items = append(b.items, v)
	b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// Get takes the oldest item and waits for one; it returns ctx's error when ctx
// ends first. There is one reader.
func (b *Inbox[T]) Get(ctx context.Context) (T, error) {
	for {
		b.mu.Lock()
		if len(b.items) > 0 {
			v := b.items[0]
			b.items = b.items[1:]
			b.mu.Unlock()
			return v, nil
		}
		b.mu.Unlock()
		select {
		case <-b.more:
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
	}
}

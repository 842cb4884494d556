// Package turn keeps an order among goroutines: what arrived first begins first.
//
// Connections arrive one after another, and each is carried by a goroutine of its
// own, of which any may come first to where it dials. Programs tell connections
// apart by their order, so whoever takes them in joins a line for each, and the
// goroutine waits for its turn:
//
//	c, _ := l.Accept()
//	t := lines.Join(key)
//	go func() {
//		defer t.Done()
//		t.Wait(ctx, most)
//		begin(c)
//		t.Done()
//		carry(c)
//	}()
//
// The order is worth a moment and no more: who has waited for as long as it is
// worth goes past all who are before, and nobody waits for those any more.
package turn

import (
	"context"
	"sync"
	"time"
)

// Lines is a line for each key, which is there as long as someone is in it. The zero
// value is ready; its methods may be called concurrently.
type Lines[K comparable] struct {
	mu   sync.Mutex
	last map[K]*Turn[K]
}

// Turn is a place in a line. Its methods may be called concurrently.
type Turn[K comparable] struct {
	lines *Lines[K]
	key   K
	first chan struct{} // closed when nobody is before; nil: nobody was

	// Under lines.mu.
	prev, next *Turn[K]
	out        bool
}

// Join takes the last place in a line; Done has to be called.
func (l *Lines[K]) Join(key K) *Turn[K] {
	t := &Turn[K]{lines: l, key: key}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = map[K]*Turn[K]{}
	}
	if t.prev = l.last[key]; t.prev != nil {
		t.prev.next = t
		t.first = make(chan struct{})
	}
	l.last[key] = t
	return t
}

// Wait returns when all who were before are done; when ctx ends; or after most, and
// then they are no longer in the line.
func (t *Turn[K]) Wait(ctx context.Context, most time.Duration) {
	if t.first == nil {
		return
	}
	select {
	case <-t.first:
		return
	default:
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-t.first:
	case <-ctx.Done():
	case <-timer.C:
		t.lines.mu.Lock()
		defer t.lines.mu.Unlock()
		for t.prev != nil {
			t.prev.leave()
		}
	}
}

// Done makes way for the next one. Only its first call counts.
func (t *Turn[K]) Done() {
	t.lines.mu.Lock()
	defer t.lines.mu.Unlock()
	t.leave()
}

// leave takes the place out of the line; lines.mu is held.
func (t *Turn[K]) leave() {
	if t.out {
		return
	}
	t.out = true
	if t.prev != nil {
		t.prev.next = t.next
	}
	switch {
	case t.next != nil:
		if t.next.prev = t.prev; t.prev == nil {
			close(t.next.first)
		}
	case t.prev != nil:
		t.lines.last[t.key] = t.prev
	default:
		delete(t.lines.last, t.key)
	}
	t.prev, t.next = nil, nil
}

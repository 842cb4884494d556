// Package expiry judges by this process's own monotonic clock whether the
// holder of a Lease still renews it.
//
// The times that are written in a Lease are another machine's and never
// compared with ours: what counts is how long ago a renewal was first seen
// here. A manager that was restarted has seen nothing yet, and so gives every
// holder a full duration of grace.
package expiry

import (
	"sync"
	"time"
)

// Tracker remembers when it saw each renewal. It may be used concurrently.
type Tracker struct {
	mu   sync.Mutex
	seen map[string]entry
}

type entry struct {
	renewal string
	at      time.Time
}

// New returns a Tracker that has seen nothing.
func New() *Tracker { return &Tracker{seen: map[string]entry{}} }

// Left is how much of duration is left to the holder of the Lease with the
// given UID, whose last renewal is named by renewal (its renewTime, as text);
// zero or less means that the Lease has expired.
func (t *Tracker) Left(uid, renewal string, duration time.Duration) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.seen[uid]
	if !ok || e.renewal != renewal {
		e = entry{renewal: renewal, at: time.Now()}
		t.seen[uid] = e
	}
	return duration - time.Since(e.at)
}

// Forget drops a Lease that is gone.
func (t *Tracker) Forget(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.seen, uid)
}

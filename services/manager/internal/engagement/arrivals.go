package engagement

import "sync"

// arrivals tells whoever waits that a Lease has come; which, they look up. The zero
// value is ready.
type arrivals struct {
	mu sync.Mutex
	ch chan struct{} // nil while nobody waits
}

// next is closed at the next arrival. Who asks before looking misses none.
func (a *arrivals) next() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ch == nil {
		a.ch = make(chan struct{})
	}
	return a.ch
}

func (a *arrivals) tell() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ch != nil {
		close(a.ch)
		a.ch = nil
	}
}

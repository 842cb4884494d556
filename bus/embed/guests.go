package embed

import (
	"sync"
	"time"

	"berth.dev/bus"

	"github.com/nats-io/nats-server/v2/server"
)

// guestsKept is how many guests there may be before those that are gone are looked for.
const guestsKept = 64

// guestAway is how long a guest may be away, which is longer than it would take it to
// give the bus up.
const guestAway = 2 * bus.GiveUp

// guests are identities that nobody removes, since whoever was admitted may have been
// killed: they are forgotten when they have been away for long, once there are many.
type guests struct {
	mu    sync.Mutex
	byKey map[string]*guest
}

type guest struct {
	name string
	gone time.Time // since when it is not connected; zero: it is
}

// AddGuest admits an identity for as long as its holder is connected, and a while
// longer.
func (s *Server) AddGuest(id bus.Identity) error {
	if err := s.auth.add(id); err != nil {
		return err
	}
	s.guests.mu.Lock()
	defer s.guests.mu.Unlock()
	now := time.Now()
	s.guests.byKey[id.PublicKey] = &guest{id.Name, now}
	if len(s.guests.byKey) > guestsKept {
		s.forgetGuests(now)
	}
	return nil
}

// forgetGuests removes the guests that are away for long; s.guests.mu is held.
func (s *Server) forgetGuests(now time.Time) {
	list, err := s.srv.Connz(&server.ConnzOptions{Username: true, Limit: 1 << 20})
	if err != nil {
		return // only for bad options
	}
	here := map[string]bool{}
	for _, c := range list.Conns {
		here[c.AuthorizedUser] = true
	}
	for key, g := range s.guests.byKey {
		switch {
		case here[key]:
			g.gone = time.Time{}
		case g.gone.IsZero():
			g.gone = now
		case now.Sub(g.gone) > guestAway:
			s.auth.remove(g.name)
			delete(s.guests.byKey, key)
		}
	}
}

package embed

import (
	"fmt"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// A guest is admitted while it is connected and for a while afterwards, and of those
// that are gone there are not ever more.
func TestGuests(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context(), Options{StoreDir: t.TempDir(), Port: RandomPort})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	guest := func(name string) bus.Config {
		t.Helper()
		seed, id, err := bus.NewIdentity(name, subject.Ctl, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.AddGuest(id); err != nil {
			t.Fatal(err)
		}
		return bus.Config{URL: s.URL(), Seed: seed, Identity: name, Service: subject.Ctl}
	}
	admitted := func(cfg bus.Config) bool {
		t.Helper()
		c, err := bus.Connect(t.Context(), cfg)
		if err != nil && fault.CodeOf(err) != fault.PermissionDenied {
			t.Fatal(err)
		}
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	stays := guest("ctl-stays")
	conn, err := bus.Connect(t.Context(), stays)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var left []bus.Config
	for i := range guestsKept {
		left = append(left, guest(fmt.Sprintf("ctl-left%d", i)))
	}
	if !admitted(left[0]) {
		t.Fatal("a guest that has just been admitted is not")
	}
	later := func(d time.Duration) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); s.srv.NumClients() > 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the server does not notice that clients are gone")
			}
		}
		s.guests.mu.Lock()
		defer s.guests.mu.Unlock()
		s.forgetGuests(time.Now().Add(d))
	}
	later(guestAway / 2)
	if !admitted(left[0]) || !admitted(stays) {
		t.Error("a guest is forgotten before its time")
	}
	later(2 * guestAway) // when those that were just tried are seen to be gone
	later(4 * guestAway)
	if admitted(left[0]) || admitted(left[guestsKept-1]) {
		t.Error("a guest that is gone is not forgotten")
	}
	if !admitted(stays) {
		t.Error("a guest that is connected is forgotten")
	}
	if n := len(s.guests.byKey); n != 1 {
		t.Errorf("%d guests are remembered, want 1", n)
	}
}

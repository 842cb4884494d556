package embed_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/embed"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// identity makes one, or ends the test.
func identity(t *testing.T, name string, s subject.Service, connection string) (string, bus.Identity) {
	t.Helper()
	seed, id, err := bus.NewIdentity(name, s, connection)
	if err != nil {
		t.Fatal(err)
	}
	return seed, id
}

// start runs a server that admits ids until the test ends.
func start(t *testing.T, ids ...bus.Identity) *embed.Server {
	t.Helper()
	s, err := embed.Start(t.Context(), embed.Options{StoreDir: t.TempDir(), Port: embed.RandomPort, Identities: ids})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func config(s *embed.Server, seed string, id bus.Identity) bus.Config {
	return bus.Config{URL: s.URL(), Seed: seed, Identity: id.Name, Service: id.Service}
}

func TestNobodyConnectsWithoutAKnownKey(t *testing.T) {
	t.Parallel()
	seed, id := identity(t, "runner", subject.Runner, "")
	otherSeed, other := identity(t, "other", subject.Runner, "")
	s := start(t, id)

	anonymous, err := nats.Connect(s.URL())
	if !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("without a key: %v, want an authorization violation", err)
		anonymous.Close()
	}
	if _, err := bus.Connect(t.Context(), config(s, otherSeed, other)); fault.CodeOf(err) != fault.PermissionDenied {
		t.Errorf("with an unknown key: %v, want permission_denied", err)
	}
	// The right public key, signed with the wrong seed.
	kp, err := nkeys.FromSeed([]byte(otherSeed))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nats.Connect(s.URL(), nats.Nkey(id.PublicKey, kp.Sign)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("with a forged signature: %v, want an authorization violation", err)
	}
	conn, err := bus.Connect(t.Context(), config(s, seed, id))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestNorPastTheNetwork(t *testing.T) {
	t.Parallel() // the server takes ten seconds to give up on the refused pipe
	seed, id := identity(t, "connector", subject.Connector, "")
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if c, err := s.Connect(ctx, id, seed); err == nil {
		c.Close()
		t.Error("in process with an unknown key: connected")
	}
}

// Who is here before its key is known is waited for, and no other is.
func TestPatience(t *testing.T) {
	t.Parallel()
	s, err := embed.Start(t.Context(), embed.Options{StoreDir: t.TempDir(), Port: embed.RandomPort, Patience: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	seed, id := identity(t, "ctl-1", subject.Ctl, "")
	_, other := identity(t, "ctl-2", subject.Ctl, "")
	got := make(chan error, 1)
	go func() {
		conn, err := bus.Connect(t.Context(), config(s, seed, id))
		if err == nil {
			conn.Close()
		}
		got <- err
	}()
	for _, id := range []bus.Identity{other, id} {
		select {
		case err := <-got:
			t.Fatalf("not waited for: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if err := s.AddGuest(id); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-got; err != nil {
		t.Errorf("added while it was waited for: %v", err)
	}
}

func TestAddAndRemoveAtRunTime(t *testing.T) {
	t.Parallel()
	s := start(t)
	seed, id := identity(t, "vif-c1", subject.VIF, "c1")
	if _, err := bus.Connect(t.Context(), config(s, seed, id)); fault.CodeOf(err) != fault.PermissionDenied {
		t.Fatalf("before Add: %v, want permission_denied", err)
	}
	for range 2 {
		if err := s.Add(id); err != nil {
			t.Fatal(err)
		}
	}
	_, rival := identity(t, "vif-c1", subject.VIF, "c1")
	if err := s.Add(rival); err == nil {
		t.Error("a second key under a taken name was added")
	}
	kp, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	// Without reconnects, so that being cut is seen as such.
	closed := make(chan struct{})
	nc, err := nats.Connect(s.URL(), nats.Nkey(id.PublicKey, kp.Sign), nats.NoReconnect(),
		nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	s.Remove(id.Name)
	s.Remove(id.Name)
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Fatal("a removed identity stayed connected")
	}
	if _, err := bus.Connect(t.Context(), config(s, seed, id)); fault.CodeOf(err) != fault.PermissionDenied {
		t.Fatalf("after Remove: %v, want permission_denied", err)
	}
}

func TestFactsSurviveARestartOnTheSamePortAndStore(t *testing.T) {
	t.Parallel()
	seed, id := identity(t, "connector", subject.Connector, "")
	o := embed.Options{StoreDir: t.TempDir(), Port: embed.RandomPort, Identities: []bus.Identity{id}}
	s, err := embed.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.Connect(t.Context(), id, seed)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.State(t.Context(), "e1", event.Restoring{Cause: "leave"}); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	o.Port = s.Port()
	s.Shutdown()

	s, err = embed.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown()
	if s.Port() != o.Port {
		t.Errorf("port %d, want %d again", s.Port(), o.Port)
	}
	conn, err = bus.Connect(t.Context(), config(s, seed, id))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, want := range map[string]uint64{bus.EventsStream: 1, bus.OutputStream: 0} {
		st, err := conn.JS.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		c := st.CachedInfo()
		if c.State.Msgs != want {
			t.Errorf("%s holds %d messages, want %d", name, c.State.Msgs, want)
		}
		if c.Config.Storage != jetstream.FileStorage || c.Config.MaxBytes <= 0 || c.Config.MaxAge <= 0 || c.Config.Discard != jetstream.DiscardOld || c.Config.Duplicates != bus.DedupWindow {
			t.Errorf("%s: %+v", name, c.Config)
		}
	}
}

func TestATakenPortIsAnErrorThatSaysSo(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = embed.Start(ctx, embed.Options{StoreDir: t.TempDir(), Port: l.Addr().(*net.TCPAddr).Port})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Fatalf("%v, want one that names the taken address", err)
	}
}

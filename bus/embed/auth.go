package embed

import (
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// authenticator decides who connects. The server's own table of nkeys cannot be
// changed while it runs without a reload of its configuration; this one can.
type authenticator struct {
	// patience is for how long an unknown key is waited for.
	patience time.Duration

	mu    sync.RWMutex
	byKey map[string]bus.Identity
	more  chan struct{} // closed at the next add: a broadcast
}

func newAuthenticator(patience time.Duration) *authenticator {
	return &authenticator{patience: patience, byKey: map[string]bus.Identity{}, more: make(chan struct{})}
}

// identity is that of a key, which may be added a moment after its holder is here.
func (a *authenticator) identity(key string) (bus.Identity, bool) {
	late := time.NewTimer(a.patience)
	defer late.Stop()
	for {
		a.mu.RLock()
		id, ok := a.byKey[key]
		more := a.more
		a.mu.RUnlock()
		if ok {
			return id, true
		}
		select {
		case <-more:
		case <-late.C:
			return id, false
		}
	}
}

func (a *authenticator) add(id bus.Identity) error {
	if !subject.Valid(id.Name) {
		return fmt.Errorf("add identity: %q is not a token", id.Name)
	}
	if !nkeys.IsValidPublicUserKey(id.PublicKey) {
		return fmt.Errorf("add identity %s: %q is not a public user nkey", id.Name, id.PublicKey)
	}
	if _, err := Permissions(id.Service, id.Name, id.Connection); err != nil {
		return fmt.Errorf("add identity %s: %w", id.Name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, other := range a.byKey {
		if other.Name == id.Name && key != id.PublicKey || key == id.PublicKey && other != id {
			return fmt.Errorf("add identity %s: name or key is taken", id.Name)
		}
	}
	a.byKey[id.PublicKey] = id
	close(a.more)
	a.more = make(chan struct{})
	return nil
}

func (a *authenticator) remove(name string) (key string, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, id := range a.byKey {
		if id.Name == name {
			delete(a.byKey, key)
			return key, true
		}
	}
	return "", false
}

// Check implements server.Authentication: the client names a public key and
// shows the signature over the nonce that the server sent to it.
func (a *authenticator) Check(c server.ClientAuthentication) bool {
	o := c.GetOpts()
	nonce := c.GetNonce()
	if len(nonce) == 0 || o.Nkey == "" {
		return false
	}
	id, ok := a.identity(o.Nkey)
	if !ok {
		return false
	}
	sig, err := base64.RawURLEncoding.DecodeString(o.Sig)
	if err != nil {
		// Clients in other languages send the padded alphabet.
		if sig, err = base64.StdEncoding.DecodeString(o.Sig); err != nil {
			return false
		}
	}
	pub, err := nkeys.FromPublicKey(id.PublicKey)
	if err != nil || pub.Verify(nonce, sig) != nil {
		return false
	}
	perms, err := Permissions(id.Service, id.Name, id.Connection)
	if err != nil {
		return false
	}
	c.RegisterUser(&server.User{Username: id.Name, Permissions: perms})
	return true
}

// Package proof makes and checks what an agent beside a container shows to the
// manager in a pod that was there before it.
//
// Nothing can be mounted into a running pod, so such an agent has no token of
// its own kind from kubelet. It is given a proof in its environment: a MAC over
// the pod's UID and the agent's name, under a key that only this installation
// has. It needs no memory, so a restarted manager accepts the agents that are
// there. The proof can be read by whoever may read the pod, and is therefore
// worth nothing by itself: whoever shows it must also come from the pod's own
// address (the View checks that), that is, from inside that very pod. Readers of
// pods gain nothing by it that they could not do by being in the pod.
package proof

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// prefix tells a proof from a service-account token.
const prefix = "berth1."

// Key makes proofs.
type Key []byte

// NewKey derives a key from the installation's secret.
func NewKey(secret []byte) Key {
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("berth: proof of an agent beside a container"))
	return m.Sum(nil)
}

// Of is the proof of the agent of that name in the pod with that UID.
func (k Key) Of(uid, agent string) string {
	m := hmac.New(sha256.New, k)
	m.Write([]byte(uid + "\x00" + agent))
	return prefix + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// Good reports whether token is the proof of that agent.
func (k Key) Good(token, uid, agent string) bool {
	return hmac.Equal([]byte(token), []byte(k.Of(uid, agent)))
}

// Is reports whether token is a proof, good or not, rather than anything else.
func Is(token string) bool { return strings.HasPrefix(token, prefix) }

package bus

import (
	"fmt"

	"berth.dev/bus/subject"

	"github.com/nats-io/nkeys"
)

// IdentitiesFile is where connector's container finds the identities that its
// embedded server admits: JSON of []Identity, no secrets.
const IdentitiesFile = "/etc/berth/identities.json"

// CtlConfigFile is where connector's container keeps the Config of identity
// ctl, for scripts that may read it through the engine, as ctl does where it is not
// admitted by Introduce. Mode 0600.
const CtlConfigFile = "/etc/berth/ctl.json"

// Identity is who may connect to the bus: the public half of a key, and what
// decides its permissions (see package embed).
type Identity struct {
	Name       string          `json:"name"`      // one token; it makes the inbox prefix
	PublicKey  string          `json:"publicKey"` // user nkey, U…
	Service    subject.Service `json:"service"`
	Connection string          `json:"connection,omitempty"` // id, for a service that belongs to one connection (vif)
}

// NewIdentity makes an identity and the seed that proves it. The seed goes into
// a Config and nowhere else.
func NewIdentity(name string, service subject.Service, connection string) (seed string, id Identity, err error) {
	if !subject.Valid(name) {
		return "", Identity{}, fmt.Errorf("make identity: %q is not a token", name)
	}
	if connection != "" && !subject.Valid(connection) {
		return "", Identity{}, fmt.Errorf("make identity %s: connection %q is not a token", name, connection)
	}
	if service == subject.VIF && connection == "" {
		return "", Identity{}, fmt.Errorf("make identity %s: vif belongs to a connection, none is given", name)
	}
	kp, err := nkeys.CreateUser()
	if err != nil {
		return "", Identity{}, fmt.Errorf("make identity %s: %w", name, err)
	}
	defer kp.Wipe()
	pub, err := kp.PublicKey()
	if err != nil {
		return "", Identity{}, fmt.Errorf("make identity %s: %w", name, err)
	}
	s, err := kp.Seed()
	if err != nil {
		return "", Identity{}, fmt.Errorf("make identity %s: %w", name, err)
	}
	return string(s), Identity{Name: name, PublicKey: pub, Service: service, Connection: connection}, nil
}

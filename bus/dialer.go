package bus

import (
	"net"

	"github.com/nats-io/nats.go"
)

// Via makes Connect reach the bus by a dialer of the caller's own, which also
// resolves the server's name, on reconnects too. vif needs it: the resolver of
// its container is itself.
func Via(d interface {
	Dial(network, address string) (net.Conn, error)
}) nats.Option {
	return func(o *nats.Options) error {
		o.CustomDialer, o.SkipHostLookup = d, true
		return nil
	}
}

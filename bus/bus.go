// Package bus is how a process of Berth speaks to the others: it asks
// (commands, request-reply), it states (facts, durable), it tails (facts and
// output, in order), and it shows that it lives (presence).
//
// The server is NATS, embedded in connector (package embed) or the user's own.
// Every process connects with a key of its own and may touch only its subjects;
// replies come to an inbox that no other identity may read.
//
//	conn, err := bus.Await(ctx, cfg)
//	defer conn.Close()
//	svc, err := conn.Serve(subject.Runner, version)
//	err = bus.Handle(svc, command.DaemonStart, "", r.startDaemon)
//	err = conn.State(ctx, id, event.DaemonStarted{Container: name})
//
// A connection that breaks is made again by itself; a bus that stays away for
// [GiveUp] is lost, and [Conn.Lost] says so: its server died with connector, and
// nothing can go on. Facts being stated and tails being read go on over a
// reconnect without loss and without repeats. Commands do not: who gets
// Unavailable sends the command again, which is harmless.
//
// All methods of Conn may be called concurrently.
package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// Names of the streams.
const (
	EventsStream = "EVENTS"
	OutputStream = "OUTPUT"
)

// Config says where the bus is and who calls. Its JSON is the content of
// ConfigFile in a service's container, mode 0600.
type Config struct {
	URL      string          `json:"url"`      // nats://host:port
	Seed     string          `json:"seed"`     // nkey seed of the identity
	Identity string          `json:"identity"` // its name, for people and for the inbox prefix
	Service  subject.Service `json:"service"`
}

// ConfigFile is where a service's container finds its Config.
const ConfigFile = "/etc/berth/bus.json"

// InboxPrefix is the prefix of an identity's reply subjects.
func InboxPrefix(identity string) string { return "_INBOX_" + identity }

// GiveUp is how long a bus may be away before it is lost.
const GiveUp = 10 * time.Second

// Conn is a connection to the bus.
type Conn struct {
	NC  *nats.Conn
	JS  jetstream.JetStream
	cfg Config

	lost     chan struct{}
	lostOnce sync.Once
	serves   atomic.Bool // others find it by subscriptions of its own

	mu      sync.Mutex
	away    *time.Timer        // runs while the bus is away
	epoch   context.Context    // ends with the next reconnect
	renew   context.CancelFunc // ends it
	refused map[*refusal]struct{}
}

// Connect connects, and from then on reconnects by itself. An unreachable bus
// is an Unavailable fault, a refused identity a PermissionDenied one. The
// handlers for errors, disconnects, reconnects and closing are Conn's own.
func Connect(ctx context.Context, cfg Config, opts ...nats.Option) (*Conn, error) {
	kp, err := nkeys.FromSeed([]byte(cfg.Seed))
	if err != nil {
		return nil, fmt.Errorf("parse the bus identity's seed: %w", err)
	}
	pub, err := kp.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("derive the bus identity's public key: %w", err)
	}
	deadline := 5 * time.Second
	if d, ok := ctx.Deadline(); ok {
		deadline = min(deadline, time.Until(d))
	}
	if err := ctx.Err(); err != nil || deadline <= 0 {
		return nil, fault.New(fault.Unavailable, "", "connect to the bus at %s: no time left", cfg.URL)
	}
	c := &Conn{cfg: cfg, lost: make(chan struct{}), refused: map[*refusal]struct{}{}}
	c.epoch, c.renew = context.WithCancel(context.Background())
	all := append([]nats.Option{
		nats.Name(cfg.Identity),
		nats.Nkey(pub, kp.Sign),
		nats.CustomInboxPrefix(InboxPrefix(cfg.Identity)),
		nats.Timeout(deadline),
		nats.ReconnectWait(250 * time.Millisecond),
		// A number of attempts would be no measure of time: one takes from a
		// millisecond (refused) to the whole time-out (container gone).
		nats.MaxReconnects(-1),
		nats.PingInterval(pingEvery(cfg.Service)),
		nats.MaxPingsOutstanding(2),
		nats.DrainTimeout(closeWithin),
		nats.IgnoreDiscoveredServers(),
	}, opts...)
	all = append(all,
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.onError(err) }),
		nats.DisconnectErrHandler(func(nc *nats.Conn, _ error) { c.onAway(nc) }),
		nats.ReconnectHandler(func(*nats.Conn) { c.onBack() }),
		nats.ClosedHandler(func(*nats.Conn) { c.onClosed() }),
	)
	c.NC, err = nats.Connect(cfg.URL, all...)
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fault.New(fault.PermissionDenied, "", "the bus at %s refused the identity %s", cfg.URL, cfg.Identity)
	case err != nil:
		return nil, fault.New(fault.Unavailable, "ctl status", "connect to the bus at %s: %v", cfg.URL, err)
	}
	if c.JS, err = jetstream.New(c.NC); err != nil {
		c.Close()
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	return c, nil
}

// pingEvery is how often the server is pinged; a silent cut is noticed in three times
// that. People wait for ctl, and its network may break; the services rest beside the
// server for most of their lives.
func pingEvery(s subject.Service) time.Duration {
	if s == subject.Ctl {
		return 5 * time.Second
	}
	return 20 * time.Second
}

// Await is Connect for a process that is started beside the bus: where the bus
// does not answer yet, it tries again until ctx ends, or for GiveUp if ctx has
// no deadline. A refused identity is given up at once.
func Await(ctx context.Context, cfg Config, opts ...nats.Option) (*Conn, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, GiveUp)
		defer cancel()
	}
	for {
		c, err := Connect(ctx, cfg, opts...)
		if err == nil || fault.CodeOf(err) != fault.Unavailable {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// onAway starts the clock of GiveUp. nats.go runs these callbacks one at a time,
// possibly before Connect has set NC.
func (c *Conn) onAway(nc *nats.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away == nil {
		c.away = time.AfterFunc(GiveUp, nc.Close)
	}
}

func (c *Conn) onBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away != nil {
		c.away.Stop()
		c.away = nil
	}
	c.renew()
	c.epoch, c.renew = context.WithCancel(context.Background())
}

func (c *Conn) onClosed() {
	c.mu.Lock()
	if c.away != nil {
		c.away.Stop()
	}
	c.renew()
	c.mu.Unlock()
	c.lostOnce.Do(func() { close(c.lost) })
}

// currentEpoch is a context that ends with the next reconnect, or when the bus
// is lost: whatever was under way then has to be looked at again.
func (c *Conn) currentEpoch() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

// Config is what the connection was made with.
func (c *Conn) Config() Config { return c.cfg }

// Lost is closed when the bus has been away for GiveUp, when it refuses the
// identity on a reconnect, or after Close. A service then undoes what it holds
// and ends.
func (c *Conn) Lost() <-chan struct{} { return c.lost }

// closeWithin bounds Close.
const closeWithin = 4 * time.Second

// Close drains what is under way and disconnects, within some seconds. Closing
// twice is harmless.
func (c *Conn) Close() {
	// Who has only asked has one subscription, that of the answers, and nothing to
	// drain; the client would look for it every ten milliseconds all the same.
	if c.NC.IsConnected() && !c.serves.Load() && c.NC.NumSubscriptions() <= 1 && c.NC.FlushTimeout(closeWithin) == nil {
		c.NC.Close()
	}
	if err := c.NC.Drain(); err != nil {
		c.NC.Close() // it is away, or closed
	}
	select {
	case <-c.lost:
	case <-time.After(closeWithin + time.Second):
		c.NC.Close()
		<-c.lost
	}
}

// Package bus is how a process of Berth speaks to the others: it asks
// (commands, request-reply), it states (facts, durable), it tails (facts and
// output, in order), and it shows that it lives (presence).
//
// The server is NATS, embedded in connector (package embed) or the user's own.
// Every process connects with a key of its own and may touch only its subjects;
// replies come to an inbox that no other identity may read.
//
//	conn, err := bus.Connect(ctx, cfg)
//	defer conn.Close()
//	svc, err := conn.Serve(subject.Runner, version)
//	err = bus.Handle(svc, command.DaemonStart, "", r.startDaemon)
//	err = conn.State(ctx, id, event.DaemonStarted{Container: name})
//
// All methods may be called concurrently.
package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
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

// Conn is a connection to the bus.
type Conn struct {
	NC   *nats.Conn
	JS   jetstream.JetStream
	cfg  Config
	lost chan struct{}
}

// Connect connects and reconnects by itself until Close. An unreachable bus is
// an Unavailable fault, a refused identity a PermissionDenied one.
func Connect(ctx context.Context, cfg Config, opts ...nats.Option) (*Conn, error) {
	kp, err := nkeys.FromSeed([]byte(cfg.Seed))
	if err != nil {
		return nil, fmt.Errorf("parse the bus identity's seed: %w", err)
	}
	pub, err := kp.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("derive the bus identity's public key: %w", err)
	}
	c := &Conn{cfg: cfg, lost: make(chan struct{})}
	deadline := 5 * time.Second
	if d, ok := ctx.Deadline(); ok {
		deadline = min(deadline, time.Until(d))
	}
	all := []nats.Option{
		nats.Name(cfg.Identity),
		nats.Nkey(pub, kp.Sign),
		nats.CustomInboxPrefix(InboxPrefix(cfg.Identity)),
		nats.Timeout(deadline),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.MaxReconnects(reconnects),
		nats.ClosedHandler(func(*nats.Conn) { close(c.lost) }),
	}
	c.NC, err = nats.Connect(cfg.URL, append(all, opts...)...)
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return nil, fault.New(fault.PermissionDenied, "", "the bus at %s refused the identity %s", cfg.URL, cfg.Identity)
	case err != nil:
		return nil, fault.New(fault.Unavailable, "ctl status", "connect to the bus at %s: %v", cfg.URL, err)
	}
	if c.JS, err = jetstream.New(c.NC); err != nil {
		c.NC.Close()
		return nil, fmt.Errorf("open jetstream: %w", err)
	}
	return c, nil
}

// reconnects is the number of attempts, four a second, after which a lost bus
// is given up: its server died with connector, and nothing can go on.
const reconnects = 40

// Lost is closed when the bus has been away for about ten seconds, or after
// Close. A service then undoes what it holds and ends.
func (c *Conn) Lost() <-chan struct{} { return c.lost }

// Close drains what is under way and disconnects.
func (c *Conn) Close() {
	if err := c.NC.Drain(); err != nil {
		c.NC.Close()
	}
	select {
	case <-c.lost:
	case <-time.After(5 * time.Second):
		c.NC.Close()
	}
}

// State states a fact about id and returns when the stream has it on disk.
func (c *Conn) State(ctx context.Context, id string, d event.Data) error {
	subj, env, err := event.New(id, d)
	if err != nil {
		return err
	}
	body, err := json.Marshal(env)
	if err != nil {
		return fmt.Errorf("marshal envelope of %s: %w", env.Type, err)
	}
	if _, err := c.JS.Publish(ctx, subj, body, jetstream.WithMsgID(env.ID)); err != nil {
		return fmt.Errorf("state %s: %w", env.Type, err)
	}
	return nil
}

// subjectOf is the subject of a command, or of its instance for a connection.
func subjectOf[Req, Rep any](s command.Spec[Req, Rep], connection string) string {
	if s.PerConnection {
		return subject.CommandTo(s.Service, s.Verb, connection)
	}
	return subject.Command(s.Service, s.Verb)
}

// Call sends a command and waits for its reply. connection is needed only for
// commands that are PerConnection. Faults come back as *fault.Error; a service
// that is not there is Unavailable.
func Call[Req, Rep any](ctx context.Context, c *Conn, s command.Spec[Req, Rep], connection string, req Req) (Rep, error) {
	var rep Rep
	body, err := json.Marshal(req)
	if err != nil {
		return rep, fmt.Errorf("marshal %s: %w", s.Verb, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
	}
	msg, err := c.NC.RequestWithContext(ctx, subjectOf(s, connection), body)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return rep, fault.New(fault.Unavailable, "ctl status", "%s does not run", s.Service)
	case err != nil:
		return rep, fault.New(fault.Unavailable, "ctl status", "%s did not answer %s: %v", s.Service, s.Verb, err)
	}
	if msg.Header.Get(faultHeader) != "" {
		f := new(fault.Error)
		if err := json.Unmarshal(msg.Data, f); err != nil {
			return rep, fmt.Errorf("read the fault that %s answered %s with: %w", s.Service, s.Verb, err)
		}
		return rep, f
	}
	if err := json.Unmarshal(msg.Data, &rep); err != nil {
		return rep, fmt.Errorf("read the reply of %s to %s: %w", s.Service, s.Verb, err)
	}
	return rep, nil
}

// Hold answers on the presence subject of id until the returned function is
// called or the process ends. See subject.Live.
func (c *Conn) Hold(s subject.Service, id string) (release func(), err error) {
	sub, err := c.NC.Subscribe(subject.Live(s, id), func(m *nats.Msg) { _ = m.Respond(nil) })
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", id, err)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

// Gone reports whether the holder of a presence subject is proven to be gone.
// No answer in time proves nothing and is false.
func (c *Conn) Gone(ctx context.Context, live string) bool {
	_, err := c.NC.RequestWithContext(ctx, live, nil)
	return errors.Is(err, nats.ErrNoResponders)
}

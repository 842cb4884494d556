// Package engagement is one engagement as the ctl that asked for it sees it: it
// asks, follows the facts to the terminal one, and asks for the end.
//
// While it is open, ctl holds the presence of its id: a ctl that is killed is
// gone from the bus, and connector ends the engagement. A Session's methods may
// be called concurrently.
package engagement

import (
	"context"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"
)

// Session is an engagement that was asked for.
type Session struct {
	conn     *bus.Conn
	id       string
	tail     *bus.Tail
	release  func()
	see      func(event.Envelope)
	prepared chan event.WorkloadPrepared
	created  chan event.HandlerCreated
	switched chan Switched
	active   chan event.EngagementActive
	ended    chan struct{}

	mu      sync.Mutex
	opened  bool // accepted, or not known to be refused
	last    event.Envelope
	err     error // why there is no terminal fact
	closing bool
	stopped bool   // connector was
	handler string // its container's ID
}

// New prepares an engagement; nothing is asked for yet. see is given every fact.
func New(conn *bus.Conn, see func(event.Envelope)) *Session {
	return &Session{
		conn: conn, id: busclient.NewID("e"), see: see,
		switched: make(chan Switched, 1),
		prepared: make(chan event.WorkloadPrepared, 1),
		created:  make(chan event.HandlerCreated, 1), active: make(chan event.EngagementActive, 1), ended: make(chan struct{}),
	}
}

// ID is the engagement's.
func (s *Session) ID() string { return s.id }

// openWithin is longer than connector takes at most to accept or to refuse.
const openWithin = 30 * time.Second

// Open asks for the engagement. An error whose code is Unavailable leaves open
// whether it was accepted; any other says that it was refused, and that nothing
// was touched.
func (s *Session) Open(ctx context.Context, req command.OpenEngagement) error {
	// Both stand before the command goes out: no fact is missed, and the holder
	// lives before anybody looks for it.
	var err error
	if s.tail, err = s.conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Engagement, s.id)); err != nil {
		return err
	}
	if s.release, err = s.conn.Hold(subject.Ctl, s.id); err != nil {
		s.tail.Stop()
		return err
	}
	req.ID, req.Holder = s.id, subject.Live(subject.Ctl, s.id)
	// Not cut short by ctx: accepted or refused has to be known.
	answer, cancel := context.WithTimeout(context.WithoutCancel(ctx), openWithin)
	defer cancel()
	_, err = bus.Call(answer, s.conn, command.EngagementOpen, "", req)
	if err != nil && fault.CodeOf(err) != fault.Unavailable {
		s.release()
		s.tail.Stop()
		return err
	}
	s.mu.Lock()
	s.opened = true // an answer that did not come in time may have been yes
	s.mu.Unlock()
	go s.follow(context.WithoutCancel(ctx))
	return err
}

// Prepared waits until the workload is, from when on its environment is known.
// ctx ends the wait, not the engagement: see Close.
func (s *Session) Prepared(ctx context.Context) (event.WorkloadPrepared, error) {
	return await(ctx, s, s.prepared, "its workload was prepared")
}

// Created waits until the handler has been created.
func (s *Session) Created(ctx context.Context) (event.HandlerCreated, error) {
	return await(ctx, s, s.created, "its handler was created")
}

// Active waits until the engagement is.
func (s *Session) Active(ctx context.Context) (event.EngagementActive, error) {
	return await(ctx, s, s.active, "it became active")
}

// Switched is how a switch of handlers ended: one of the two is set.
type Switched struct {
	To     *event.HandlerSwitched
	Failed *event.SwitchFailed
}

// Switch asks for another handler in the place of the engagement's. An error
// says that it was refused, and that the one there is was not touched.
func (s *Session) Switch(ctx context.Context, handler command.Handler) error {
	drop(s.created)
	drop(s.switched)
	_, err := bus.Call(ctx, s.conn, command.EngagementSwitch, "", command.SwitchHandler{Engagement: s.id, Handler: handler})
	return err
}

// NextCreated is Created for the handler of a switch. Where that fails first,
// it is a fault; SwitchEnd tells so then too.
func (s *Session) NextCreated(ctx context.Context) (event.HandlerCreated, error) {
	select {
	case o := <-s.switched:
		offer(s.switched, o)
		if o.Failed != nil {
			return event.HandlerCreated{}, &o.Failed.Error
		}
	case c := <-s.created:
		return c, nil
	case <-s.ended:
	case <-ctx.Done():
	}
	return await(ctx, s, s.created, "the next handler was created")
}

// SwitchEnd waits until the switch has come about or failed.
func (s *Session) SwitchEnd(ctx context.Context) (Switched, error) {
	return await(ctx, s, s.switched, "the handlers were switched")
}

// await waits for a fact that follow hands over, or the engagement's end.
func await[T any](ctx context.Context, s *Session, fact <-chan T, what string) (T, error) {
	var none T
	select {
	case f := <-fact:
		return f, nil
	case <-s.ended:
		if err := s.Outcome(); err != nil {
			return none, err
		}
		return none, fault.New(fault.FailedPrecondition, "ctl status", "the engagement ended before %s", what)
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// drop drops what nobody has taken.
func drop[T any](c <-chan T) {
	select {
	case <-c:
	default:
	}
}

// offer hands over a fact that is awaited; one that is stated twice counts once.
func offer[T any](to chan<- T, fact T) {
	select {
	case to <- fact:
	default:
	}
}

func (s *Session) follow(ctx context.Context) {
	defer close(s.ended)
	defer s.tail.Stop()
	defer s.release()
	last, err := busclient.Terminal(ctx, s.conn, s.tail, func(e event.Envelope) {
		s.see(e)
		if c, ok := event.Decode[event.HandlerCreated](e); ok {
			s.mu.Lock()
			s.handler = c.ContainerID
			s.mu.Unlock()
			offer(s.created, c)
		}
		if r, ok := event.Decode[event.Restoring](e); ok {
			s.mu.Lock()
			s.stopped = r.Cause == event.ConnectorStopped
			s.mu.Unlock()
		}
		if f, ok := event.Decode[event.WorkloadPrepared](e); ok {
			offer(s.prepared, f)
		}
		if f, ok := event.Decode[event.HandlerSwitched](e); ok {
			offer(s.switched, Switched{To: &f})
		}
		if f, ok := event.Decode[event.SwitchFailed](e); ok {
			offer(s.switched, Switched{Failed: &f})
		}
		if f, ok := event.Decode[event.EngagementActive](e); ok {
			offer(s.active, f)
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.err = last, err
}

// Opened reports whether there may be something to end.
func (s *Session) Opened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// Handler is the ID of the handler's container, "" if none has been created.
func (s *Session) Handler() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handler
}

// Ended is closed when the terminal fact has come, or the bus is lost.
func (s *Session) Ended() <-chan struct{} { return s.ended }

// Start asks for the handler's start.
func (s *Session) Start(ctx context.Context) error {
	_, err := bus.Call(ctx, s.conn, command.HandlerStart, "", command.EngagementRef{Engagement: s.id})
	return err
}

// Close asks for the end, once; Ended tells when it has come.
func (s *Session) Close(ctx context.Context, cause string) error {
	s.mu.Lock()
	again := s.closing || !s.opened
	s.closing = true
	s.mu.Unlock()
	if again {
		return nil
	}
	_, err := bus.Call(ctx, s.conn, command.EngagementClose, "", command.CloseEngagement{ID: s.id, Cause: cause})
	return err
}

// Stopped reports whether the engagement ends because its connector was stopped,
// which nobody who looks at the engagement has asked for.
func (s *Session) Stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// Outcome is what the end was: nil where the workload is restored as it should
// be, else the fault. It is to be asked after Ended.
func (s *Session) Outcome() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if f, ok := event.Decode[event.EngagementFailed](s.last); ok {
		return &f.Error
	}
	return nil
}

package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"time"

	"berth.dev/bus/fault"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrStopped is returned by a tail that was stopped.
var ErrStopped = errors.New("the tail was stopped")

// reader reads a stream in order, each message once. It is what nats.go's
// ordered consumer is, but for this: it ends when its context does and when the
// bus is lost, also while the server is away, and goes on as soon as the
// connection is back.
//
// The consumer at the server lives in memory and may vanish (restart, a reader
// that was slow for long); the reader then makes another, which begins after
// the last message that was handed out.
type reader struct {
	conn   *Conn
	stream string
	filter []string
	since  time.Time

	life context.Context // ends with stop
	end  context.CancelFunc

	mu        sync.Mutex // held by next throughout; stop ends life first
	iter      jetstream.MessagesContext
	name      string          // of the consumer
	epoch     context.Context // in which it was made
	delivered uint64          // its sequence of deliveries
	last      uint64          // stream sequence of the last message handed out
	pending   uint64
}

// read opens a reader. It stands when read returns.
func (c *Conn) read(ctx context.Context, stream string, since time.Time, filter []string) (*reader, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, GiveUp+5*time.Second)
		defer cancel()
	}
	r := &reader{conn: c, stream: stream, filter: slices.Clone(filter), since: since}
	r.life, r.end = context.WithCancel(context.Background())
	if err := r.reopen(ctx); err != nil {
		r.end()
		return nil, err
	}
	return r, nil
}

// open makes the consumer and begins to pull from it.
func (r *reader) open(ctx context.Context) error {
	name := "tail-" + rand.Text()
	cfg := jetstream.ConsumerConfig{
		Name:              name,
		FilterSubjects:    r.filter,
		AckPolicy:         jetstream.AckNonePolicy,
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		InactiveThreshold: 5 * time.Minute,
		MemoryStorage:     true,
		Replicas:          1,
	}
	switch {
	case r.last > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.last+1
	case !r.since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &r.since
	}
	epoch := r.conn.currentEpoch()
	rctx, done := r.conn.watchRefusal(ctx, "$JS.API.CONSUMER.CREATE."+r.stream+"."+name)
	defer done()
	cons, err := r.conn.JS.CreateConsumer(rctx, r.stream, cfg)
	if err = refusedOr(rctx, err); err != nil {
		return err
	}
	iter, err := cons.Messages(
		jetstream.PullMaxMessages(128),
		// Seldom: a tail that rests costs both ends as much as one that is read. What
		// is found by a missing heartbeat alone is a consumer that vanished unsaid.
		jetstream.PullExpiry(2*time.Minute),
		jetstream.PullHeartbeat(10*time.Second),
		jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return err
	}
	r.iter, r.name, r.epoch, r.delivered = iter, name, epoch, 0
	r.pending = cons.CachedInfo().NumPending
	return nil
}

// next waits for the next message.
func (r *reader) next(ctx context.Context) (jetstream.Msg, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(r.life, func() { cancel(ErrStopped) })()
	for {
		if r.life.Err() != nil { // ctx hears of it a little later
			return nil, ErrStopped
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if r.iter != nil && r.epoch.Err() != nil {
			r.drop() // what it had fetched is fetched again
		}
		if r.iter == nil {
			if err := r.reopen(ctx); err != nil {
				return nil, err
			}
		}
		msg, md, err := r.nextOf(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil, md.Sequence.Consumer != r.delivered+1:
			r.drop()
			continue
		}
		r.delivered, r.last, r.pending = md.Sequence.Consumer, md.Sequence.Stream, md.NumPending
		return msg, nil
	}
}

// nextOf is the consumer's next message, or an error when it is of no more use.
func (r *reader) nextOf(ctx context.Context) (jetstream.Msg, *jetstream.MsgMetadata, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.epoch, cancel)()
	msg, err := r.iter.Next(jetstream.NextContext(ctx))
	if err != nil {
		return nil, nil, err
	}
	md, err := msg.Metadata()
	return msg, md, err
}

// reopen opens until it succeeds, ctx ends or the bus is lost: what was asked for, or
// its answer, goes down with a connection that is made anew. The first time it also
// ends when the server refuses.
func (r *reader) reopen(ctx context.Context) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		stop := context.AfterFunc(r.conn.currentEpoch(), cancel)
		err := r.open(attempt)
		stop()
		cancel()
		if err == nil {
			return nil
		}
		if f := (*fault.Error)(nil); errors.As(err, &f) {
			return f
		}
		if api := (*jetstream.APIError)(nil); r.name == "" && errors.As(err, &api) && api.Code < 500 {
			return err
		}
		select {
		case <-r.conn.lost:
			return fault.New(fault.Unavailable, "ctl status", "the bus is lost")
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// drop lets go of the consumer. At the server it dies of inactivity.
func (r *reader) drop() {
	r.iter.Stop()
	r.iter = nil
}

// stop ends the reader, also one that waits, and removes its consumer.
func (r *reader) stop() {
	r.end()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.iter == nil {
		return
	}
	r.drop()
	if r.conn.NC.IsConnected() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = r.conn.JS.DeleteConsumer(ctx, r.stream, r.name) // else it dies of inactivity
	}
}

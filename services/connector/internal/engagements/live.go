package engagements

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/lease"
	"berth.dev/services/connector/internal/cluster"
	"berth.dev/services/connector/internal/engage"
	"berth.dev/services/connector/internal/inbox"
	"berth.dev/services/connector/internal/presence"
)

// Limits of what is the manager's to do. It has limits of its own, and says what
// failed; these are for a manager that is gone.
const (
	prepareWithin = 5 * time.Minute
	divertWithin  = 2 * time.Minute
)

// undoWithin is how long the undoing may take before the rest is left to the
// lease.
const undoWithin = 60 * time.Second

// plan is what an engagement was found to be when it was opened.
type plan struct {
	req         command.OpenEngagement
	conn        Connection
	spec        lease.EngagementSpec
	ports       []event.Port
	handlerName string
	forwarded   bool     // see command.CheckedHandler
	volumes     *volumes // nil: none are mounted
	secrets     *review  // nil: the container has none
	ref         cluster.Ref
	version     string // of the Lease, where its watch begins
}

// Live is one engagement. Its own goroutine is run; everybody else puts inputs
// and reads records.
type Live struct {
	w    World
	plan plan
	log  *slog.Logger
	in   *inbox.Inbox[engage.Input]
	over chan struct{} // closed after the terminal fact

	forward context.Context // what goes forward; ends when the undoing begins
	stop    context.CancelFunc
	todo    *inbox.Inbox[task] // of the worker, in order
	work    sync.WaitGroup     // the worker, renewal, presence
	life    context.Context    // the watch and the undoing; ends after the terminal fact
	end     context.CancelFunc
	undoing sync.WaitGroup

	mu        sync.Mutex
	state     engage.State
	told      bool             // its terminal fact is stated, or about to be: whoever hears of it asks in vain for a record
	handler   *command.Handler // what runs, or is to
	switching bool             // a switch was accepted, and is not over
	ended     chan struct{}    // closed when runner has told that the handler ended
}

// task is a command that goes forward. Those of a switch that has failed, or of
// the handler before it, are not done any more.
type task struct {
	do         engage.Do
	generation int
}

func newLive(w World, p plan, s engage.State) *Live {
	l := &Live{
		w: w, plan: p, state: s, in: inbox.New[engage.Input](), todo: inbox.New[task](), handler: p.req.Handler,
		over: make(chan struct{}), ended: make(chan struct{}),
		log: w.Log.With("engagement", s.ID, "connection", p.conn.ID),
	}
	l.forward, l.stop = context.WithCancel(context.Background())
	l.life, l.end = context.WithCancel(context.Background())
	return l
}

// Record is the engagement as state-get shows it.
func (l *Live) Record() command.Engagement {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Record()
}

// isOver reports whether there is no engagement any more.
func (l *Live) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

func (l *Live) put(in engage.Input) {
	if in.At.IsZero() {
		in.At = time.Now()
	}
	l.in.Put(in)
}

// run is the engagement's life, from its Lease to its terminal fact. Every
// goroutine of it has ended when it returns.
func (l *Live) run() {
	defer close(l.over)
	l.work.Go(l.worker)
	l.work.Go(l.renew)
	if h := l.plan.req.Holder; h != "" {
		l.work.Go(func() {
			if presence.Watch(l.forward, l.w.Bus, h, presence.Every) {
				l.put(engage.Input{On: engage.EndAsked, Cause: "client gone"})
			}
		})
	}
	l.undoing.Go(l.watchLease)
	stalled := l.failIfStill(engage.Requested, prepareWithin, "prepared the workload")
	defer stalled.Stop()
	for {
		in, err := l.in.Get(context.Background())
		if err != nil || l.take(in) == engage.Over {
			break
		}
	}
	l.stop()
	l.end()
	l.work.Wait()
	l.undoing.Wait()
}

// take decides about one input and carries the decision out.
func (l *Live) take(in engage.Input) engage.Stage {
	l.mu.Lock()
	was := l.state.Stage
	next, say, do, known := l.state.Next(in)
	if was == engage.Switching && next.Stage != engage.Switching {
		l.switching = false
	}
	if known && in.On == engage.SwitchAsked {
		l.ended = make(chan struct{})
	}
	if next.Stage != engage.Over { // its record is what it was until nobody has it any more
		l.state = next
	}
	l.told = next.Stage == engage.Over
	l.mu.Unlock()
	if known {
		l.log.Debug("engagement", "on", in.On, "stage", next.Stage)
	}
	if next.Stage == engage.Running && was != engage.Running {
		stalled := l.failIfStill(engage.Running, divertWithin, "brought the traffic to the handler")
		context.AfterFunc(l.life, func() { stalled.Stop() })
	}
	if next.Stage == engage.Vacant && was != engage.Vacant {
		l.endIfVacant(next)
	}
	if (in.On == engage.HandlerExited || in.On == engage.HandlerFailed) && (in.ID == "" || in.ID != next.Old) {
		l.handlerEnded()
	}
	if d := next.Fact(say); d != nil {
		l.tell(d)
	}
	switch {
	case !was.Ending() && next.Stage.Ending():
		l.stop()
		l.undoing.Go(func() { l.undo(do) })
		limit := time.AfterFunc(undoWithin, func() { l.put(engage.Input{On: engage.TimeOver}) })
		context.AfterFunc(l.life, func() { limit.Stop() })
	case next.Stage.Ending():
		for _, d := range do { // what comes late
			l.undoing.Go(func() { l.insist(d) })
		}
	default:
		for _, d := range do {
			l.todo.Put(task{d, next.Generation})
		}
	}
	return next.Stage
}

// failIfStill fails the engagement when it stands where it stands for too long.
func (l *Live) failIfStill(at engage.Stage, limit time.Duration, what string) *time.Timer {
	return time.AfterFunc(limit, func() {
		if l.snapshot().Stage == at {
			l.put(engage.Input{On: engage.CommandFailed, Error: fault.New(fault.Unavailable, "ctl doctor",
				"the manager has not %s in %v", what, limit)})
		}
	})
}

// vacantWithin is how long a switch that has failed may be tried again.
const vacantWithin = 60 * time.Second

// endIfVacant ends the engagement when nobody brings another handler.
func (l *Live) endIfVacant(s engage.State) {
	t := time.AfterFunc(vacantWithin, func() {
		if now := l.snapshot(); now.Stage == engage.Vacant && now.Generation == s.Generation {
			l.put(engage.Input{On: engage.CommandFailed, Error: s.Vacancy})
		}
	})
	context.AfterFunc(l.life, func() { t.Stop() })
}

func (l *Live) handlerEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.ended:
	default:
		close(l.ended)
	}
}

// tell states a fact. The bus is in this process: what fails is tried again a
// few times, since a terminal fact must not be lost.
func (l *Live) tell(d event.Data) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		err := l.w.Bus.State(ctx, l.plan.req.ID, d)
		if err == nil {
			return
		}
		l.log.Error("a fact could not be stated", "fact", event.TypeOf(d), "err", err)
		select {
		case <-time.After(250 * time.Millisecond):
		case <-l.w.Bus.Lost():
			return
		case <-ctx.Done():
			return
		}
	}
}

// renew keeps the Lease until the undoing begins: from then on it may run out,
// which restores the workload as well.
func (l *Live) renew() {
	tick := time.NewTicker(lease.RenewEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.forward.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(l.forward, lease.RenewEvery)
		err := l.plan.conn.Cluster.Renew(ctx, l.plan.ref)
		cancel()
		// A Lease that is gone is the watch's to tell.
		if err != nil && l.forward.Err() == nil && fault.CodeOf(err) != fault.NotFound {
			l.log.Warn("the engagement's lease is not renewed", "err", err)
		}
	}
}

// snapshot is the state now.
func (l *Live) snapshot() engage.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	s.Ports = slices.Clone(s.Ports)
	return s
}

package connections

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
	"berth.dev/services/connector/internal/connection"
	"berth.dev/services/connector/internal/inbox"
)

// Live is one connection. Its own goroutine is run; everybody else puts inputs
// and reads records.
type Live struct {
	w   World
	req command.OpenConnection
	log *slog.Logger

	// Cluster and Link are the connection's ways to the cluster, for engagements.
	Cluster *cluster.Cluster
	Link    Link

	in      *inbox.Inbox[connection.Input]
	forward context.Context // what goes forward; ends when the undoing begins
	stop    context.CancelFunc
	work    sync.WaitGroup  // goroutines of what goes forward
	undoing context.Context // the undoing; ends only when it is given up
	giveUp  context.CancelFunc
	turns   chan struct{} // of the Set; a send takes a turn
	settled chan struct{} // closed when it is up, or is being undone
	settle  func()

	mu     sync.Mutex
	state  connection.State
	over   bool           // its terminal fact is stated, or about to be: whoever hears of it asks in vain for a record
	info   lease.Info     // the manager's, once read
	access command.Access // for the tunnel
	lease  cluster.Ref    // once created
}

func newLive(w World, req command.OpenConnection, options string, c *cluster.Cluster, lk Link, turns chan struct{}) *Live {
	l := &Live{
		w: w, req: req, Cluster: c, Link: lk, turns: turns, settled: make(chan struct{}), in: inbox.New[connection.Input](),
		log: w.Log.With("connection", req.ID),
		state: connection.Begin(req.ID, event.ConnectionRequested{
			Name: req.Name, Context: req.Context, Namespace: req.Namespace, Server: req.Server,
		}, options, time.Now()),
	}
	l.forward, l.stop = context.WithCancel(context.Background())
	l.undoing, l.giveUp = context.WithCancel(context.Background())
	l.settle = sync.OnceFunc(func() { close(l.settled) })
	return l
}

// Request is what the connection was opened with.
func (l *Live) Request() command.OpenConnection { return l.req }

// Record is the connection as state-get shows it.
func (l *Live) Record() command.Connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Record()
}

// isOver reports whether there is no connection any more.
func (l *Live) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// Manager is what the manager publishes of itself; zero until it was read.
func (l *Live) Manager() lease.Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.info
}

func (l *Live) put(in connection.Input) {
	if in.At.IsZero() {
		in.At = time.Now()
	}
	l.in.Put(in)
}

func (l *Live) fail(stage event.Stage, err error) {
	l.put(connection.Input{On: connection.CommandFailed, Error: fault.At(string(stage), err)})
}

// run is the connection's life, from its turn to come up to its terminal fact.
func (l *Live) run() {
	defer l.giveUp()
	defer l.stop()
	defer l.settle()
	l.work.Go(l.comeUp)
	for {
		in, err := l.in.Get(context.Background())
		if err != nil {
			return
		}
		if l.take(in) == connection.Over {
			return
		}
	}
}

// comeUp waits for its turn, starts both tracks and keeps the turn until they have
// come to an end, or it took too long.
func (l *Live) comeUp() {
	select {
	case l.turns <- struct{}{}:
		defer func() { <-l.turns }()
	case <-l.settled:
		return
	}
	l.work.Go(l.startDaemon)
	l.work.Go(l.checkCluster)
	over := time.NewTimer(ConnectWithin)
	defer over.Stop()
	select {
	case <-over.C:
		l.put(connection.Input{On: connection.TimeOver})
		<-l.settled
	case <-l.settled:
	}
}

// take decides about one input and carries the decision out.
func (l *Live) take(in connection.Input) connection.Stage {
	l.mu.Lock()
	next, say, do, known := l.state.Next(in)
	// A fact comes before what it says can be seen in a record, but for the
	// last one, after which there is none.
	if next.Stage != connection.Over {
		l.state = next
	}
	l.over = next.Stage == connection.Over
	l.mu.Unlock()
	if known {
		l.log.Debug("connection", "on", in.On, "stage", next.Stage)
	}
	if d := next.Fact(say); d != nil {
		l.tell(d)
	}
	if next.Stage == connection.Connected || next.Stage.Ending() {
		l.settle()
	}
	l.carryOut(do)
	return next.Stage
}

// tell states a fact. The bus is in this process: what fails is tried again a
// few times, since a terminal fact must not be lost.
func (l *Live) tell(d event.Data) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		err := l.w.Bus.State(ctx, l.req.ID, d)
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

// carryOut sends a row's commands, all at once: none needs what another brings
// about.
func (l *Live) carryOut(do []connection.Do) {
	if slices.Contains(do, connection.Undo) {
		l.stop()
		go l.undo()
		return
	}
	for _, d := range do {
		l.work.Go(func() {
			switch d {
			case connection.CreateLease:
				if err := l.createLease(); err != nil {
					l.fail(event.StageManager, err)
				}
			case connection.OpenTunnel:
				if err := l.openTunnel(); err != nil {
					l.fail(event.StageTunnel, err)
				}
			case connection.Watch:
				l.watchHealth()
			}
		})
	}
}

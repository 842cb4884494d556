package build

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"berth.dev/bus/buildstream"
	"berth.dev/bus/event"
	"berth.dev/services/builder/internal/remote"
)

// teller tells what happens in a build: to the caller's stream, as it happens;
// as plain lines to the stream OUTPUT; as facts to the stream EVENTS. Facts are
// stated by a goroutine of its own, in order, since each waits for a disk.
type teller struct {
	id    string
	out   Output
	state func(ctx context.Context, id string, d event.Data)
	facts chan event.Data
	done  chan struct{}

	mu    sync.Mutex
	peer  *remote.Peer
	steps []*step
	keys  map[string]*step
	bad   *step // that failed
}

type step struct {
	n     int
	name  string
	begun time.Time
	over  bool
	last  []string // lines of its output
}

// lastLines is how many lines of the failed step a fact carries, of at most
// lineLength bytes: facts are small.
const (
	lastLines  = 40
	lineLength = 1000
)

func newTeller(id string, state func(context.Context, string, event.Data), out Output) *teller {
	t := &teller{id: id, out: out, state: state, facts: make(chan event.Data, 64), done: make(chan struct{}), keys: map[string]*step{}}
	go func() {
		defer close(t.done)
		for d := range t.facts {
			ctx, cancel := context.WithTimeout(context.Background(), stateWithin)
			state(ctx, id, d)
			cancel()
		}
	}()
	return t
}

// to tells p from now on.
func (t *teller) to(p *remote.Peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peer = p
}

func (t *teller) fact(_ context.Context, d event.Data) { t.facts <- d }

// close waits until everything has been told.
func (t *teller) close(ctx context.Context) {
	close(t.facts)
	<-t.done
	_ = t.out.Close(ctx)
}

func (t *teller) say(p buildstream.Progress) {
	if t.peer != nil {
		t.peer.Tell(p)
	}
	_, _ = t.out.Write([]byte(p.Plain()))
}

func (t *teller) notice(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.say(buildstream.Progress{State: buildstream.Line, Text: fmt.Sprintf(format, args...)})
}

// begin tells of a step, which key stands for from now on; once for each.
func (t *teller) begin(key, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys[key] != nil {
		return
	}
	s := &step{n: len(t.steps) + 1, name: name, begun: time.Now()}
	t.steps = append(t.steps, s)
	t.keys[key] = s
	t.say(buildstream.Progress{State: buildstream.Begun, Step: s.n, Name: name})
}

// line tells of output. What belongs to no step is of the whole build.
func (t *teller) line(key, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := buildstream.Progress{State: buildstream.Line, Text: text}
	if s := t.keys[key]; s != nil {
		p.Step = s.n
		for l := range strings.Lines(text) {
			l = strings.ToValidUTF8(strings.TrimRight(l, "\r\n"), "?")
			s.last = append(s.last, l[:min(len(l), lineLength)])
		}
		s.last = s.last[max(0, len(s.last)-lastLines):]
	}
	t.say(p)
}

// end tells that a step is over; failure says why it failed.
func (t *teller) end(key string, cached bool, took time.Duration, failure string) {
	t.mu.Lock()
	s := t.keys[key]
	if s == nil || s.over {
		t.mu.Unlock()
		return
	}
	s.over = true
	if took == 0 {
		took = time.Since(s.begun)
	}
	p := buildstream.Progress{State: buildstream.Ended, Step: s.n, Name: s.name, Millis: took.Milliseconds()}
	switch {
	case failure != "":
		p.State, p.Text = buildstream.Broken, failure
		t.bad = s
	case cached:
		p.State = buildstream.Cached
	}
	t.say(p)
	t.mu.Unlock()
	t.facts <- event.BuildStep{Step: s.n, Name: s.name, Cached: cached, Failed: failure != "", Millis: p.Millis}
}

// broken is the step that failed, and its last output.
func (t *teller) broken() (name string, output []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bad == nil {
		return "", nil
	}
	return t.bad.name, t.bad.last
}

package engine

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// Watch follows the engine's events about this workspace's containers. It
// remembers how the last few hundred ended, which with AutoRemove nobody can
// ask the engine afterwards, and calls Changed when something may have become
// nobody's.
//
// The engine keeps some 256 past events: a runner that was away learns from
// them what it missed (see [Watch.DiedOf]), unless the engine was restarted too.
type Watch struct {
	e       *Engine
	changed func()

	mu    sync.Mutex
	next  chan struct{} // closed at the next event: a broadcast
	died  []death       // oldest first, at most keepDeaths
	oom   map[string]bool
	since string // where to resume, as the API wants it
}

type death struct {
	id, engagement string
	exit           Exit
}

const keepDeaths = 512

// NewWatch returns a watch that calls changed (from one goroutine; it must not
// block) after a container has ended or been removed, and after the stream of
// events was interrupted.
func (e *Engine) NewWatch(changed func()) *Watch {
	return &Watch{
		e: e, changed: changed, next: make(chan struct{}), oom: map[string]bool{},
		since: strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10),
	}
}

// Run follows the events until ctx ends. ready is called once the stream is
// open for the first time and what was kept of the past has been asked for.
func (w *Watch) Run(ctx context.Context, ready func()) {
	level := slog.LevelWarn
	for ctx.Err() == nil {
		seen := w.since
		msgs, errs := w.e.API.Events(ctx, events.ListOptions{Since: w.since, Filters: w.filter()})
		if ready != nil {
			ready()
			ready = nil
		}
		err := w.follow(ctx, msgs, errs)
		if ctx.Err() != nil {
			return
		}
		// Once per interruption: an engine that stays away would fill the log.
		w.e.Log.Log(ctx, level, "the stream of engine events broke off", "err", err)
		if level = slog.LevelDebug; w.since != seen {
			level = slog.LevelWarn
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
		w.changed()
	}
}

func (w *Watch) filter() filters.Args {
	f := w.e.filter()
	f.Add("type", string(events.ContainerEventType))
	for _, a := range []events.Action{events.ActionDie, events.ActionOOM, events.ActionDestroy} {
		f.Add("event", string(a))
	}
	return f
}

func (w *Watch) follow(ctx context.Context, msgs <-chan events.Message, errs <-chan error) error {
	for {
		select {
		case m := <-msgs:
			w.see(m)
		case err := <-errs:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *Watch) see(m events.Message) {
	w.mu.Lock()
	w.since = time.Unix(0, m.TimeNano+1).UTC().Format(time.RFC3339Nano)
	switch m.Action {
	case events.ActionOOM:
		w.oom[m.Actor.ID] = true
	case events.ActionDie:
		code, err := strconv.Atoi(m.Actor.Attributes["exitCode"])
		engagement := "" // what else belongs to one says nothing about how its handler ended
		if m.Actor.Attributes[LabelComponent] == Handler {
			engagement = m.Actor.Attributes[LabelEngagement]
		}
		w.died = append(w.died, death{m.Actor.ID, engagement, Exit{Code: code, Unknown: err != nil, OOM: w.oom[m.Actor.ID]}})
		if len(w.died) > keepDeaths {
			w.died = append([]death(nil), w.died[1:]...)
		}
		delete(w.oom, m.Actor.ID)
	}
	close(w.next)
	w.next = make(chan struct{})
	w.mu.Unlock()
	w.changed()
}

// Died returns how a container ended, waiting for the event for up to patience.
func (w *Watch) Died(ctx context.Context, id string, patience time.Duration) (Exit, bool) {
	return w.find(ctx, patience, func(d death) bool { return d.id == id })
}

// DiedOf returns how an engagement's handler ended, as far as the engine remembers.
func (w *Watch) DiedOf(ctx context.Context, engagement string, patience time.Duration) (Exit, bool) {
	return w.find(ctx, patience, func(d death) bool { return d.engagement == engagement })
}

func (w *Watch) find(ctx context.Context, patience time.Duration, is func(death) bool) (Exit, bool) {
	timeout := time.After(patience)
	for {
		w.mu.Lock()
		next := w.next
		for i := len(w.died) - 1; i >= 0; i-- {
			if is(w.died[i]) {
				x := w.died[i].exit
				w.mu.Unlock()
				return x, true
			}
		}
		w.mu.Unlock()
		select {
		case <-next:
		case <-timeout:
			return Exit{}, false
		case <-ctx.Done():
			return Exit{}, false
		}
	}
}

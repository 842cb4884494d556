package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/engagement"
	"berth.dev/ctl/internal/handlerrun"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/render"
	"berth.dev/ctl/internal/workspace"
	"berth.dev/lease"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"golang.org/x/term"
)

// engage makes the engagement and sees to its handler, up to the terminal fact.
func (a *App) engage(ctx context.Context, workload string, f *engageFlags, args []string) error {
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	rec, err := choose(s.state.Connections, a.use)
	if err != nil {
		return err
	}
	h := &handling{app: a, s: s, daemon: rec.Daemon, message: f.message, until: f.wait, start: time.Now(), ran: make(chan struct{}), ready: make(chan struct{}), ask: func() {}, kill: func() {}}
	h.eng, h.workload = engagement.New(s.conn, h.see), workload
	args, err = f.fitHost(s.at, args)
	if err != nil {
		return err
	}
	req := f.request(rec.ID, workload)
	switch {
	case !f.inContainer() && len(args) > 0:
		if err := h.local(ctx, req, f, args); err != nil {
			return err
		}
		return h.wait(ctx)
	case !f.inContainer():
		h.hold(ctx, req, f)
		return h.wait(ctx)
	}
	if h.docker, err = s.docker(ctx); err != nil {
		return err
	}
	if f.build.watch {
		return h.watch(ctx, req, f, args)
	}
	if f.build.given() {
		// Nothing of the cluster is touched by a build that fails.
		if args, _, err = a.built(ctx, s, &f.build, h.eng.ID(), args); err != nil {
			return err
		}
	}
	restore := saveTerminal(a.Stdin)
	defer restore()
	h.kill = h.stop
	r := h.container(ctx, args, func(ctx context.Context, spec handlerrun.Spec) (string, []string, error) {
		return h.create(ctx, req, f, spec)
	})
	go func() {
		<-r.done
		h.code, h.err = r.code, r.err
		close(h.ran)
	}()
	return h.wait(ctx)
}

// handling is an engagement and what this machine does for it, on their way to
// their end.
type handling struct {
	app      *App
	s        *session
	eng      *engagement.Session
	workload string           // as the user has named it
	gone     error            // why the engine did not answer; to be used by wait alone
	docker   client.APIClient // nil without a handler in a container
	daemon   string           // the daemon container; empty where the machine itself is connected
	message  string
	until    string // what is waited for before the traffic comes (--wait)
	start    time.Time
	ports    []event.Port  // from WorkloadPrepared on; see's alone
	ready    chan struct{} // closed with HandlerReady

	ran  chan struct{} // closed when the local half has ended: Docker's run command, or the holding
	code int           // from here on: to be read after ran
	err  error
	tty  bool
	// remove removes the files with the environment; like err, to be read after ran.
	remove []func()

	// What the local half is, beyond ran: how it is asked to end and made to, and
	// the cause of an engagement that ends because it has; empty: connector hears
	// of that end by itself.
	ask, kill func()
	endCause  string
}

// run is Docker's run command under way.
type run struct {
	done chan struct{} // closed when it has returned
	code int           // from here on: to be read after done
	err  error
}

// createFunc stands in for the engine's creating of the container.
type createFunc func(context.Context, handlerrun.Spec) (id string, warnings []string, err error)

// container lets Docker's run command run a handler, with create and the
// engagement in the place of the engine's creating and starting.
func (h *handling) container(ctx context.Context, args []string, create createFunc) *run {
	r := &run{done: make(chan struct{})}
	stdout := h.app.Stdout
	if h.app.print.JSON {
		stdout = h.app.Stderr // stdout is for the facts
	}
	go func() {
		defer close(r.done)
		r.code, r.err = handlerrun.Run(ctx, handlerrun.Options{
			API: h.docker, Stdin: h.app.Stdin, Stdout: stdout, Stderr: h.app.Stderr, Args: args, Handler: true,
		}, handlerrun.Hooks{
			Create: create,
			Start:  func(ctx context.Context, _ string) error { return h.run(ctx) },
		})
	}()
	return r
}

// create stands in for the engine's: it opens the engagement.
func (h *handling) create(ctx context.Context, req command.OpenEngagement, f *engageFlags, spec handlerrun.Spec) (string, []string, error) {
	h.tty = spec.TTY
	req.Handler = &spec.Handler
	if err := h.open(ctx, req); err != nil {
		return "", nil, err
	}
	c, err := h.eng.Created(ctx)
	if err == nil && f.env.given() {
		_, err = h.environment(ctx, &f.env)
	}
	return c.ContainerID, nil, err
}

// hold is the engagement without a handler of its own: it lives until the user,
// or somebody else, ends it.
func (h *handling) hold(ctx context.Context, req command.OpenEngagement, f *engageFlags) {
	go func() {
		defer close(h.ran)
		if h.err = h.open(ctx, req); h.err != nil {
			return
		}
		active, err := h.eng.Active(ctx)
		if err == nil && f.env.given() {
			_, err = h.environment(ctx, &f.env)
		}
		if h.err = err; err != nil {
			return
		}
		for _, p := range active.Ports {
			h.app.print.Progress("  %d/%s of %s comes to %s %s", p.Container, p.Protocol, req.Workload, handlerAddress(req.Address, p), h.where())
		}
		h.app.print.Progress("engaged until Ctrl-C, or ctl leave %s", req.Workload)
		select {
		case <-ctx.Done():
		case <-h.eng.Ended():
		}
	}()
}

// where is whose addresses a handler's are, for people.
func (h *handling) where() string {
	if _, ok := h.s.at.(*workspace.Workspace); ok {
		return "in the connection's network"
	}
	return "of this machine"
}

// handlerAddress is where the handler gets what is sent to a port.
func handlerAddress(address string, p event.Port) string {
	return net.JoinHostPort(cmp.Or(address, "127.0.0.1"), strconv.Itoa(int(cmp.Or(p.Handler, p.Container))))
}

// doing is what a kind of engagement does, for progress.
func doing(kind string) string {
	switch lease.Kind(kind) {
	case lease.Replace:
		return "replacing"
	case lease.Ingest:
		return "ingesting"
	case lease.Wiretap:
		return "tapping"
	}
	return "intercepting"
}

func (h *handling) open(ctx context.Context, req command.OpenEngagement) error {
	h.app.print.Progress("%s %s (engagement %s)", doing(req.Kind), req.Workload, h.eng.ID())
	return h.app.withHolder(h.docker, h.eng.Open(ctx, req))
}

// run stands in for the engine's start.
func (h *handling) run(ctx context.Context) error {
	if h.tty {
		h.app.print.Quiet(true) // the terminal is the container's
	}
	return h.eng.Start(ctx)
}

// Limits of what follows an end.
const (
	runEndsWithin = 5 * time.Second  // Docker's command, after the engagement's end
	abandonWithin = 10 * time.Second // the same, after the handler was stopped by force
	// exitHeardWithin is how long connector may take to end the engagement of a
	// handler that has ended by itself.
	exitHeardWithin = 2 * time.Second
)

// wait goes through the ends: of Docker's command, of the engagement, by
// signals. It returns when both have ended, or when waiting is of no use.
func (h *handling) wait(ctx context.Context) error {
	defer h.forgetEnvironment()
	first, second := ctx.Done(), h.app.sig.Second.Done()
	ran, ended := h.ran, h.eng.Ended()
	var limit, detached <-chan time.Time
	forced := false
	for {
		select {
		case <-ran:
			ran = nil
			h.app.print.Quiet(false)
			if !h.eng.Opened() {
				return h.verdict(true)
			}
			cause := interrupt.ErrInterrupted.Error()
			if h.err != nil && !interrupt.Is(ctx) {
				cause = "handler failed: " + h.err.Error()
			}
			limit = time.After(restoreWithin)
			if h.err == nil && h.endCause != "" && !interrupt.Is(ctx) {
				cause = h.endCause
			} else if h.err == nil && !interrupt.Is(ctx) {
				// Connector hears of the exit from runner, and ends the engagement by
				// itself: that fact comes first, and with it the exit code. Only where
				// the user detached from the container is there nothing to hear.
				detached = time.After(exitHeardWithin)
				break
			}
			if err := h.close(cause); err != nil {
				return h.unasked(err)
			}
		case <-detached:
			cause := "detached"
			if h.engineGone() {
				cause = "the Docker Engine does not answer"
			}
			if err := h.close(cause); err != nil {
				return h.unasked(err)
			}
		case <-ended:
			ended = nil
			h.ask()
			limit = time.After(runEndsWithin)
			if errors.Is(h.eng.Outcome(), busclient.ErrLost) {
				limit = time.After(0) // nobody else stops the handler
			}
		case <-first:
			first = nil
			h.ask()
			if h.eng.Opened() {
				h.app.print.Notice("ctl: ending; Ctrl-C again stops waiting")
				if err := h.close(interrupt.ErrInterrupted.Error()); err != nil {
					h.app.print.Notice("ctl: %v", err)
				}
			}
		case <-second:
			h.app.print.Notice("ctl: no longer waiting: the handler is removed and the workload restored without this command; if nothing else does, the lease does within 20 s")
			return exit(interrupt.ExitCode)
		case <-limit:
			switch {
			case ran == nil:
				return fault.New(fault.Unavailable, "ctl status", "the workload is not confirmed to be restored within %v; its lease sees to that within 20 s", restoreWithin)
			case forced:
				return h.verdict(false)
			}
			forced = true
			h.kill()
			limit = time.After(abandonWithin)
		}
		if ran == nil && ended == nil {
			return h.verdict(true)
		}
	}
}

// unasked is the end of a command that could not ask for the engagement's: nobody
// answers any more, or it was refused.
func (h *handling) unasked(err error) error {
	if fault.CodeOf(err) == fault.Unavailable {
		return h.cutOff(false)
	}
	return errors.Join(h.verdictOfRun(), err)
}

// forgetEnvironment removes the files with the environment. Where the local half
// is given up, they are whose guard removes them.
func (h *handling) forgetEnvironment() {
	select {
	case <-h.ran:
		for _, remove := range h.remove {
			remove()
		}
	default:
	}
}

// close asks for the engagement's end. It does not use the command's context,
// which the signal that asks for the end has ended.
func (h *handling) close(cause string) error {
	ctx, cancel := context.WithTimeout(h.app.sig.Second, answerWithin)
	defer cancel()
	return h.eng.Close(ctx, cause)
}

// stop stops the handler through the engine. The engine removes it.
func (h *handling) stop() {
	id := h.eng.Handler()
	if id == "" {
		return
	}
	h.app.print.Notice("ctl: the engagement has ended; stopping its handler")
	seconds := 5
	err := h.docker.ContainerStop(h.app.sig.Second, id, container.StopOptions{Timeout: &seconds})
	if err != nil && !errdefs.IsNotFound(err) {
		h.app.print.Notice("ctl: stop the handler: %v", err)
	}
}

// verdict is the end of the command: what became of the engagement counts more
// than what became of the handler.
func (h *handling) verdict(ran bool) error {
	if h.eng.Opened() {
		err := h.eng.Outcome()
		switch {
		case errors.Is(err, busclient.ErrLost):
			return h.cutOff(false)
		case err == nil && h.eng.Stopped():
			return h.cutOff(true)
		case fault.CodeOf(err) == fault.Unavailable && (h.eng.Stopped() || h.gone != nil):
			return h.cutOff(false) // what could not be undone, could not for that reason
		}
		if err != nil {
			if code := handlerrun.StartCode(err.Error()); code != 0 {
				render.Error(h.app.Stderr, "ctl", err)
				return exit(code) // docker run's
			}
			return err
		}
	}
	if !ran {
		return fault.New(fault.Unavailable, "docker ps --filter label="+workspace.LabelComponent+"=handler", "the engagement has ended, but its handler does not")
	}
	return h.verdictOfRun()
}

// cutOff is the end of an engagement whose connector has ended: why, as far as that
// is known, what becomes of the workload, and how to go on. told: connector has
// said that the workload is restored.
func (h *handling) cutOff(told bool) error {
	why, with := "the connector does not answer any more: it was killed", ", or the Docker Engine was stopped or restarted"
	if h.eng.Stopped() {
		why, with = "the connector was stopped", ", alone or with the Docker Engine"
	}
	connect := "ctl connect"
	if h.daemon != "" {
		why, connect = why+with, connect+" --docker"
	}
	if h.engineGone() {
		why = fmt.Sprintf("the Docker Engine does not answer, or did not: %v", h.gone)
	}
	what := h.workload + " is restored"
	if !told {
		what = fmt.Sprintf("the cluster restores %s by itself, within %v, when its lease is not renewed", h.workload, lease.Duration)
	}
	return fault.New(fault.Unavailable, connect+", then this command again", "%s; %s", why, what)
}

// engineGone reports whether the engine of the handler's container does not answer,
// or did not when it was asked before.
func (h *handling) engineGone() bool {
	if h.docker == nil || h.gone != nil {
		return h.gone != nil
	}
	ctx, cancel := context.WithTimeout(h.app.sig.Second, answerWithin)
	defer cancel()
	_, h.gone = h.docker.Ping(ctx)
	return h.gone != nil
}

func (h *handling) verdictOfRun() error {
	switch {
	case h.err != nil:
		return h.err
	case h.code != 0:
		return exit(h.code)
	}
	return nil
}

// see prints the progress that a fact is.
func (h *handling) see(e event.Envelope) {
	p := h.app.print
	p.Fact(e)
	step := func(what, format string, args ...any) {
		p.Progress("  %-17s %5d ms  %s", what, time.Since(h.start).Milliseconds(), fmt.Sprintf(format, args...))
	}
	if f, ok := event.Decode[event.EngagementRequested](e); ok {
		step("requested", "%s/%s, container %s", strings.ToLower(f.WorkloadKind), f.Workload, f.Container)
		if f.NoVolumes != "" {
			p.Notice("ctl: the handler is without the remote volumes: %s", f.NoVolumes)
		}
	}
	if f, ok := event.Decode[event.SecretsReviewed](e); ok && len(f.Masked) > 0 {
		p.Notice("ctl: the values of these Secrets are masked: %s", strings.Join(f.Masked, ", "))
	}
	if f, ok := event.Decode[event.WorkloadPrepared](e); ok {
		h.ports = f.Ports
		step("workload prepared", "%d pod(s), by %s", len(f.Pods), how(f.Method, f.Why))
	}
	if f, ok := event.Decode[event.HandlerCreated](e); ok {
		step("handler created", "%s", f.Container)
		if what := h.awaited(h.ports); h.tty && what != "" { // the terminal is the container's from here on
			p.Progress("  the traffic comes when it %s", what)
		}
		h.app.published(f.Published)
	}
	if f, ok := event.Decode[event.PortsClosed](e); ok {
		p.Notice("ctl: published ports of %s are closed, and are tried again: %s", f.Container, f.Error.Message)
	}
	if f, ok := event.Decode[event.PortsOpened](e); ok {
		h.app.published(f.Published)
	}
	if _, ok := event.Decode[event.HandlerStarted](e); ok {
		step("handler started", "")
		h.tellWaiting(h.ports)
	}
	if f, ok := event.Decode[event.HandlerReady](e); ok {
		close(h.ready) // stated once
		if f.By != command.WaitNone {
			step("handler ready", "%s", f.By)
		}
	}
	if f, ok := event.Decode[event.HandlerSwitched](e); ok {
		p.Progress("switched to %.19s; connections waited %d ms", f.Image, f.Millis)
	}
	if f, ok := event.Decode[event.EngagementActive](e); ok {
		step("active", "ports %s", ports(f.Ports))
		if h.message != "" {
			p.Notice("%s", h.message)
		}
	}
	if f, ok := event.Decode[event.PodsChanged](e); ok {
		step("pods changed", "%s", cmp.Or(strings.Join(f.Pods, " "), "none is left"))
	}
	if f, ok := event.Decode[event.CopiesLost](e); ok {
		step("copies lost", "of %d connections or requests", f.Connections)
	}
	if f, ok := event.Decode[event.NotHTTP](e); ok {
		p.Notice("ctl: %s", notHTTP(f.Ports))
	}
	if f, ok := event.Decode[event.Restoring](e); ok {
		step("restoring", "%s", f.Cause)
	}
	if f, ok := event.Decode[event.EngagementEnded](e); ok {
		step("restored", "%s", f.Cause)
	}
}

// notHTTP says that an engagement's filter does not apply to what comes to ports.
func notHTTP(of []event.Port) string {
	return "connections that are not HTTP without TLS come to port " + ports(of) + ": the handler has nothing of them, for the filter is for requests; without a filter it has all"
}

// waitingAfter is how long a handler may take to be ready before it is said that
// it is waited for.
const waitingAfter = 5 * time.Second

// tellWaiting says, if it takes long, what is waited for: nothing looks so much
// like a hang as a server that listens elsewhere.
func (h *handling) tellWaiting(all []event.Port) {
	what := h.awaited(all)
	if what == "" {
		return
	}
	go func() {
		select {
		case <-h.ready:
		case <-h.eng.Ended():
		case <-h.ran:
		case <-time.After(waitingAfter):
			h.app.print.Progress("  the traffic comes when the handler %s; until then the workload's own pods answer (--wait none does not wait)", what)
		}
	}()
}

// awaited is what the handler does when it is ready, for people; "" where nothing
// is waited for.
func (h *handling) awaited(all []event.Port) string {
	switch {
	case h.until == command.WaitNone || len(all) == 0:
		return ""
	case h.until == command.WaitHealthy:
		return "is healthy"
	}
	var s []string
	for _, p := range all {
		s = append(s, fmt.Sprintf("%d/%s", cmp.Or(p.Handler, p.Container), p.Protocol))
	}
	return "listens on " + strings.Join(s, ", ")
}

// saveTerminal notes the terminal's state, so that it is put back even where
// Docker's command, which does so itself, is not waited for.
func saveTerminal(in any) (restore func()) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	state, err := term.GetState(int(f.Fd()))
	if err != nil {
		return func() {}
	}
	return func() { _ = term.Restore(int(f.Fd()), state) }
}

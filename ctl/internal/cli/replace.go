package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/engagement"
	"berth.dev/ctl/internal/handlerrun"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/usage"
	"berth.dev/ctl/internal/workspace"
	"berth.dev/lease"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"golang.org/x/term"
)

type engageFlags struct {
	dockerRun bool
	build     buildFlags
	container string
	namespace string
	ports     usage.List
	address   string
}

func (a *App) replaceCommand() *usage.Command {
	f := &engageFlags{}
	c := &usage.Command{
		Name: "replace", Synopsis: "replace WORKLOAD [flags] --docker-run -- [docker run flags] IMAGE [args]",
		Short: "Put a local container in the place of a workload's own.",
		Long: `The workload's container is taken out of its pods; its ports, environment and
traffic go to the handler, which runs in the foreground. When the handler ends, by
itself, by Ctrl-C, ctl leave or ctl quit, the workload runs its own container again.
The exit code is the handler's. What stands behind -- is as for docker run; --rm is
implied, --detach is refused. The image is there before the cluster is touched.
With --docker-build it is built first, and the word IMAGE stands for it.`,
		Examples: []string{
			"ctl replace frontend --docker-run -- frontend:dev",
			"ctl replace frontend --container app --port 3000:http --docker-run -- -it -e DEBUG=1 frontend:dev",
			"ctl replace statefulset/db --docker-run -- -v $PWD:/src db:dev",
			"ctl replace frontend --docker-build . --docker-build-opt tag=frontend:dev -- -it IMAGE",
		},
		Flags: a.flags("replace"),
	}
	fs := c.Flags
	fs.BoolVar(&f.dockerRun, "docker-run", false, "run the handler with docker run, with the arguments behind --")
	f.build.register(fs)
	fs.StringVar(&f.container, "container", "", "`NAME` of the container to replace (default: the only one)")
	fs.StringVar(&f.namespace, "n", "", "`NAMESPACE` of the workload (default: the connected one)")
	fs.StringVar(&f.namespace, "namespace", "", "the same as -n")
	fs.Var(&f.ports, "port", "`PORT[:CONTAINER]`: the handler's port, and the container's port, number or name, whose traffic comes to it, with /UDP if it is; repeatable (default: every port the container declares)")
	fs.StringVar(&f.address, "address", "", "`IP` at which the handler listens (default: 127.0.0.1)")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := f.check(l); err != nil {
			return err
		}
		return a.engage(ctx, string(lease.Replace), l.Words[0], f, l.After)
	})
	return c
}

// check is what can be seen to be wrong without asking anybody.
func (f *engageFlags) check(l usage.Line) error {
	const help = "ctl replace --help"
	switch {
	case len(l.Words) == 0:
		return fault.New(fault.InvalidArgument, help, "no workload given")
	case len(l.Words) > 1:
		return fault.New(fault.InvalidArgument, "ctl replace "+l.Words[0]+" --docker-run -- "+strings.Join(l.Words[1:], " "), "one workload at a time; what is for the handler stands behind --")
	case f.build.given() && (f.dockerRun || f.build.context != "" && f.build.debug != ""):
		return fault.New(fault.InvalidArgument, help, "at most one of --docker-run, --docker-build and --docker-debug can be given")
	case f.build.given():
		return f.build.check(l.After)
	case len(f.build.options) > 0:
		return fault.New(fault.InvalidArgument, help, "--docker-build-opt is of use with --docker-build or --docker-debug only")
	case !f.dockerRun:
		return fault.New(fault.InvalidArgument, "ctl replace "+l.Words[0]+" --docker-run -- IMAGE", "no handler given: --docker-run is needed")
	case len(l.After) == 0:
		return fault.New(fault.InvalidArgument, "ctl replace "+l.Words[0]+" --docker-run -- IMAGE", "no image given behind --")
	}
	return nil
}

// engage makes the engagement and runs its handler, up to the terminal fact.
func (a *App) engage(ctx context.Context, kind, workload string, f *engageFlags, args []string) error {
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	rec, err := choose(s.state.Connections, a.use)
	if err != nil {
		return err
	}
	h := &handling{app: a, s: s, start: time.Now(), ran: make(chan struct{})}
	h.eng = engagement.New(s.conn, h.see)
	if f.build.given() {
		// Nothing of the cluster is touched by a build that fails.
		if args, err = a.built(ctx, s, &f.build, h.eng.ID(), args); err != nil {
			return err
		}
	}
	req := command.OpenEngagement{
		Connection: rec.ID, Kind: kind, Namespace: f.namespace, Workload: workload,
		Container: f.container, Ports: f.ports, Address: f.address,
	}
	stdout := a.Stdout
	if a.print.JSON {
		stdout = a.Stderr // stdout is for the facts
	}
	restore := saveTerminal(a.Stdin)
	defer restore()
	go func() {
		defer close(h.ran)
		h.code, h.err = handlerrun.Run(ctx, handlerrun.Options{
			API: s.ws.Engine.API, Stdin: a.Stdin, Stdout: stdout, Stderr: a.Stderr, Args: args, Handler: true,
		}, handlerrun.Hooks{
			Create: func(ctx context.Context, spec handlerrun.Spec) (string, []string, error) {
				return h.create(ctx, req, spec)
			},
			Start: func(ctx context.Context, _ string) error { return h.run(ctx) },
		})
	}()
	return h.wait(ctx)
}

// handling is a handler on its way from parsed arguments to its end.
type handling struct {
	app   *App
	s     *session
	eng   *engagement.Session
	start time.Time

	ran  chan struct{} // closed when Docker's run command has returned
	code int           // from here on: to be read after ran
	err  error
	tty  bool
}

// create stands in for the engine's: it opens the engagement.
func (h *handling) create(ctx context.Context, req command.OpenEngagement, spec handlerrun.Spec) (string, []string, error) {
	h.tty = spec.TTY
	req.Handler = &spec.Handler
	h.app.print.Progress("replacing %s (engagement %s)", req.Workload, h.eng.ID())
	c, err := h.eng.Open(ctx, req)
	return c.ContainerID, nil, err
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
			if h.err == nil && !interrupt.Is(ctx) {
				// Connector hears of the exit from runner, and ends the engagement by
				// itself: that fact comes first, and with it the exit code. Only where
				// the user detached from the container is there nothing to hear.
				detached = time.After(exitHeardWithin)
				break
			}
			if err := h.close(cause); err != nil {
				return errors.Join(h.verdictOfRun(), err)
			}
		case <-detached:
			if err := h.close("detached"); err != nil {
				return errors.Join(h.verdictOfRun(), err)
			}
		case <-ended:
			ended = nil
			limit = time.After(runEndsWithin)
			if errors.Is(h.eng.Outcome(), busclient.ErrLost) {
				limit = time.After(0) // nobody else stops the handler
			}
		case <-first:
			first = nil
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
			h.stop()
			limit = time.After(abandonWithin)
		}
		if ran == nil && ended == nil {
			return h.verdict(true)
		}
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
	err := h.s.ws.Engine.API.ContainerStop(h.app.sig.Second, id, container.StopOptions{Timeout: &seconds})
	if err != nil && !errdefs.IsNotFound(err) {
		h.app.print.Notice("ctl: stop the handler: %v", err)
	}
}

// verdict is the end of the command: what became of the engagement counts more
// than what became of the handler.
func (h *handling) verdict(ran bool) error {
	if h.eng.Opened() {
		if err := h.eng.Outcome(); err != nil {
			return err
		}
	}
	if !ran {
		return fault.New(fault.Unavailable, "docker ps --filter label="+workspace.LabelComponent+"=handler", "the engagement has ended, but its handler does not")
	}
	return h.verdictOfRun()
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
	}
	if f, ok := event.Decode[event.WorkloadPrepared](e); ok {
		step("workload prepared", "%d pod(s), by %s", len(f.Pods), f.Method)
	}
	if f, ok := event.Decode[event.HandlerCreated](e); ok {
		step("handler created", "%s", f.Container)
	}
	if _, ok := event.Decode[event.HandlerStarted](e); ok {
		step("handler started", "")
	}
	if f, ok := event.Decode[event.EngagementActive](e); ok {
		step("active", "ports %s", ports(f.Ports))
	}
	if f, ok := event.Decode[event.PodsChanged](e); ok {
		step("pods changed", "%s", strings.Join(f.Pods, " "))
	}
	if f, ok := event.Decode[event.Restoring](e); ok {
		step("restoring", "%s", f.Cause)
	}
	if f, ok := event.Decode[event.EngagementEnded](e); ok {
		step("restored", "%s", f.Cause)
	}
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

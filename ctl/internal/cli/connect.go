package cli

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/hostspace"
	"berth.dev/ctl/internal/interrupt"
	"berth.dev/ctl/internal/kubeconfig"
	"berth.dev/ctl/internal/localrun"
	"berth.dev/ctl/internal/usage"
	"berth.dev/ctl/internal/workspace"
)

// connectWithin is after how long connector is asked whether the connection is
// still coming: it waits for its turn where many come at once, and once it has it
// connector itself gives up earlier than this, and says why.
const connectWithin = 25 * time.Second

type connectFlags struct {
	docker     bool
	name       string
	kube       kubeconfig.Options
	manager    string
	alsoProxy  usage.List
	neverProxy usage.List
	vnat       usage.List
	expose     usage.List
	hostname   string
}

func (a *App) kubeFlags(c *usage.Command, o *kubeconfig.Options) {
	c.Flags.StringVar(&o.Context, "context", "", "`CONTEXT` of the kubeconfig (default: the current one)")
	c.Flags.StringVar(&o.File, "kubeconfig", "", "`FILE` to use as the kubeconfig (default: KUBECONFIG, ~/.kube/config)")
}

func (a *App) connectCommand() *usage.Command {
	f := &connectFlags{}
	c := &usage.Command{
		Name: "connect", Synopsis: "connect [--docker] [flags] [-- COMMAND...]",
		Short: "Join the cluster.",
		Long: `Without --docker this machine itself joins: any program on it reaches the cluster,
and finds services by name (curl http://SERVICE, http://SERVICE.NAMESPACE). Berth's
processes run on it, of which one, vif, needs root to make the interface and the
routes: sudo asks. No Docker is needed, and one connection at a time is possible.

With --docker the daemon runs in a container, in whose network the cluster is
reached; nothing on the host changes, and no privilege is needed. The same call
again is a no-op. With "-- COMMAND" the command runs once connected, with BERTH_USE, BERTH_CONNECTION_ID,
BERTH_DAEMON and BERTH_NAMESPACE in its environment; when it has ended, what this
call connected is disconnected.`,
		Examples: []string{
			"ctl connect",
			"ctl connect --docker",
			"ctl connect --docker --context staging -n shop --name shop",
			"ctl connect --docker -- ctl curl http://frontend",
		},
		Flags: a.flags("connect"),
	}
	fs := c.Flags
	fs.BoolVar(&f.docker, "docker", false, "run the daemon in a container, and leave this machine's network alone")
	fs.StringVar(&f.name, "name", "", "`NAME` of the connection (default: CONTEXT-NAMESPACE)")
	fs.StringVar(&f.kube.Namespace, "n", "", "`NAMESPACE` to be in (default: the context's)")
	fs.StringVar(&f.kube.Namespace, "namespace", "", "the same as -n")
	a.kubeFlags(c, &f.kube)
	fs.StringVar(&f.manager, "manager-namespace", "", "`NAMESPACE` of the cluster side (default: berth)")
	fs.Var(&f.alsoProxy, "also-proxy", "`CIDR` to route into the cluster beside its own; repeatable")
	fs.Var(&f.neverProxy, "never-proxy", "`CIDR` never to route into the cluster; repeatable")
	fs.Var(&f.vnat, "vnat", "`CIDR` of the cluster's whose addresses are taken here (by a VPN), for which virtual ones stand in; auto: all such; repeatable")
	fs.Var(&f.expose, "expose", "`PORT` of the daemon container to publish, as docker run -p; repeatable")
	fs.StringVar(&f.hostname, "hostname", "", "`HOSTNAME` of the daemon container")
	fs.StringVar(&a.image, "image", "", "`IMAGE` of everything that runs here (default: berth:VERSION)")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error { return a.connect(ctx, f, l) })
	return c
}

func (a *App) connect(ctx context.Context, f *connectFlags, l usage.Line) error {
	switch {
	case len(l.Words) > 0:
		return fault.New(fault.InvalidArgument, "ctl connect --docker --name "+l.Words[0], "`ctl connect` takes no %q", l.Words[0])
	case l.Dashes && len(l.After) == 0:
		return fault.New(fault.InvalidArgument, "ctl connect --help", "no command behind --")
	case !f.docker && (len(f.expose) > 0 || f.hostname != ""):
		return fault.New(fault.InvalidArgument, "ctl connect --docker", "--expose and --hostname are of a daemon container's, which there is with --docker")
	}
	start := time.Now()
	target, err := kubeconfig.Load(ctx, f.kube)
	if err != nil {
		return err
	}
	at, err := a.place(ctx, f.docker)
	if err != nil {
		return err
	}
	defer at.Close()
	up, reach, err := a.prepare(ctx, at, target, start)
	if err != nil {
		return err
	}
	defer func() { up.Conn.Close() }()
	volumes := a.volumeStage(ctx, up.Conn)
	req, err := openRequest(f, target, reach)
	if err != nil {
		return err
	}
	if host, ok := at.(*hostspace.Space); ok {
		if err := a.startVIF(ctx, host, up.Conn, req); err != nil {
			a.tidy(at, up.Conn)
			return err
		}
	}
	rec, mine, err := a.openConnection(ctx, at, up, req, start)
	if err != nil {
		a.tidy(at, up.Conn)
		return err
	}
	volumes(start)
	if !l.Dashes {
		return nil
	}
	code, err := a.command(ctx, rec, l.After)
	if mine {
		if qerr := a.disconnect(at, up.Conn, rec, "command ended"); err == nil {
			err = qerr
		}
		a.tidy(at, up.Conn)
	}
	if err == nil && code != 0 {
		return exit(code)
	}
	return err
}

// place is where a new connection's services run.
func (a *App) place(ctx context.Context, docker bool) (place, error) {
	if docker {
		return a.containers(ctx)
	}
	return a.onHost()
}

// startVIF has a vif stand by, unless the connection is there already, and will
// not need one.
func (a *App) startVIF(ctx context.Context, host *hostspace.Space, conn *bus.Conn, req command.OpenConnection) error {
	c, err := aliveOnHost(ctx, conn)
	if err != nil {
		return err
	}
	if c != nil {
		if c.Name == req.Name {
			return nil
		}
		return fault.New(fault.FailedPrecondition, "ctl quit --use "+c.Name+"; or ctl connect --docker", "this machine is connected already, as %s, and joins one cluster at a time; with --docker there can be any number beside it", c.Name)
	}
	return host.StartVIF(ctx, func(line string) { a.print.Notice("%s", line) })
}

// aliveOnHost is the machine's connection, nil for none. One that is just ending,
// or whose vif is gone, is waited for.
func aliveOnHost(ctx context.Context, conn *bus.Conn) (*command.Connection, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, endWithin, fault.New(fault.Unavailable, "ctl quit --all", "an earlier connection does not end"))
	defer cancel()
	for {
		state, err := bus.Call(ctx, conn, command.StateGet, "", command.None{})
		if err != nil || len(state.Connections) == 0 {
			return nil, err
		}
		c := state.Connections[0]
		switch {
		case c.Phase == "disconnecting":
		case c.Daemon == "":
			return &c, nil // just coming
		default:
			// Asked again and again: a question to one that was killed just now may
			// be neither answered nor refused.
			probe, cancel := context.WithTimeout(ctx, time.Second)
			_, err := conn.NC.RequestWithContext(probe, subject.Live(subject.VIF, c.ID), nil)
			cancel()
			if err == nil {
				return &c, nil
			}
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// prepare brings the workspace up and verifies the API server, at once. If
// either fails, a workspace that nobody uses is gone again.
func (a *App) prepare(ctx context.Context, at place, target *kubeconfig.Target, start time.Time) (*workspace.Up, kubeconfig.Reach, error) {
	var wg sync.WaitGroup
	var up *workspace.Up
	var reach kubeconfig.Reach
	var werr, kerr error
	wg.Go(func() {
		if up, werr = at.Ensure(ctx); werr == nil {
			a.stage("workspace", start, "")
		}
	})
	wg.Go(func() { reach, kerr = at.Locate(ctx, target) })
	wg.Wait()
	if werr == nil && kerr == nil {
		return up, reach, nil
	}
	if up != nil {
		a.tidy(at, up.Conn)
		up.Conn.Close()
	}
	if kerr != nil && werr == nil {
		return nil, reach, kerr
	}
	return nil, reach, werr
}

// stage prints a stage that has been passed.
func (a *App) stage(name string, start time.Time, detail string) {
	a.print.Progress("  %-11s %5d ms  %s", name, time.Since(start).Milliseconds(), detail)
}

func openRequest(f *connectFlags, t *kubeconfig.Target, reach kubeconfig.Reach) (command.OpenConnection, error) {
	name := f.name
	if name == "" {
		name = token(t.Context + "-" + t.Namespace)
	}
	if !subject.Valid(name) {
		return command.OpenConnection{}, fault.New(fault.InvalidArgument, "ctl connect --docker --name "+token(name), "%q is no name for a connection: use a-z, 0-9 and -", name)
	}
	cfg, err := t.JSON()
	if err != nil {
		return command.OpenConnection{}, err
	}
	return command.OpenConnection{
		ID: busclient.NewID("c"), Name: name, Context: t.Context, Namespace: t.Namespace,
		ManagerNamespace: f.manager, Server: t.Server, Kubeconfig: cfg, Networks: reach.Networks,
		AlsoProxy: f.alsoProxy, NeverProxy: f.neverProxy, Virtual: f.vnat, Expose: f.expose, Hostname: f.hostname, Client: whoami(),
	}, nil
}

// token makes s one: contexts are often URLs, ARNs or e-mail addresses.
func token(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	t := b.String()
	if len(t) > 50 { // keep the end: it tells them apart, and holds the namespace
		t = t[len(t)-50:]
	}
	return strings.Trim(t, "-")
}

// openConnection asks for the connection and follows it until it stands. mine
// reports whether this call made it. One that fails, or is interrupted, has been
// closed when it returns. A workspace that another ctl takes down just now is
// brought up once more.
func (a *App) openConnection(ctx context.Context, at place, up *workspace.Up, req command.OpenConnection, start time.Time) (rec command.Connection, mine bool, err error) {
	for try := 0; ; try++ {
		rec, mine, err = a.tryOpen(ctx, at, up.Conn, req, start)
		if try > 0 || !errors.Is(err, errNotAsked) {
			return rec, mine, err
		}
		up.Conn.Close()
		again, err := at.Ensure(ctx)
		if err != nil {
			return rec, false, err
		}
		*up = *again
	}
}

// errNotAsked says that the connector was gone before it accepted anything.
var errNotAsked = errors.New("the workspace went away")

func (a *App) tryOpen(ctx context.Context, at place, conn *bus.Conn, req command.OpenConnection, start time.Time) (rec command.Connection, mine bool, err error) {
	tail, err := conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Connection, req.ID))
	if err != nil {
		return rec, false, errors.Join(errNotAsked, err)
	}
	defer tail.Stop()
	rep, err := bus.Call(ctx, conn, command.ConnectionOpen, "", req)
	if err != nil {
		if fault.CodeOf(err) == fault.Unavailable && fault.From(err).Stage == "" {
			err = errors.Join(errNotAsked, err)
			// A call that was not answered may have been accepted all the same.
			_, _ = bus.Call(ctx, conn, command.ConnectionClose, "", command.CloseConnection{ID: req.ID, Cause: "connect failed"})
		}
		return rec, false, err
	}
	rec = command.Connection{ID: rep.ID, Name: req.Name, Context: req.Context, Namespace: req.Namespace, Server: req.Server}
	if rep.Already && rep.ID != req.ID {
		if tail, err = conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Connection, rep.ID)); err != nil {
			return rec, false, err
		}
		defer tail.Stop()
	}
	limited, cancel := whileComing(ctx, conn, rec.ID)
	defer cancel()
	err = busclient.Follow(limited, conn, tail, func(e event.Envelope) (bool, error) {
		if !rep.Already {
			a.print.Fact(e)
			a.connectProgress(e, start)
		}
		if f, ok := event.Decode[event.ConnectionFailed](e); ok {
			return true, &f.Error
		}
		if f, ok := event.Decode[event.Disconnected](e); ok {
			return true, fault.New(fault.FailedPrecondition, "ctl connect --docker", "the connection was ended meanwhile: %s", f.Cause)
		}
		if c, ok := event.Decode[event.Connected](e); ok {
			rec.Daemon = c.Daemon
			if rep.Already {
				a.print.Fact(e)
			}
			a.connected(at, rec, c, rep.Already)
			return true, nil
		}
		return false, nil
	})
	if err == nil {
		return rec, !rep.Already, nil
	}
	if !rep.Already && !errors.Is(err, busclient.ErrLost) {
		cause := "connect failed"
		if interrupt.Is(ctx) {
			cause = interrupt.ErrInterrupted.Error()
		}
		// Terminal facts have been stated or will be; closing twice is harmless.
		if derr := a.disconnect(at, conn, rec, cause); derr != nil {
			a.print.Notice("ctl: %v", derr)
		}
	}
	return rec, false, err
}

// whileComing returns a context that ends with a fault when the connector does not
// have the connection among those that are coming any more, and has not said why.
func whileComing(ctx context.Context, conn *bus.Conn, id string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(connectWithin)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			one, done := context.WithTimeout(ctx, answerWithin)
			state, err := bus.Call(one, conn, command.StateGet, "", command.None{})
			done()
			if err != nil || !slices.ContainsFunc(state.Connections, func(c command.Connection) bool { return c.ID == id && c.Phase != "connected" }) {
				cancel(fault.New(fault.Unavailable, "ctl quit --all", "not connected within %v, and the connector does not say why", connectWithin))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (a *App) connected(at place, rec command.Connection, c event.Connected, already bool) {
	how := "connected"
	if already {
		how = "already connected"
	}
	a.print.Result("%s to context %s (%s), namespace %s, as %s", how, rec.Context, rec.Server, c.Namespace, rec.Name)
	if _, ok := at.(*hostspace.Space); ok {
		a.print.Progress("  the cluster is reached from this machine: curl http://SERVICE, http://SERVICE.NAMESPACE")
		return
	}
	a.print.Progress("  the cluster is reached from containers: ctl curl http://SERVICE")
}

// connectProgress prints the stage that a fact says has been passed.
func (a *App) connectProgress(e event.Envelope, start time.Time) {
	if f, ok := event.Decode[event.DaemonStarted](e); ok {
		a.stage(string(event.StageDaemon), start, f.Container)
	}
	if f, ok := event.Decode[event.StagePassed](e); ok {
		a.stage(string(f.Stage), start, f.Detail)
	}
	if f, ok := event.Decode[event.TunnelOpened](e); ok {
		a.stage(string(event.StageTunnel), start, f.Transport)
	}
	if f, ok := event.Decode[event.InterfaceReady](e); ok {
		a.stage(string(event.StageVIF), start, strings.Join(f.Subnets, " "))
		for _, v := range f.Virtual {
			a.print.Progress("  %-11s           %s stands for the cluster's %s", "", v.Here, v.Cluster)
		}
	}
	if f, ok := event.Decode[event.DNSReady](e); ok {
		a.stage(string(event.StageDNS), start, strings.Join(f.Search, " "))
	}
}

// command runs the user's command and returns its exit code. A signal goes to
// the command, whose end is waited for; the second one kills it.
func (a *App) command(ctx context.Context, rec command.Connection, argv []string) (int, error) {
	env := append(os.Environ(), "BERTH_USE="+rec.Name, "BERTH_CONNECTION_ID="+rec.ID, "BERTH_DAEMON="+rec.Daemon, "BERTH_NAMESPACE="+rec.Namespace)
	if a.workspace != "" {
		env = append(env, "BERTH_WORKSPACE="+a.workspace)
	}
	cmd := &localrun.Command{Argv: argv, Env: env, Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr}
	defer context.AfterFunc(ctx, func() { cmd.Signal(os.Interrupt) })()
	defer context.AfterFunc(a.sig.Second, func() { cmd.Signal(os.Kill) })()
	return cmd.Run()
}

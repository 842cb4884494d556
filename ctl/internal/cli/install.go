package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/ctl/internal/busclient"
	"berth.dev/ctl/internal/kubeconfig"
	"berth.dev/ctl/internal/usage"
	"berth.dev/lease"
)

// installWithin bounds an installation: images may have to be pulled by nodes.
const installWithin = 5 * time.Minute

type installFlags struct {
	kube    kubeconfig.Options
	image   string
	manager string
	direct  string
	exclude usage.List
}

// serviceTypes are the values of --direct, and the type of the Service for each.
var serviceTypes = map[string]string{"nodeport": "NodePort", "loadbalancer": "LoadBalancer", "off": "ClusterIP"}

func (a *App) installCommand() *usage.Command {
	return a.installation("install", "Put Berth's side into the cluster, or bring it up to date.", command.Install,
		`Idempotent: what is there is upgraded in place. It needs the rights of a cluster
administrator once; users need those of the documented Role.`)
}

func (a *App) uninstallCommand() *usage.Command {
	return a.installation("uninstall", "Take Berth's side out of the cluster, without a trace.", command.Uninstall,
		`Engaged workloads are restored first.`)
}

func (a *App) installation(verb, short string, spec command.Spec[command.InstallCluster, command.Accepted], long string) *usage.Command {
	f := &installFlags{}
	c := &usage.Command{
		Name: verb, Synopsis: verb + " [flags]", Short: short, Long: long,
		Examples: []string{"ctl " + verb, "ctl " + verb + " --context staging"},
		Flags:    a.flags(verb),
	}
	a.kubeFlags(c, &f.kube)
	c.Flags.StringVar(&f.manager, "manager-namespace", lease.DefaultNamespace, "`NAMESPACE` of the cluster side")
	if verb == "install" {
		c.Flags.StringVar(&f.image, "image", "", "`IMAGE` of the cluster side (default: berth-cluster:VERSION; environment: BERTH_CLUSTER_IMAGE)")
		c.Flags.StringVar(&f.direct, "direct", "nodeport", "how clients may reach the manager without the API server between, which is faster: `nodeport`, loadbalancer or off")
		c.Flags.Var(&f.exclude, "exclude-env", "`NAME` of a variable that never leaves the cluster, with * and ? for any characters; repeatable. It replaces what an earlier installation had")
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords(verb, l); err != nil {
			return err
		}
		if _, ok := serviceTypes[f.direct]; !ok && verb == "install" {
			return fault.New(fault.InvalidArgument, "ctl install --direct off", "--direct %s: nodeport, loadbalancer or off", f.direct)
		}
		// BERTH_IMAGE is the image of what runs here, not of the cluster side.
		if !l.Given("image") {
			f.image = cmp.Or(os.Getenv("BERTH_CLUSTER_IMAGE"), "berth-cluster:"+a.Version)
		}
		return a.install(ctx, f, spec)
	})
	return c
}

func (a *App) install(ctx context.Context, f *installFlags, spec command.Spec[command.InstallCluster, command.Accepted]) error {
	start := time.Now()
	target, err := kubeconfig.Load(ctx, f.kube)
	if err != nil {
		return err
	}
	at, err := a.anywhere(ctx)
	if err != nil {
		return err
	}
	defer at.Close()
	up, reach, err := a.prepare(ctx, at, target, start)
	if err != nil {
		return err
	}
	defer up.Conn.Close()
	// What this call brought up for itself goes again, unless it is in use by then.
	if up.Created {
		defer a.tidy(at, up.Conn)
	}
	cfg, err := target.JSON()
	if err != nil {
		return err
	}
	req := command.InstallCluster{ID: busclient.NewID("i"), Kubeconfig: cfg, Networks: reach.Networks, Namespace: f.manager, Image: f.image, Direct: serviceTypes[f.direct], ExcludeEnv: f.exclude}
	tail, err := up.Conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Installation, req.ID))
	if err != nil {
		return err
	}
	defer tail.Stop()
	if _, err := bus.Call(ctx, up.Conn, spec, "", req); err != nil {
		return err
	}
	wait, cancel := context.WithTimeoutCause(ctx, installWithin, fmt.Errorf("not done within %v", installWithin))
	defer cancel()
	last, err := busclient.Terminal(wait, up.Conn, tail, func(e event.Envelope) {
		a.print.Fact(e)
		if s, ok := event.Decode[event.InstallationStep](e); ok {
			a.print.Progress("  %-8s %s", s.Action, s.Object)
		}
	})
	if err != nil {
		return err
	}
	if f, ok := event.Decode[event.InstallationFailed](last); ok {
		return &f.Error
	}
	if i, ok := event.Decode[event.Installed](last); ok {
		a.print.Result("installed version %s in namespace %s of context %s", i.Version, i.Namespace, target.Context)
		if i.Webhook != "" && i.Webhook != "ok" {
			return fault.New(fault.FailedPrecondition, "ctl doctor", "installed, but the admission webhook does not work: %s", i.Webhook)
		}
		return nil
	}
	a.print.Result("uninstalled from context %s", target.Context)
	return nil
}

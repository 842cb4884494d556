package cli

import (
	"context"
	"fmt"

	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/kubeconfig"
	"berth.dev/ctl/internal/usage"
	"berth.dev/ctl/internal/workspace"
	"berth.dev/lease"
)

// finding is one line of `ctl doctor`.
type finding struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy,omitempty"`
	Skipped bool   `json:"skipped,omitempty"` // could not be looked at, since an earlier one failed
}

func (a *App) doctorCommand() *usage.Command {
	var o kubeconfig.Options
	var manager string
	c := &usage.Command{
		Name: "doctor", Synopsis: "doctor [flags]",
		Short:    "Check what Berth needs, one line each, with a remedy.",
		Long:     "Exit code 1 if anything is missing.",
		Examples: []string{"ctl doctor", "ctl doctor --context staging", "ctl doctor --output json"},
		Flags:    a.flags("doctor"),
	}
	a.kubeFlags(c, &o)
	c.Flags.StringVar(&o.Namespace, "n", "", "`NAMESPACE` in which workloads are to be engaged (default: the context's)")
	c.Flags.StringVar(&manager, "manager-namespace", lease.DefaultNamespace, "`NAMESPACE` of the cluster side")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("doctor", l); err != nil {
			return err
		}
		return a.doctor(ctx, o, manager)
	})
	return c
}

// examination runs checks in order; those that need what has failed are skipped.
type examination struct {
	app  *App
	bad  int
	done map[string]bool
}

// check runs one check; what names the checks that it needs.
func (x *examination) check(name string, needs []string, look func() (detail string, err error)) {
	f := finding{Check: name}
	for _, n := range needs {
		f.Skipped = f.Skipped || !x.done[n]
	}
	if !f.Skipped {
		detail, err := look()
		f.OK, f.Detail = err == nil, detail
		if e := fault.From(err); e != nil {
			f.Detail, f.Remedy = e.Message, e.Hint
		}
	}
	x.done[name] = f.OK
	mark := "ok     "
	switch {
	case f.Skipped:
		mark, f.Detail = "skipped", "needs what is missing above"
	case !f.OK:
		mark = "MISSING"
		x.bad++
	}
	_ = x.app.print.Value(f)
	x.app.print.Result("%s  %-11s %s", mark, name, f.Detail)
	if f.Remedy != "" {
		x.app.print.Result("           try: %s", f.Remedy)
	}
}

func (a *App) doctor(ctx context.Context, o kubeconfig.Options, manager string) error {
	x := &examination{app: a, done: map[string]bool{}}
	var ws *workspace.Workspace
	var target *kubeconfig.Target
	var api *kubeconfig.API
	x.check("Docker", nil, func() (string, error) {
		var err error
		if ws, err = a.containers(ctx); err != nil {
			return "", err
		}
		v, err := ws.Engine.API.ServerVersion(ctx)
		return fmt.Sprintf("Engine %s at %s, API %s", v.Version, ws.Engine.Host, ws.Engine.API.ClientVersion()), err
	})
	x.check("reach", []string{"Docker"}, func() (string, error) {
		r, err := ws.Engine.Reach(ctx)
		return r.String(), err
	})
	x.check("image", []string{"Docker"}, func() (string, error) { return ws.Image, ws.HasImage(ctx) })
	x.check("workspace", []string{"Docker"}, func() (string, error) {
		conn, state, err := a.ask(ctx, ws)
		if err == nil {
			conn.Close()
			return fmt.Sprintf("up, %d connection(s), %d engagement(s)", len(state.Connections), len(state.Engagements)), nil
		}
		left, lerr := ws.Leftovers(ctx)
		if lerr == nil && left.Empty() {
			return "down; ctl connect starts it", nil
		}
		return "", fault.New(fault.Unavailable, "ctl quit --all", "broken: %s", fault.From(err).Message)
	})
	x.check("volumes", []string{"Docker"}, func() (string, error) {
		detail, err := ws.VolumePlugin(ctx)
		if err == nil && detail == "" {
			detail = "no plugin; ctl connect installs it"
		}
		if conn, _, cerr := a.ask(ctx, ws); cerr == nil { // who installed it knows why it is not another one
			defer conn.Close()
			v, verr := volumePlugin(ctx, conn, pluginWithin)
			if verr == nil && v.Kind == "" {
				return "", fault.New(fault.FailedPrecondition, "ctl replace WORKLOAD --mount false …", "handlers have no remote volumes: %s", v.Reason)
			}
			if verr == nil && v.Reason != "" {
				detail += "; " + v.Reason
			}
		}
		return detail, err
	})
	x.check("machine", nil, func() (string, error) {
		host, err := a.onHost()
		if err != nil {
			return "", err
		}
		defer host.Close()
		return host.Examine(ctx)
	})
	x.check("kubeconfig", nil, func() (string, error) {
		var err error
		if target, err = kubeconfig.Load(ctx, o); err != nil {
			return "", err
		}
		detail := fmt.Sprintf("context %s, namespace %s, server %s", target.Context, target.Namespace, target.Server)
		if !target.Expires.IsZero() {
			detail += ", credentials until " + target.Expires.Local().Format("15:04:05")
		}
		return detail, nil
	})
	x.check("API server", []string{"kubeconfig"}, func() (string, error) {
		var err error
		// Asked at the user's own address, before Locate rewrites it.
		if api, err = target.API(); err != nil {
			return "", err
		}
		version, err := api.Version(ctx)
		if err != nil {
			return "", err
		}
		if ws == nil {
			return fmt.Sprintf("Kubernetes %s, reached from this machine", version), nil
		}
		reach, err := target.Locate(ctx, ws.Engine.API, ws.Engine.Local())
		return fmt.Sprintf("Kubernetes %s, reached from containers by %s", version, reach.Via), err
	})
	x.check("manager", []string{"API server"}, func() (string, error) {
		text, err := api.ConfigMap(ctx, manager, lease.InfoConfigMap, lease.InfoKey)
		if err != nil {
			if fault.CodeOf(err) == fault.NotFound {
				err = fault.New(fault.NotFound, "ctl install", "Berth is not installed in namespace %s", manager)
			}
			return "", err
		}
		info, err := lease.Unmarshal[lease.Info](text)
		if err == nil && info.Webhook != "ok" {
			err = fault.New(fault.FailedPrecondition, "kubectl -n "+manager+" logs deploy/berth-manager", "its webhook does not work: %s", info.Webhook)
		}
		return "version " + info.Version + ", webhook reachable", err
	})
	x.check("rights", []string{"API server"}, func() (string, error) {
		for _, r := range rights(target.Namespace, manager) {
			if err := api.May(ctx, r); err != nil {
				return "", err
			}
		}
		return "to connect, and to engage in namespace " + target.Namespace, nil
	})
	if ws != nil {
		ws.Engine.Close()
	}
	if x.bad > 0 {
		return exit(1)
	}
	return nil
}

// rights are what a user needs, as the documented Role grants it.
func rights(namespace, manager string) []kubeconfig.Right {
	return []kubeconfig.Right{
		{Namespace: manager, Resource: "configmaps", Verb: "get", Name: lease.InfoConfigMap},
		{Namespace: manager, Group: "coordination.k8s.io", Resource: "leases", Verb: "create"},
		{Namespace: manager, Resource: "pods", Subresource: "proxy", Verb: "get"},
		{Namespace: namespace, Group: "coordination.k8s.io", Resource: "leases", Verb: "create"},
		{Namespace: namespace, Group: "coordination.k8s.io", Resource: "leases", Verb: "update"},
		{Namespace: namespace, Group: "apps", Resource: "deployments", Verb: "get"},
	}
}

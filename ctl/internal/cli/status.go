package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/ctl/internal/engine"
	"berth.dev/ctl/internal/usage"
)

// status is what `ctl status` prints as JSON: connector's own records, unchanged.
type status struct {
	Workspace   string               `json:"workspace"` // up, down or broken
	Problem     *fault.Error         `json:"problem,omitempty"`
	Version     string               `json:"version,omitempty"`
	Connections []command.Connection `json:"connections"`
	Engagements []command.Engagement `json:"engagements"`
	// Volumes is how remote volumes are mounted, or why they are not.
	Volumes *command.VolumePlugin `json:"volumes,omitempty"`
}

func (a *App) statusCommand() *usage.Command {
	c := &usage.Command{
		Name: "status", Synopsis: "status [flags]",
		Short:    "Show what is connected and engaged, and whether it is healthy.",
		Examples: []string{"ctl status", "ctl status --output json"},
		Flags:    a.flags("status"),
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("status", l); err != nil {
			return err
		}
		return a.status(ctx)
	})
	return c
}

func (a *App) status(ctx context.Context) error {
	places, err := a.places(ctx)
	if err != nil {
		return err
	}
	st := status{Workspace: "down", Connections: []command.Connection{}, Engagements: []command.Engagement{}}
	for _, at := range places {
		defer at.Close()
		if err := a.look(ctx, at, &st); err != nil {
			return err
		}
	}
	if st.Problem == nil && a.use != "" && st.Workspace == "up" {
		one, err := choose(st.Connections, a.use)
		if err != nil {
			return err
		}
		if st.Engagements, err = onlyOf(st.Engagements, st.Connections, a.use); err != nil {
			return err
		}
		st.Connections = []command.Connection{one}
	}
	if err := a.print.Value(st); err != nil {
		return err
	}
	a.printStatus(st)
	if st.Problem != nil {
		return fault.New(fault.Unavailable, "ctl quit --all", "the workspace is broken: %s", st.Problem.Message)
	}
	return nil
}

// look adds to st what there is in a place.
func (a *App) look(ctx context.Context, at place, st *status) error {
	conn, state, err := a.ask(ctx, at)
	switch {
	case err == nil:
		defer conn.Close()
		st.Version = state.Version
		if st.Problem == nil {
			st.Workspace = "up"
		}
		st.Connections = append(st.Connections, state.Connections...)
		st.Engagements = append(st.Engagements, state.Engagements...)
		if v, err := volumePlugin(ctx, conn, answerWithin); err == nil {
			st.Volumes = &v
		}
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	left, lerr := at.Names(ctx)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	if len(left) > 0 {
		st.Workspace, st.Problem = "broken", fault.From(err)
	}
	return nil
}

func (a *App) printStatus(st status) {
	if len(st.Connections) == 0 {
		a.print.Result("not connected")
		return
	}
	names := map[string]string{}
	rows := [][]string{{"CONNECTION", "CONTEXT", "NAMESPACE", "STATE", "SINCE", "TRANSPORT", "DAEMON"}}
	for _, c := range st.Connections {
		names[c.ID] = c.Name
		rows = append(rows, []string{c.Name, c.Context, c.Namespace, health(c), age(c.Since), dash(c.Transport), dash(c.Daemon)})
	}
	a.print.Table(rows)
	for _, c := range st.Connections {
		for _, v := range c.Virtual {
			a.print.Result("%s: %s stands for the cluster's %s", c.Name, v.Here, v.Cluster)
		}
	}
	if v := st.Volumes; v != nil && (v.Kind == "" || v.Reason != "") {
		a.print.Result("volumes: %s (%s)", dash(v.Kind), v.Reason)
	}
	if len(st.Engagements) == 0 {
		return
	}
	a.print.Result("")
	rows = [][]string{{"ENGAGEMENT", "KIND", "CONNECTION", "NAMESPACE", "PHASE", "SINCE", "PORTS", "HANDLER", "ID"}}
	for _, e := range st.Engagements {
		rows = append(rows, []string{e.Name, e.Kind, names[e.Connection], e.Namespace, e.Phase, age(e.Since), ports(e.Ports), dash(e.Handler), e.ID})
	}
	a.print.Table(rows)
	for _, e := range st.Engagements {
		if e.Why != "" {
			a.print.Result("%s: by %s", e.Name, how(e.Method, e.Why))
		}
		for _, p := range e.Published {
			a.print.Result("%s: published %s", e.Name, publishedText(p))
		}
		if e.Lost > 0 {
			what := "connections"
			if e.Filter != "" {
				what = "requests"
			}
			a.print.Result("%s (%s): of %d %s its handler did not take all copies", e.Name, e.ID, e.Lost, what)
		}
		if len(e.NotHTTP) > 0 {
			a.print.Result("%s (%s): %s", e.Name, e.ID, notHTTP(e.NotHTTP))
		}
		if e.Filter != "" {
			a.print.Result("%s (%s): only HTTP requests with %s", e.Name, e.ID, e.Filter)
		}
	}
}

// how a workload was prepared, and why not in another way if that is to be said.
func how(method, why string) string {
	if why == "" {
		return method
	}
	return method + ", since " + why
}

func health(c command.Connection) string {
	switch {
	case c.Phase != "connected":
		return c.Phase
	case c.Healthy:
		return "healthy"
	case c.Cause != nil:
		return "unhealthy: " + c.Cause.Message
	}
	return "unhealthy"
}

func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func ports(all []event.Port) string {
	var s []string
	for _, p := range all {
		x := fmt.Sprintf("%d/%s", p.Container, p.Protocol)
		if p.Handler != 0 && p.Handler != p.Container {
			x += fmt.Sprintf(":%d", p.Handler)
		}
		s = append(s, x)
	}
	return dash(strings.Join(s, ","))
}

func (a *App) listCommand() *usage.Command {
	var namespace string
	c := &usage.Command{
		Name: "list", Synopsis: "list [-n NAMESPACE]",
		Short:    "List the workloads: whether each can be engaged, and who holds it.",
		Examples: []string{"ctl list", "ctl list -n shop", "ctl list --output json"},
		Flags:    a.flags("list"),
	}
	c.Flags.StringVar(&namespace, "n", "", "`NAMESPACE` to list (default: the connected one)")
	c.Flags.StringVar(&namespace, "namespace", "", "the same as -n")
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("list", l); err != nil {
			return err
		}
		return a.list(ctx, namespace)
	})
	return c
}

func (a *App) list(ctx context.Context, namespace string) error {
	s, err := a.join(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	rec, err := choose(s.state.Connections, a.use)
	if err != nil {
		return err
	}
	w, err := bus.Call(ctx, s.conn, command.WorkloadsList, "", command.ListWorkloads{Connection: rec.ID, Namespace: namespace})
	if err != nil {
		return err
	}
	if w.Items == nil {
		w.Items = []command.Workload{}
	}
	if err := a.print.Value(w); err != nil {
		return err
	}
	if len(w.Items) == 0 {
		a.print.Result("no workloads in namespace %s", cmp.Or(namespace, rec.Namespace))
		return nil
	}
	rows := [][]string{{"WORKLOAD", "READY", "CONTAINERS", "STATE"}}
	for _, i := range w.Items {
		state := "can be engaged"
		switch {
		case i.Holder != "":
			state = "engaged by " + i.Holder
		case !i.Engageable:
			state = "cannot be engaged: " + i.Reason
		}
		rows = append(rows, []string{strings.ToLower(i.Kind) + "/" + i.Name, i.Ready, strings.Join(i.Containers, ","), state})
	}
	a.print.Table(rows)
	return nil
}

// versions is what `ctl version` prints as JSON.
type versions struct {
	Ctl       string            `json:"ctl"`
	Connector string            `json:"connector,omitempty"`
	Engine    string            `json:"engine,omitempty"`
	EngineAPI string            `json:"engineAPI,omitempty"`
	Managers  map[string]string `json:"managers,omitempty"` // by connection
	Clusters  map[string]string `json:"clusters,omitempty"` // by connection
}

func (a *App) versionCommand() *usage.Command {
	c := &usage.Command{
		Name: "version", Synopsis: "version",
		Short:    "Show the versions of every part.",
		Long:     "Parts that do not run have no version; ctl's own needs nothing to run.",
		Examples: []string{"ctl version", "ctl version --output json"},
		Flags:    a.flags("version"),
	}
	c.Run = a.run(func(ctx context.Context, l usage.Line) error {
		if err := noWords("version", l); err != nil {
			return err
		}
		return a.version(ctx)
	})
	return c
}

func (a *App) version(ctx context.Context) error {
	v := versions{Ctl: a.Version}
	if e, err := engine.Open(ctx); err == nil {
		if s, err := e.API.ServerVersion(ctx); err == nil {
			v.Engine, v.EngineAPI = s.Version, e.API.ClientVersion()
		}
		e.Close()
		if s, err := a.join(ctx); err == nil {
			defer s.close()
			v.Connector = s.state.Version
			v.Managers, v.Clusters = map[string]string{}, map[string]string{}
			for _, c := range s.state.Connections {
				v.Managers[c.Name], v.Clusters[c.Name] = c.Manager, c.ServerInfo
			}
		}
	}
	if err := a.print.Value(v); err != nil {
		return err
	}
	a.print.Result("ctl        %s", v.Ctl)
	a.print.Result("connector  %s", dash(v.Connector))
	a.print.Result("engine     %s (API %s)", dash(v.Engine), dash(v.EngineAPI))
	for name, m := range v.Managers {
		a.print.Result("manager    %s (connection %s, Kubernetes %s)", dash(m), name, dash(v.Clusters[name]))
	}
	return nil
}

package service

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/subject"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"
)

// TestRealCluster takes the cluster of BERTH_TEST_KUBECONFIG: install, connect
// through its manager, replace BERTH_TEST_WORKLOAD (namespace/name) and, with
// BERTH_TEST_UNINSTALL, uninstall and install again. Runner and vif stay scripted,
// so that the agents never become Ready and the engagement ends before it is
// active: the whole is e2e's. BERTH_TEST_IMAGE is the image of the cluster side,
// its tag the version.
func TestRealCluster(t *testing.T) {
	path, image := os.Getenv("BERTH_TEST_KUBECONFIG"), os.Getenv("BERTH_TEST_IMAGE")
	if path == "" || image == "" {
		t.Skip("TestRealCluster needs BERTH_TEST_KUBECONFIG and BERTH_TEST_IMAGE")
	}
	raw, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := clientcmdapi.FlattenConfig(raw); err != nil {
		t.Fatal(err)
	}
	y, err := clientcmd.Write(*raw)
	if err != nil {
		t.Fatal(err)
	}
	kc, err := yaml.YAMLToJSON(y)
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(image, ":")
	b := bustest.Start(t)
	ctl, runner := b.Connect(subject.Ctl), startRunner(t, b)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	conn := b.Connect(subject.Connector)
	go func() {
		ended <- Run(ctx, Options{Bus: conn, Admission: b.Server(), BusURL: b.Server().URL(), Version: version, Image: image,
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	}()
	defer func() { cancel(); <-ended }()
	eventually(t, "the service answers", func() bool {
		_, err := bus.Call(t.Context(), ctl, command.StateGet, "", command.None{})
		return err == nil
	})
	until := func(scope subject.Scope, id, fact string) event.Envelope {
		t.Helper()
		ctx := bustest.Within(t, 3*time.Minute)
		tail, err := ctl.TailFacts(ctx, time.Time{}, subject.FactsOf(scope, id))
		if err != nil {
			t.Fatal(err)
		}
		defer tail.Stop()
		for {
			e, err := tail.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s", e.Type, e.Data)
			if strings.Contains(e.Type, "."+fact+".") {
				return e
			}
			if event.Terminal(e) {
				t.Fatalf("wanted %s: %s", fact, e.Data)
			}
		}
	}
	send := func(spec command.Spec[command.InstallCluster, command.Accepted], id string) {
		t.Helper()
		if _, err := bus.Call(t.Context(), ctl, spec, "", command.InstallCluster{ID: id, Kubeconfig: kc, Namespace: "berth"}); err != nil {
			t.Fatal(err)
		}
	}
	send(command.Install, "i1")
	until(subject.Installation, "i1", "installed")

	ns, name, _ := strings.Cut(os.Getenv("BERTH_TEST_WORKLOAD"), "/")
	if name != "" {
		req := command.OpenConnection{ID: "c1", Name: "real", Context: "real", Namespace: ns, Server: "https://real", Kubeconfig: kc, Client: "me@here"}
		if _, err := bus.Call(t.Context(), ctl, command.ConnectionOpen, "", req); err != nil {
			t.Fatal(err)
		}
		until(subject.Connection, "c1", "connected")
		w, err := bus.Call(t.Context(), ctl, command.WorkloadsList, "", command.ListWorkloads{Connection: "c1"})
		t.Logf("%+v, %v", w, err)
		q := command.OpenEngagement{ID: "e" + strings.ToLower(time.Now().Format("150405")), Connection: "c1", Kind: "replace", Workload: name,
			Handler: &command.Handler{Config: json.RawMessage(`{}`), HostConfig: json.RawMessage(`{}`)}}
		if _, err := bus.Call(t.Context(), ctl, command.EngagementOpen, "", q); err != nil {
			t.Fatal(err)
		}
		until(subject.Engagement, q.ID, "handler-started")
		runner.mu.Lock()
		if n := len(runner.created.Env); n < 5 {
			t.Errorf("the environment has %d entries", n)
		}
		runner.mu.Unlock()
		if _, err := bus.Call(t.Context(), ctl, command.ConnectionClose, "", command.CloseConnection{ID: "c1"}); err != nil {
			t.Fatal(err)
		}
		until(subject.Engagement, q.ID, "ended")
		until(subject.Connection, "c1", "disconnected")
	}
	if os.Getenv("BERTH_TEST_UNINSTALL") != "" {
		for _, id := range []string{"u1", "u2"} { // the second finds nothing
			send(command.Uninstall, id)
			until(subject.Installation, id, "uninstalled")
		}
		send(command.Install, "i2")
		until(subject.Installation, "i2", "installed")
	}
}

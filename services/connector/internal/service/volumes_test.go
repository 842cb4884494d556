package service

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
	"berth.dev/lease"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The token of an engagement reaches vif, and its hash the Lease; the handler's
// volumes hold neither. A handler with volumes has ended before its pods go.
func TestVolumes(t *testing.T) {
	r := newRig(t)
	r.run.mu.Lock()
	r.run.volumes = &command.VolumePlugin{Kind: "managed", Driver: "telemount:latest", Pin: "plugin-pin"}
	r.run.mu.Unlock()
	r.connect("c1")
	r.engage(r.engageReq("e1"))
	bustest.Wait[event.EngagementActive](t, r.ctl, "e1")

	r.run.mu.Lock()
	told, made := r.run.engaged, r.run.created
	r.run.mu.Unlock()
	if told.Volumes == nil || len(told.Volumes.Token) < 20 || told.Volumes.Pin != "plugin-pin" {
		t.Fatalf("vif was told %+v", told.Volumes)
	}
	token := told.Volumes.Token
	leases, err := r.kube.CoordinationV1().Leases("shop").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) != 1 {
		t.Fatal(err, len(leases.Items))
	}
	spec, err := lease.Unmarshal[lease.EngagementSpec](leases.Items[0].Annotations[lease.AnnotationSpec])
	if err != nil || spec.TokenHash != lease.TokenHash(token) {
		t.Errorf("the Lease has %q, %v", spec.TokenHash, err)
	}
	want := []command.Mount{
		{Volume: "berth-e1-0", Path: "/a", Driver: "telemount:latest", Options: map[string]string{"engagement": "e1", "container": "app", "path": "/a", "door": "172.18.0.4:40000", "pin": "door-pin"}},
		{Volume: "berth-e1-1", Path: "/b", ReadOnly: true, Driver: "telemount:latest", Options: map[string]string{"engagement": "e1", "container": "app", "path": "/b", "door": "172.18.0.4:40000", "pin": "door-pin", "ro": "true"}},
	}
	if got, _ := json.Marshal(made.Mounts); !bytes.Equal(got, must(json.Marshal(want))) {
		t.Errorf("mounts %s", got)
	}
	if len(made.Files) != 1 || made.Files[0].Path != "/etc/one" || string(made.Files[0].Content) != "one" {
		t.Errorf("files %+v", made.Files)
	}
	env := string(bytes.Join(made.Env, []byte("\n")))
	if !strings.Contains(env, "BERTH_MOUNTS=/a:/b:/etc/one\nBERTH_ROOT=/\n") {
		t.Errorf("environment %q", env)
	}
	if strings.Contains(env, token) || strings.Contains(leases.Items[0].String(), token) || bytes.Contains(must(json.Marshal(made)), []byte(token)) {
		t.Error("the token is where it does not belong")
	}

	call(r, command.EngagementClose, command.CloseEngagement{ID: "e1"})
	r.ends(subject.Engagement, "e1")
	calls := strings.Split(r.run.history(), ", ")
	if slices.Index(calls, "handler-stop") > slices.Index(calls, "disengage") {
		t.Errorf("vif let go before the handler had ended: %v", calls)
	}
	tail, err := r.ctl.TailFacts(t.Context(), time.Time{}, subject.AllFacts)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Stop()
	for {
		e, err := tail.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(e.Data, []byte(token)) {
			t.Errorf("the token is in a fact: %s", e.Data)
		}
		if event.Terminal(e) {
			break
		}
	}
}

// Without a plugin an engagement goes on and says why, unless volumes were asked
// for: then it is refused, and nothing has been touched.
func TestNoVolumePlugin(t *testing.T) {
	r := newRig(t)
	r.run.mu.Lock()
	r.run.volumes = &command.VolumePlugin{Reason: "rootless"}
	r.run.mu.Unlock()
	r.connect("c1")
	req := r.engageReq("e1")
	req.Mount = "true"
	if f := fault.From(refusal(r, req)); f.Code != fault.FailedPrecondition || !strings.Contains(f.Message, "rootless") || f.Hint != "ctl doctor" {
		t.Errorf("%+v", f)
	}
	req.Mount = "perhaps"
	if f := fault.From(refusal(r, req)); f.Code != fault.InvalidArgument {
		t.Errorf("%+v", f)
	}
	req.Mount = ""
	r.engage(req)
	bustest.Wait[event.EngagementActive](t, r.ctl, "e1")
	if f := bustest.Wait[event.EngagementRequested](t, r.ctl, "e1"); f.NoVolumes != "rootless" {
		t.Errorf("it is not told why there are no volumes: %+v", f)
	}
	r.run.mu.Lock()
	defer r.run.mu.Unlock()
	if r.run.engaged.Volumes != nil || len(r.run.created.Mounts)+len(r.run.created.Files) > 0 {
		t.Errorf("%+v, %+v", r.run.engaged, r.run.created.Mounts)
	}
}

func refusal(r *rig, req command.OpenEngagement) error {
	_, err := bus.Call(r.t.Context(), r.ctl, command.EngagementOpen, "", req)
	if err == nil {
		r.t.Fatal("it was accepted")
	}
	return err
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

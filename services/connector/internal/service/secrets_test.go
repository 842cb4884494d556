package service

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// newVault is connected, and has the workload vault.
func newVault(t *testing.T) *rig {
	r := newRig(t)
	if _, err := r.kube.AppsV1().Deployments("shop").Create(t.Context(), vault(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.connect("c1")
	return r
}

// Secrets that the user may not read do not reach the handler.
func TestSecrets(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		r := newVault(t)
		for _, policy := range []string{"", "allow"} {
			req := r.engageReq("e1")
			req.Workload, req.Secrets = "vault", policy
			_, err := bus.Call(t.Context(), r.ctl, command.EngagementOpen, "", req)
			if f := fault.From(err); f == nil || f.Code != fault.PermissionDenied || f.Hint != "--secrets mask" || !strings.Contains(f.Message, "locked") || strings.Contains(f.Message, "open") {
				t.Errorf("%q: %+v", policy, f)
			}
		}
		if got := r.leases(); len(got) != 1 {
			t.Errorf("touched: %v", got)
		}
		req := r.engageReq("e1")
		req.Secrets = "some"
		if _, err := bus.Call(t.Context(), r.ctl, command.EngagementOpen, "", req); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("%v", err)
		}
	})
	for _, tc := range []struct {
		policy          string
		granted, masked []string
		greeting        string
	}{
		{"mask", []string{"open"}, []string{"locked"}, "hello"},
		{"deny", []string{}, []string{"locked", "open"}, "masked"},
	} {
		t.Run(tc.policy, func(t *testing.T) {
			r := newVault(t)
			req := r.engageReq("e1")
			req.Workload, req.Secrets = "vault", tc.policy
			r.engage(req)
			bustest.Wait[event.EngagementActive](t, r.ctl, "e1")
			f := bustest.Wait[event.SecretsReviewed](t, r.ctl, "e1")
			if f.Policy != tc.policy || !slices.Equal(f.Granted, tc.granted) || !slices.Equal(f.Masked, tc.masked) {
				t.Errorf("%+v", f)
			}
			asked, err := bus.Call(t.Context(), r.ctl, command.EngagementEnvironment, "", command.EngagementRef{Engagement: "e1"})
			if err != nil {
				t.Fatal(err)
			}
			for what, env := range map[string][][]byte{"the handler": r.run.created.Env, "who asks": asked.Env} {
				all := "\n" + string(bytes.Join(env, []byte("\n"))) + "\n"
				if !strings.Contains(all, "\nGREETING="+tc.greeting+"\n") || !strings.Contains(all, "\nSECRET=masked\n") || strings.Contains(all, "s3cret") {
					t.Errorf("%s has %q", what, all)
				}
			}
			call(r, command.EngagementClose, command.CloseEngagement{ID: "e1"})
			r.ends(subject.Engagement, "e1")
		})
	}
}

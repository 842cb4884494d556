package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

var options = Options{Image: "berth-cluster:1", Addresses: []string{"10.96.0.77:8080", "berth-manager.berth:8080"}, Pin: "PIN"}

// Each testdata/<name>.json is a pod as the API server sends it; <name>.golden
// is the patch for it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d pods, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		t.Run(name, func(t *testing.T) {
			pod := read(t, f)
			patch, err := Pod(pod, replace("app"), options)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, patch, "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			golden := strings.TrimSuffix(f, ".json") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("the patch has changed (go test -update writes it anew):\n%s", got.String())
			}
		})
	}
}

func read(t *testing.T, f string) *corev1.Pod {
	t.Helper()
	b, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(b, &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

func replace(container string, ports ...lease.Port) Engagement {
	return Engagement{EngagementSpec: lease.EngagementSpec{ID: "e1", Kind: lease.Replace, Container: container, Ports: ports}, Workload: "Deployment/web"}
}

// What Pod Security `restricted` demands of a container that had it before
// (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
func TestRestrictedStaysRestricted(t *testing.T) {
	pod := read(t, "testdata/restricted.json")
	c := replaced(pod, 0, replace("app"), options)
	sc := c.SecurityContext
	switch {
	case sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation:
		t.Error("allowPrivilegeEscalation")
	case len(sc.Capabilities.Drop) != 1 || sc.Capabilities.Drop[0] != "ALL" || len(sc.Capabilities.Add) != 0:
		t.Error("capabilities", sc.Capabilities)
	case sc.RunAsUser == nil || *sc.RunAsUser == 0:
		t.Error("runAsUser", sc.RunAsUser)
	case sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Error("seccompProfile", sc.SeccompProfile)
	}
}

func TestWhoTheAgentRunsAs(t *testing.T) {
	n, yes, no := func(i int64) *int64 { return &i }, true, false
	const root = "NET_BIND_SERVICE CHOWN DAC_OVERRIDE FOWNER FSETID"
	dropped := func(drop corev1.Capability, add ...corev1.Capability) *corev1.SecurityContext {
		return &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{drop}, Add: add}}
	}
	for i, tt := range []struct {
		pod  *corev1.PodSecurityContext
		was  *corev1.SecurityContext
		user string // of the container; "-" leaves it to the pod, or to the agent's image, whose is root
		caps string
	}{
		{nil, nil, "-", root},
		{&corev1.PodSecurityContext{RunAsUser: n(1000)}, nil, "-", ""},
		{&corev1.PodSecurityContext{RunAsNonRoot: &yes}, nil, "65532", ""},
		{&corev1.PodSecurityContext{RunAsNonRoot: &yes}, &corev1.SecurityContext{RunAsUser: n(7)}, "7", ""},
		{&corev1.PodSecurityContext{RunAsNonRoot: &yes}, &corev1.SecurityContext{RunAsNonRoot: &no}, "-", root},
		{nil, &corev1.SecurityContext{RunAsNonRoot: &yes}, "65532", ""},
		{&corev1.PodSecurityContext{RunAsUser: n(0)}, nil, "-", root},
		{nil, &corev1.SecurityContext{Privileged: &yes}, "-", root},
		{nil, dropped("ALL"), "-", "NET_BIND_SERVICE"},
		{nil, dropped("ALL", "CHOWN"), "-", "NET_BIND_SERVICE CHOWN"},
		{nil, dropped("CHOWN"), "-", "NET_BIND_SERVICE DAC_OVERRIDE FOWNER FSETID"},
	} {
		sc := securityContext(tt.pod, tt.was)
		user := "-"
		if sc.RunAsUser != nil {
			user = fmt.Sprint(*sc.RunAsUser)
		}
		if caps := strings.Trim(fmt.Sprint(sc.Capabilities.Add), "[]"); user != tt.user || caps != tt.caps || sc.Privileged != nil {
			t.Errorf("%d: user %s, capabilities %v, privileged %v", i, user, sc.Capabilities.Add, sc.Privileged)
		}
	}
}

func TestRefuses(t *testing.T) {
	pod := read(t, "testdata/restricted.json")
	if _, err := Pod(pod, replace("nope"), options); err == nil {
		t.Error("a container that is not there")
	}
	e := replace("app")
	e.Kind = lease.Ingest
	if _, err := Pod(pod, e, options); err == nil {
		t.Error("an ingest")
	}
}

func TestPorts(t *testing.T) {
	c := &corev1.Container{Ports: []corev1.ContainerPort{{Name: "dns", ContainerPort: 53, Protocol: "UDP"}, {ContainerPort: 80}, {ContainerPort: 99, Protocol: "SCTP"}}}
	if got := fmt.Sprint(Ports(c, nil)); got != "[{53 53 UDP dns} {80 80 TCP }]" {
		t.Error("declared:", got)
	}
	if got := fmt.Sprint(Ports(c, []lease.Port{{Container: 81, Handler: 8081}})); got != "[{81 8081 TCP }]" {
		t.Error("asked for:", got)
	}
}

package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"berth.dev/lease"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
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

// testdata/<name>.beside.golden and <name>.divert.golden are the ephemeral
// containers that put an agent beside the container app.
func TestEphemeralGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 5 {
		t.Fatalf("found %d pods, %v", len(files), err)
	}
	for _, f := range files {
		for kind, divert := range map[string]bool{"beside": false, "divert": true} {
			t.Run(filepath.Base(f)+" "+kind, func(t *testing.T) {
				pod := read(t, f)
				pod.Namespace, pod.Name = "shop", "web-1"
				for i := range pod.Spec.Containers { // what would be refused
					c := &pod.Spec.Containers[i]
					c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.SubPath != "" })
				}
				before := pod.DeepCopy()
				ec, err := Ephemeral(pod, "app", divert, func(name string) string { return "proof of " + name }, options)
				if err != nil {
					t.Fatal(err)
				}
				got, err := json.MarshalIndent(ec, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, '\n')
				golden := strings.TrimSuffix(f, ".json") + "." + kind + ".golden"
				if *update {
					if err := os.WriteFile(golden, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("the ephemeral container has changed (go test -update writes it anew):\n%s", got)
				}
				if id, ok := AgentOf(ec, options.Pin); !ok || id.Container != "app" || id.Pod != "web-1" || id.Divert != divert {
					t.Errorf("read back: %+v, %v", id, ok)
				}
				if _, ok := AgentOf(ec, "another installation's"); ok {
					t.Error("another installation's agent is taken for one of ours")
				}
				if bare := Bare(*ec); len(bare.Env) != 2 {
					t.Errorf("bare: %+v", bare)
				} else if id, ok := AgentOf(&bare, options.Pin); !ok || id.Name != ec.Name {
					t.Error("what is kept of it says nothing")
				}
				if !reflect.DeepEqual(pod, before) {
					t.Error("the pod was changed")
				}
				if ec.Resources.Limits != nil || ec.Ports != nil || ec.LivenessProbe != nil {
					t.Error("an ephemeral container has no such fields")
				}
			})
		}
	}
}

func TestEphemeralRefuses(t *testing.T) {
	for want, change := range map[string]func(*corev1.Pod){
		"no container": func(p *corev1.Pod) { p.Spec.Containers[0].Name = "other" },
		"subPath": func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{MountPath: "/c", SubPath: "x"}}
		},
		"their node's network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
	} {
		pod := read(t, "testdata/plain.json")
		change(pod)
		if _, err := Ephemeral(pod, "app", false, func(string) string { return "" }, options); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// Names of agents that have ended are not used again, and fit a label.
func TestAgentNames(t *testing.T) {
	pod := &corev1.Pod{}
	for _, want := range []string{"berth-agent-app-1", "berth-agent-app-2"} {
		name := agentName(pod, "app")
		if name != want {
			t.Errorf("%s, want %s", name, want)
		}
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name}})
	}
	long := agentName(pod, strings.Repeat("x", 63))
	if len(long) > 63 || long == agentName(pod, strings.Repeat("x", 62)+"y") || !IsAgent(long) {
		t.Error(long)
	}
}

func TestDiverted(t *testing.T) {
	http := func(path string, port intstr.IntOrString, scheme corev1.URIScheme, headers ...corev1.HTTPHeader) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: port, Scheme: scheme, HTTPHeaders: headers}}}
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{
		{Name: "app", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8081}, {Name: "dns", ContainerPort: 53, Protocol: "UDP"}, {Name: "dns-tcp", ContainerPort: 53}},
			LivenessProbe:  http("healthz?a=b", intstr.FromString("web"), "HTTP", corev1.HTTPHeader{Name: "user-agent", Value: "prober"}),
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("dns-tcp")}}},
			StartupProbe:   http("/", intstr.FromInt32(9), "HTTPS")},
		{Name: "sidecar", LivenessProbe: http("", intstr.FromInt32(8081), ""), ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9}}}},
		{Name: "elsewhere", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8081), Host: "example.org"}}}},
	}}}
	// Of containers that share a port's name the first counts, unless it was found in
	// another; one that stays counts too, after the others.
	always := corev1.ContainerRestartPolicyAlways
	shared := &corev1.Pod{Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 80}}}, {Name: "proxy", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 81}}}},
		InitContainers: []corev1.Container{{Name: "once", Ports: []corev1.ContainerPort{{Name: "mesh", ContainerPort: 90}}},
			{Name: "stays", RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "mesh", ContainerPort: 91}, {Name: "web", ContainerPort: 92}}}},
	}}
	for asked, at := range map[lease.Port]uint16{
		{Container: 80, Protocol: "TCP", Name: "web"}: 80, {Container: 81, Protocol: "TCP", Name: "web"}: 81, {Container: 8080, Protocol: "TCP", Name: "web"}: 80,
		{Container: 9000, Protocol: "TCP", Name: "mesh"}: 91, {Container: 91, Protocol: "TCP", Name: "mesh"}: 91,
	} {
		if got := Diverted(shared, []lease.Port{asked}, lease.EngagementSpec{}); got[0].Port != at {
			t.Errorf("%v is diverted at %d, want %d", asked, got[0].Port, at)
		}
	}
	got := Diverted(pod, []lease.Port{
		{Container: 8080, Protocol: "TCP", Name: "web"}, // an older pod has it elsewhere
		{Container: 53, Protocol: "UDP", Name: "dns"},
		{Container: 53, Protocol: "TCP"},
		{Container: 9, Protocol: "TCP", Name: "unknown"},
	}, lease.EngagementSpec{})
	want := []lease.Diverted{
		{Port: 8081, Protocol: "TCP", As: 8080, Probes: []lease.Probe{{Kind: "http", Path: "/healthz?a=b", UserAgent: "prober"}, {Kind: "http", Path: "/"}}},
		{Port: 53, Protocol: "UDP", As: 53},
		{Port: 53, Protocol: "TCP", As: 53, Probes: []lease.Probe{{Kind: "tcp"}}},
		{Port: 9, Protocol: "TCP", As: 9, Probes: []lease.Probe{{Kind: "opaque"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
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
	for i, tt := range []struct {
		pod  *corev1.PodSecurityContext
		was  *corev1.SecurityContext
		user string // of the container; "-" leaves it to the pod
		bind bool
	}{
		{nil, nil, "0", true},
		{&corev1.PodSecurityContext{RunAsUser: n(1000)}, nil, "-", false},
		{&corev1.PodSecurityContext{RunAsNonRoot: &yes}, nil, "65532", false},
		{&corev1.PodSecurityContext{RunAsNonRoot: &yes}, &corev1.SecurityContext{RunAsUser: n(7)}, "7", false},
		{&corev1.PodSecurityContext{RunAsNonRoot: &yes}, &corev1.SecurityContext{RunAsNonRoot: &no}, "0", true},
		{nil, &corev1.SecurityContext{RunAsNonRoot: &yes}, "65532", false},
		{&corev1.PodSecurityContext{RunAsUser: n(0)}, nil, "-", true},
		{nil, &corev1.SecurityContext{Privileged: &yes}, "0", true},
	} {
		sc := securityContext(tt.pod, tt.was)
		user := "-"
		if sc.RunAsUser != nil {
			user = fmt.Sprint(*sc.RunAsUser)
		}
		if user != tt.user || (len(sc.Capabilities.Add) == 1) != tt.bind || sc.Privileged != nil {
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

// testdata/<name>.sidecar.golden is the patch that puts an agent beside the
// container app by a new pod: a plain one, and one that is given a port's name.
func TestSidecarGolden(t *testing.T) {
	for name, s := range map[string]Sidecar{"plain": {Container: "app"}, "restricted": {Container: "app", Named: []lease.Port{{Container: 8080, Protocol: "TCP", Name: "http"}}}, "user": {Container: "app", Divert: true}} {
		t.Run(name, func(t *testing.T) {
			pod := read(t, "testdata/"+name+".json")
			if name == "restricted" {
				c := &pod.Spec.Containers[0]
				c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "other", ContainerPort: 15001}}
				c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("http")}}}
			}
			e := replace("app")
			e.Kind, e.Sidecars = lease.Intercept, []Sidecar{s}
			patch, err := Pod(pod, e, options)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := json.Indent(&got, patch, "", "  "); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('\n')
			golden := "testdata/" + name + ".sidecar.golden"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("the patch has changed (go test -update writes it anew), %v:\n%s", err, got.String())
			}
		})
	}
	node := read(t, "testdata/plain.json")
	node.Spec.HostNetwork = true
	e := replace("app")
	e.Kind, e.Sidecars = lease.Intercept, []Sidecar{{Container: "app", Divert: true}}
	if _, err := Pod(node, e, options); err == nil {
		t.Error("a node's traffic is diverted")
	}
	if a, b := Mark([]Sidecar{{Container: "a"}}), Mark([]Sidecar{{Container: "a", Divert: true}}); a == b || !IsMark(a) || Mark(nil) != "" {
		t.Error(a, b)
	}
}

// A new pod of an intercepted workload is changed in nothing but what makes it wait.
func TestGate(t *testing.T) {
	pod := read(t, "testdata/plain.json")
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "theirs"}}
	pod.Annotations = map[string]string{"a": "b"}
	e := replace("app")
	e.Kind = lease.Intercept
	patch, err := Pod(pod, e, options)
	want := `[{"op":"add","path":"/metadata/annotations","value":{"a":"b","berth.dev/workload":"Deployment/web"}},` +
		`{"op":"add","path":"/spec/readinessGates","value":[{"conditionType":"theirs"},{"conditionType":"berth.dev/diverted"}]}]`
	if err != nil || string(patch) != want {
		t.Errorf("%s, %v", patch, err)
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

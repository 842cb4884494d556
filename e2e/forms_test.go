package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"berth.dev/e2e/rig"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// forms are the pods of one of testdata/forms.yaml's workloads.
type forms struct {
	name string
	pods int
}

// list waits until the pods are there, all Ready and none of them ending.
func (f forms) list(t *testing.T) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	rig.Eventually(t, 2*time.Minute, fmt.Sprintf("%d pods of %s are Ready", f.pods, f.name), func(ctx context.Context) (bool, string) {
		l, err := cluster.Kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + f.name})
		if err != nil {
			return false, err.Error()
		}
		pods = l.Items
		saw := ""
		good := len(pods) == f.pods
		for _, p := range pods {
			good = good && rig.Ready(&p) && p.DeletionTimestamp == nil
			saw += fmt.Sprintln(p.Name, p.Status.Phase, rig.Ready(&p), p.DeletionTimestamp)
		}
		return good, saw
	})
	return pods
}

// unharmed returns a check that the pods are those of now, and that since then
// none was restarted or unready: the probes were green throughout.
func (f forms) unharmed(t *testing.T) func() {
	t.Helper()
	state := func() string {
		var all strings.Builder
		for _, p := range f.list(t) {
			fmt.Fprint(&all, p.Name, " ", p.UID)
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady {
					fmt.Fprint(&all, " Ready since ", c.LastTransitionTime)
				}
			}
			for _, c := range p.Status.ContainerStatuses {
				fmt.Fprint(&all, " ", c.Name, " restarted ", c.RestartCount)
			}
			fmt.Fprintln(&all)
		}
		return all.String()
	}
	before := state()
	return func() {
		t.Helper()
		if now := state(); now != before {
			t.Errorf("the pods of %s are now\n%sbefore\n%s", f.name, now, before)
		}
	}
}

// says probes until the text answers at a URL, from inside the cluster.
func says(t *testing.T, text, url string) {
	t.Helper()
	rig.Eventually(t, time.Minute, url+" is answered by "+text, func(ctx context.Context) (bool, string) {
		got, err := cluster.Get(ctx, url)
		if err != nil {
			return false, err.Error()
		}
		return got == text+"\n", got
	})
}

// saysUDP is the same by datagrams, which may get lost.
func saysUDP(t *testing.T, text, addr string) {
	t.Helper()
	asker := podOf(t, "echo")
	rig.Eventually(t, time.Minute, "datagrams to "+addr+" are answered by "+text, func(ctx context.Context) (bool, string) {
		out, err := cluster.Exec(ctx, "default", asker, "other", "/probe", "udp", addr, "who", text)
		return err == nil, out
	})
}

// leaves ends an engagement by ctl leave.
func leaves(t *testing.T, ctl *rig.Ctl, p *rig.Proc, name string) {
	t.Helper()
	ctl.Must(t, "leave", name)
	p.Wait(t, time.Minute)
}

// TestForms engages workloads of every kind, and reaches them in every way that
// leads to their ports.
func TestForms(t *testing.T) {
	apply(t, "testdata/forms.yaml")
	ctl := rig.NewCtl(t, cluster)
	connect(t, ctl)
	handler := func(port string) []string {
		return []string{"--docker-run", "--", probeImage, "says", "handler", port}
	}

	t.Run("StatefulSet, bound to its pod's address", func(t *testing.T) {
		f := forms{"forms-set", 2}
		f.list(t)
		ways := []string{"http://forms-set-all", "http://forms-set-0.forms-set:7021", "http://forms-set-1.forms-set:7021"}
		each := func(text string) {
			t.Helper()
			for _, url := range ways {
				says(t, text, url)
			}
		}
		each("app")
		check := f.unharmed(t)
		p := ctl.Start(t, append([]string{"intercept", "forms-set", "--service", "forms-set-all", "--port", "9021:web"}, handler("9021")...)...)
		each("handler")
		leaves(t, ctl, p, "forms-set")
		each("app")
		check()

		p = ctl.Start(t, append([]string{"replace", "statefulset/forms-set", "--port", "9021:7021"}, handler("9021")...)...)
		each("handler")
		leaves(t, ctl, p, "forms-set")
		each("app")
		f.list(t)
	})

	t.Run("ReplicaSet, its port by name", func(t *testing.T) {
		f := forms{"forms-rs", 1}
		f.list(t)
		says(t, "app", "http://forms-rs")
		check := f.unharmed(t)
		p := ctl.Start(t, append([]string{"intercept", "forms-rs", "--port", "9022:80"}, handler("9022")...)...)
		says(t, "handler", "http://forms-rs")
		leaves(t, ctl, p, "forms-rs")
		says(t, "app", "http://forms-rs")
		check()

		p = ctl.Start(t, append([]string{"replace", "forms-rs"}, handler("7022")...)...)
		says(t, "handler", "http://forms-rs")
		leaves(t, ctl, p, "forms-rs")
		says(t, "app", "http://forms-rs")
		f.list(t)
	})

	t.Run("no service, TCP and UDP on one number", func(t *testing.T) {
		f := forms{"forms-alone", 1}
		ip := f.list(t)[0].Status.PodIP
		check := f.unharmed(t)
		p := ctl.Start(t, append([]string{"intercept", "forms-alone", "--port", "9023:7023", "--port", "9024:7023/UDP"}, "--docker-run", "--", probeImage, "says", "handler", "9023", "9024")...)
		says(t, "handler", "http://"+ip+":7023")
		saysUDP(t, "handler", ip+":7023")
		says(t, "app", "http://"+ip+":7029")
		saysUDP(t, "app", ip+":7029")
		leaves(t, ctl, p, "forms-alone")
		says(t, "app", "http://"+ip+":7023")
		saysUDP(t, "app", ip+":7023")

		// A port that the container listens on without declaring it.
		p = ctl.Start(t, append([]string{"intercept", "forms-alone", "--port", "9029:7029"}, handler("9029")...)...)
		says(t, "handler", "http://"+ip+":7029")
		says(t, "app", "http://"+ip+":7023")
		leaves(t, ctl, p, "forms-alone")
		says(t, "app", "http://"+ip+":7029")
		check()
	})

	t.Run("two services", func(t *testing.T) {
		f := forms{"forms-two", 1}
		f.list(t)
		check := f.unharmed(t)
		refused(t, ctl, 2, []string{"ambiguous", "forms-two-one", "forms-two-other"}, append([]string{"intercept", "forms-two", "--port", "9025:80"}, handler("9025")...)...)
		refused(t, ctl, 1, []string{"no service forms-three selects", "forms-two-one"}, append([]string{"intercept", "forms-two", "--service", "forms-three", "--port", "9025:80"}, handler("9025")...)...)
		p := ctl.Start(t, append([]string{"intercept", "forms-two", "--service", "forms-two-other", "--port", "9025:80"}, handler("9025")...)...)
		says(t, "handler", "http://forms-two-other")
		says(t, "app", "http://forms-two-one")
		// The other port is free for somebody else.
		q := ctl.Start(t, append([]string{"intercept", "forms-two", "--service", "forms-two-one", "--port", "9026:80"}, handler("9026")...)...)
		says(t, "handler", "http://forms-two-one")
		if err := q.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		q.Wait(t, time.Minute)
		says(t, "app", "http://forms-two-one")
		says(t, "handler", "http://forms-two-other")
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		p.Wait(t, time.Minute)
		says(t, "app", "http://forms-two-other")
		check()
	})
}

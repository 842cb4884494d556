package cli

import (
	"testing"
	"time"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

func at(t *testing.T, when time.Time, id string, d event.Data) event.Envelope {
	t.Helper()
	_, e, err := event.New(id, d)
	if err != nil {
		t.Fatal(err)
	}
	e.Time = when
	return e
}

func TestPicker(t *testing.T) {
	t0 := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	req := func(name, conn string) event.EngagementRequested {
		return event.EngagementRequested{Name: name, Connection: conn, WorkloadKind: "Deployment", Workload: "web", Container: "app"}
	}
	facts := []event.Envelope{
		at(t, t0, "c1", event.ConnectionRequested{Name: "one"}),
		at(t, t0, "c2", event.ConnectionRequested{Name: "two"}),
		at(t, t0.Add(1*time.Second), "e1", req("web/app", "c1")),
		at(t, t0.Add(2*time.Second), "e2", event.EngagementRequested{Name: "db", Connection: "c2", Workload: "db"}),
		at(t, t0.Add(3*time.Second), "e1", event.EngagementActive{}),
		at(t, t0.Add(4*time.Second), "e1", event.EngagementEnded{}),
		at(t, t0.Add(5*time.Second), "e3", req("web/app", "c2")),
		at(t, t0.Add(6*time.Second), "c1", event.Disconnected{}),
	}
	cases := []struct {
		name, engagement, connection string
		from                         time.Time
		takes                        []int
		overAt                       int // the first fact after which it is over; -1 never
	}{
		{"all", "", "", t0, []int{0, 1, 2, 3, 4, 5, 6, 7}, -1},
		{"by id", "e1", "", t0, []int{2, 4, 5}, 5},
		{"by name", "web/app", "", t0, []int{2, 4, 5, 6}, 5},
		{"by workload", "web", "", t0, []int{2, 4, 5, 6}, 5},
		{"by kind and workload", "deployment/web", "", t0, []int{2, 4, 5, 6}, 5},
		{"what ended before does not count", "web", "", t0.Add(5 * time.Second), []int{2, 4, 5, 6}, -1},
		{"a connection with its engagements", "", "one", t0, []int{0, 2, 4, 5, 7}, -1},
		{"a connection by id", "", "c2", t0, []int{1, 3, 6}, -1},
		{"both", "web", "two", t0, []int{6}, -1},
		{"nothing", "nope", "", t0, nil, -1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPicker(c.engagement, c.connection, c.from)
			var took []int
			over := -1
			for i, e := range facts {
				if p.takes(e) {
					took = append(took, i)
				}
				if p.over() && over < 0 {
					over = i
				}
			}
			if len(took) != len(c.takes) {
				t.Fatalf("takes %v, want %v", took, c.takes)
			}
			for i := range took {
				if took[i] != c.takes[i] {
					t.Fatalf("takes %v, want %v", took, c.takes)
				}
			}
			want := c.overAt
			if c.connection != "" {
				want = -1
			}
			if c.engagement != "" && over != want {
				t.Errorf("over at %d, want %d", over, want)
			}
		})
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{"": {}, "start": {}, "now": now, "10m": now.Add(-10 * time.Minute), "2029-12-31T00:00:00Z": now.Add(-24 * time.Hour)} {
		if got, err := since(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := since("-5m", now); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("-5m: %v", err)
	}
}

func TestToken(t *testing.T) {
	for in, want := range map[string]string{
		"kind-dev-default":                          "kind-dev-default",
		"arn:aws:eks:eu-1:123:cluster/Prod-default": "arn-aws-eks-eu-1-123-cluster-prod-default",
		"admin@my.cluster-ns":                       "admin-my-cluster-ns",
		"--":                                        "",
	} {
		if got := token(in); got != want {
			t.Errorf("token(%q) = %q, want %q", in, got, want)
		}
	}
}

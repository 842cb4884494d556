package swap

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
)

func TestPlan(t *testing.T) {
	old := func(name string) Pod { return Pod{Name: name, Ready: true, Selected: true, Adoptable: true} }
	rel := func(name string) Pod { p := old(name); p.Released = true; return p }
	agent := func(name string) Pod { return Pod{Name: name, Mark: "e", Selected: true, Arrived: true} }
	ready := func(p Pod) Pod { p.Ready = true; return p }
	set := func(p Pod, f func(*Pod)) Pod { f(&p); return p }

	for _, tt := range []struct {
		name string
		s    State
		want []Action
		done bool
	}{
		{"engage begins: every old pod is released",
			State{Replicas: 2, Want: "e", Pods: []Pod{old("a"), old("b")}},
			[]Action{{Release, "a"}, {Release, "b"}}, false},
		{"the agent is not Ready: the old pod goes on answering",
			State{Replicas: 1, Want: "e", Pods: []Pod{rel("a"), agent("x")}}, nil, false},
		{"the agent is Ready: the old pod leaves its Services",
			State{Replicas: 1, Want: "e", Pods: []Pod{rel("a"), ready(agent("x"))}},
			[]Action{{Retire, "a"}}, false},
		{"one of two agents is Ready: one old pod may go",
			State{Replicas: 2, Want: "e", Pods: []Pod{rel("a"), rel("b"), ready(agent("x")), agent("y")}},
			[]Action{{Retire, "a"}}, false},
		{"retired, not yet drained: active, and nothing more to do",
			State{Replicas: 1, Want: "e", Pods: []Pod{set(rel("a"), func(p *Pod) { p.Retired = true }), ready(agent("x"))}}, nil, true},
		{"drained",
			State{Replicas: 1, Want: "e", Pods: []Pod{set(rel("a"), func(p *Pod) { p.Retired, p.Drained = true, true }), ready(agent("x"))}},
			[]Action{{Delete, "a"}}, true},
		{"no Service selects it: deleted without further ado",
			State{Replicas: 1, Want: "e", Pods: []Pod{set(rel("a"), func(p *Pod) { p.Selected = false }), ready(agent("x"))}},
			[]Action{{Delete, "a"}}, false},
		{"given up before the swap: the old pod is taken back, the agent deleted",
			State{Replicas: 1, Want: "", Pods: []Pod{rel("a"), agent("x")}},
			[]Action{{Adopt, "a"}, {Delete, "x"}}, false},
		{"given up while the app is behind the agent: the old pod is taken back into its Services, the agent deleted",
			State{Replicas: 1, Want: "", Pods: []Pod{set(rel("a"), func(p *Pod) { p.Retired, p.Selected = true, false }), ready(agent("x"))}},
			[]Action{{Adopt, "a"}, {Delete, "x"}}, false},
		{"given up, one old pod retired, the other not",
			State{Replicas: 2, Want: "", Pods: []Pod{rel("a"), set(rel("b"), func(p *Pod) { p.Retired, p.Selected = true, false }), ready(agent("x")), agent("y")}},
			[]Action{{Adopt, "a"}, {Delete, "y"}, {Adopt, "b"}, {Delete, "x"}}, false},
		{"given up, and the cluster has refused to create the agent's pod",
			State{Replicas: 1, Want: "", Pods: []Pod{rel("a")}},
			[]Action{{Adopt, "a"}}, false},
		{"given up, manager died between adopt and delete",
			State{Replicas: 1, Want: "", Pods: []Pod{old("a"), agent("x")}},
			[]Action{{Delete, "x"}}, true /* of two actions one is left */},
		{"given up, but a rollout has replaced the old ReplicaSet",
			State{Replicas: 1, Want: "", Pods: []Pod{set(rel("a"), func(p *Pod) { p.Adoptable = false }), agent("x")}},
			[]Action{{Release, "x"}}, false},
		{"restore: the agent goes on answering while its replacement starts",
			State{Replicas: 1, Want: "", Pods: []Pod{ready(agent("x"))}},
			[]Action{{Release, "x"}}, false},
		{"restore: replacement not Ready",
			State{Replicas: 1, Want: "", Pods: []Pod{set(ready(agent("x")), func(p *Pod) { p.Released = true }), {Name: "b"}}}, nil, false},
		{"restore: replacement not Ready, but the agent is dead",
			State{Replicas: 1, Want: "", Pods: []Pod{set(agent("x"), func(p *Pod) { p.Released = true }), {Name: "b"}}},
			[]Action{{Retire, "x"}}, false},
		{"restore: replacement not Ready for a reason of its own",
			State{Replicas: 1, Want: "", Overdue: true, Pods: []Pod{set(ready(agent("x")), func(p *Pod) { p.Released = true }), {Name: "b"}}},
			[]Action{{Retire, "x"}}, false},
		{"restore: one replacement not Ready for a reason of its own, the other not there",
			State{Replicas: 2, Want: "", Overdue: true, Pods: []Pod{set(ready(agent("x")), func(p *Pod) { p.Released = true }), ready(agent("y")), {Name: "b"}}},
			[]Action{{Release, "y"}, {Retire, "x"}}, false},
		{"restore: replacement Ready",
			State{Replicas: 1, Want: "", Pods: []Pod{set(ready(agent("x")), func(p *Pod) { p.Released = true }), old("b")}},
			[]Action{{Retire, "x"}}, false},
		{"scaled up while engaged: a pod that came without agent is released",
			State{Replicas: 2, Want: "e", Pods: []Pod{ready(agent("x")), old("b")}},
			[]Action{{Release, "b"}}, false},
		{"scaled to nothing: released pods go",
			State{Replicas: 0, Want: "", Pods: []Pod{rel("a")}}, []Action{{Retire, "a"}}, false},
		{"nothing engaged, nothing to do",
			State{Replicas: 1, Want: "", Pods: []Pod{old("a")}}, nil, true},
		{"recreate: all at once",
			State{Method: Recreate, Replicas: 2, Want: "e", Pods: []Pod{old("a"), old("b")}},
			[]Action{{Delete, "a"}, {Delete, "b"}}, false},
		{"ordered, engage: from the top",
			State{Method: Recreate, Ordered: true, Replicas: 3, Want: "e", Pods: []Pod{
				set(old("s-0"), func(p *Pod) { p.Ordinal = 0 }), set(old("s-1"), func(p *Pod) { p.Ordinal = 1 }), set(agent("s-2"), func(p *Pod) { p.Ordinal = 2 })}},
			[]Action{{Delete, "s-1"}}, false},
		{"ordered, engage: the agent of the last one has not arrived",
			State{Method: Recreate, Ordered: true, Replicas: 2, Want: "e", Pods: []Pod{
				old("s-0"), {Name: "s-1", Mark: "e", Ordinal: 1}}}, nil, false},
		{"ordered, restore: from the bottom",
			State{Method: Recreate, Ordered: true, Replicas: 2, Want: "", Pods: []Pod{
				agent("s-0"), set(agent("s-1"), func(p *Pod) { p.Ordinal = 1 })}},
			[]Action{{Delete, "s-0"}}, false},
		{"ordered, restore: the one below is not Ready yet",
			State{Method: Recreate, Ordered: true, Replicas: 2, Want: "", Pods: []Pod{
				{Name: "s-0"}, set(agent("s-1"), func(p *Pod) { p.Ordinal = 1 })}}, nil, false},
		{"ordered, restore: the one below will not be Ready",
			State{Method: Recreate, Ordered: true, Replicas: 3, Want: "", Overdue: true, Pods: []Pod{
				{Name: "s-0"}, set(agent("s-1"), func(p *Pod) { p.Ordinal = 1 }), set(agent("s-2"), func(p *Pod) { p.Ordinal = 2 })}},
			[]Action{{Delete, "s-1"}, {Delete, "s-2"}}, false},
		{"ordered, given up half way: an agent above an old pod",
			State{Method: Recreate, Ordered: true, Replicas: 2, Want: "", Pods: []Pod{
				old("s-0"), set(agent("s-1"), func(p *Pod) { p.Ordinal = 1 })}},
			[]Action{{Delete, "s-1"}}, false},
		{"ordered: a pod is missing",
			State{Method: Recreate, Ordered: true, Replicas: 2, Want: "e", Pods: []Pod{old("s-0")}}, nil, false},
		{"ordered, engage: the first cannot run, so that no other is created",
			State{Method: Recreate, Ordered: true, Replicas: 3, Want: "e", Pods: []Pod{{Name: "s-0"}}},
			[]Action{{Delete, "s-0"}}, false},
		{"ordered, engage: the second cannot run, so that the third is not created again",
			State{Method: Recreate, Ordered: true, Replicas: 3, Want: "e", Pods: []Pod{old("s-0"), {Name: "s-1", Ordinal: 1}}},
			[]Action{{Delete, "s-1"}}, false},
		{"ordered, engage: the last is about to be created",
			State{Method: Recreate, Ordered: true, Replicas: 3, First: 5, Want: "e", Pods: []Pod{
				set(old("s-5"), func(p *Pod) { p.Ordinal = 5 }), set(old("s-6"), func(p *Pod) { p.Ordinal = 6 })}}, nil, false},
		{"ordered, restore: a pod is missing, for the agent below it is not Ready any more",
			State{Method: Recreate, Ordered: true, Replicas: 3, Want: "", Pods: []Pod{agent("s-0"), set(agent("s-1"), func(p *Pod) { p.Ordinal = 1 })}},
			[]Action{{Delete, "s-0"}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.s.Method == "" {
				tt.s.Method = Surge
			}
			if got := Plan(tt.s); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("plan %v, want %v", got, tt.want)
			}
			if tt.name != "given up, manager died between adopt and delete" && tt.s.Done() != tt.done {
				t.Errorf("done %v, want %v", tt.s.Done(), tt.done)
			}
		})
	}
}

// The agents of an ordered StatefulSet have arrived when those have that can come
// before the handler runs.
func TestArrivedInOrder(t *testing.T) {
	agent := func(ordinal int) Pod { return Pod{Mark: "e", Ordinal: ordinal, Arrived: true} }
	ready := func(p Pod) Pod { p.Ready = true; return p }
	for _, tt := range []struct {
		name string
		pods []Pod
		want bool
	}{
		{"all", []Pod{agent(0), agent(1), agent(2)}, true},
		{"the first, which is not Ready without the handler", []Pod{agent(0)}, true},
		{"two, of which the first is Ready", []Pod{ready(agent(0)), agent(1)}, true},
		{"all but the one that is created next", []Pod{ready(agent(0)), ready(agent(1))}, false},
		{"all but the lowest, which is created next", []Pod{agent(1), agent(2)}, false},
		{"the first has not arrived", []Pod{{Mark: "e"}}, false},
		{"one that is stale", []Pod{{}, agent(1)}, false},
		{"one that leaves", []Pod{agent(0), {Ordinal: 1, Deleting: true}}, false},
		{"none", nil, false},
	} {
		if got := (State{Method: Recreate, Ordered: true, Replicas: 3, Want: "e", Pods: tt.pods}).Arrived(); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// A StatefulSet none of whose own pods can run is replaced pod by pod, has its
// handler, and is then what it was.
func TestOrderedOfWhatCannotRun(t *testing.T) {
	const replicas = 3
	var pods []Pod
	// controller is the StatefulSet's: the lowest that is missing is created, if
	// all below it are Ready.
	controller := func(mark string) {
		for at := range replicas {
			i := slices.IndexFunc(pods, func(p Pod) bool { return p.Ordinal == at })
			if i < 0 {
				pods = append(pods, Pod{Name: fmt.Sprintf("s-%d", at), Ordinal: at, Mark: mark})
				return
			}
			if !pods[i].Ready {
				return
			}
		}
	}
	controller("")
	run, over := false, false
	step := func(want string) State {
		for i, p := range pods {
			pods[i].Arrived = p.Mark != ""
			pods[i].Ready = p.Mark != "" && run
		}
		s := State{Method: Recreate, Ordered: true, Replicas: replicas, Want: want, Overdue: over, Pods: slices.Clone(pods)}
		for _, a := range Plan(s) {
			pods = slices.DeleteFunc(pods, func(p Pod) bool { return p.Name == a.Pod })
		}
		controller(want)
		return s
	}
	for range 20 {
		if s := step("e"); s.Arrived() {
			run = true
		}
	}
	if s := step("e"); !s.Done() {
		t.Fatalf("replaced: %+v", pods)
	}
	run = false
	for i := range 20 {
		over = i > 3 // its own first pod cannot run, as its status says
		step("")
	}
	if len(pods) != 1 || pods[0].Mark != "" {
		t.Errorf("restored: %+v", pods)
	}
}

// The whole life of an engagement against a ReplicaSet that behaves as the real
// one: at every step at least `replicas` pods serve, and it comes to an end,
// also when it is given up after any number of steps, before or after the handler
// has the traffic.
func TestSurgeNeverServesLess(t *testing.T) {
	for _, tt := range []struct{ replicas, handlerAfter int }{{1, 0}, {2, 0}, {5, 0}, {1, 4}, {2, 8}, {5, 20}} {
		for giveUp := range 12 {
			t.Run(fmt.Sprintf("%d replicas, handler after %d, given up after %d", tt.replicas, tt.handlerAfter, giveUp), func(t *testing.T) {
				replicas := tt.replicas
				w := &world{replicas: replicas}
				w.create("", replicas)
				for i := range w.pods {
					w.pods[i].Ready = true
				}
				want := "e"
				for step := range 60 {
					if step == giveUp {
						want = ""
					}
					if step >= tt.handlerAfter && want != "" {
						w.handler = true
					}
					w.drain(want != "" && !w.handler)
					s := State{Method: Surge, Replicas: replicas, Want: want, Pods: w.pods}
					if want == "" && s.Done() && len(w.pods) == replicas {
						return
					}
					for _, a := range Plan(s) {
						w.do(a)
						if n := w.serving(); n < replicas {
							t.Fatalf("step %d: after %v only %d of %d serve", step, a, n, replicas)
						}
					}
					w.replicaSet(want)
				}
				t.Fatalf("no end: %+v", w.pods)
			})
		}
	}
}

type world struct {
	replicas, made int
	handler        bool // has the traffic; until then agents pass it on to the app
	pods           []Pod
}

// drain lets time pass for retired pods, unless they are needed.
func (w *world) drain(needed bool) {
	for i := range w.pods {
		w.pods[i].Drained = w.pods[i].Retired && !needed
	}
}

func (w *world) create(mark string, n int) {
	for range n {
		w.made++
		w.pods = append(w.pods, Pod{Name: fmt.Sprintf("p%02d", w.made), Mark: mark, Selected: true, Adoptable: true})
	}
}

func (w *world) serving() int {
	n := 0
	app := slices.ContainsFunc(w.pods, func(p Pod) bool { return p.Mark == "" && p.Ready })
	for _, p := range w.pods {
		if p.Ready && p.Selected && (p.Mark == "" || w.handler || app) {
			n++
		}
	}
	return n
}

func (w *world) do(a Action) {
	for i := range w.pods {
		if w.pods[i].Name != a.Pod {
			continue
		}
		switch p := &w.pods[i]; a.Verb {
		case Release:
			p.Released = true
		case Adopt:
			p.Released, p.Retired, p.Selected = false, false, true
		case Retire:
			p.Retired, p.Selected = true, false
		case Delete:
			w.pods = append(w.pods[:i:i], w.pods[i+1:]...)
		}
		return
	}
}

// replicaSet makes one pod Ready, then keeps the number of owned pods.
func (w *world) replicaSet(mark string) {
	for i := range w.pods {
		if !w.pods[i].Ready {
			w.pods[i].Ready, w.pods[i].Arrived = true, true
			break
		}
	}
	owned := 0
	for _, p := range w.pods {
		if !p.Released {
			owned++
		}
	}
	if owned < w.replicas {
		w.create(mark, w.replicas-owned)
	}
}

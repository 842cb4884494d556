// Package swap decides how a workload's pods are exchanged: those without the
// wanted agent for those with it, or back. It is a pure function from what is
// there to what to do next; whoever calls it does that and calls again when
// something has changed. All that it needs to know is on the objects, so a
// manager may die between any two steps.
//
// # Surge
//
// A stale pod (its mark is not the wanted one) is released: the label by which
// its ReplicaSet selects it is taken off, so the ReplicaSet creates another one
// at once, while Services go on selecting the old one. When as many wanted pods
// are Ready as there shall be replicas, released pods are retired (the labels
// by which Services select them are taken off), given a moment for that to get
// around, and deleted. If the engagement is given up before that, those pods
// are adopted again (labels put back) and the agent's pods deleted: nothing was
// restarted.
//
// An agent is Ready before its handler runs where it passes what comes on to the
// app in released and retired pods; those are not drained then, however long
// they have been retired (see Pod.Drained).
//
// # Recreate
//
// StatefulSets, and pods that cannot stand beside their successors: stale pods
// are deleted. An ordered StatefulSet creates a pod only when all below it are
// Ready, and an agent without handler is not; so an engagement goes from the
// highest ordinal to the lowest, and a restoration the other way. A pod that is not
// created for want of a Ready one below it, whose app cannot run say, is not waited
// for: it is created, as wanted, when the agents below it are Ready, which they are
// when the handler runs.
//
// # Overdue
//
// Pods of the workload's own that do not become Ready, for a reason of their own,
// are not waited for when an engagement has ended: its agents serve nobody, and go.
package swap

import (
	"slices"
	"sort"
)

// Method is how pods are exchanged.
type Method string

// The methods.
const (
	Surge    Method = "surge"
	Recreate Method = "recreate"
)

// Pod is one pod of a workload. Pods that have ended are not listed.
type Pod struct {
	Name      string
	Mark      string // engagement whose agent is in it, "" for none
	Ordinal   int    // of a StatefulSet's pod
	Released  bool   // taken out of its ReplicaSet
	Adoptable bool   // the ReplicaSet it was taken from still wants replicas
	Retired   bool   // taken out of its Services
	Drained   bool   // retired long enough ago, and no agent needs it any more
	Selected  bool   // at least one Service selects it
	Ready     bool
	Arrived   bool // its agent has a session with the manager
	Deleting  bool
}

// State is what there is, and what is wanted.
type State struct {
	Method   Method
	Ordered  bool // a StatefulSet that creates its pods one after another
	Replicas int
	First    int    // ordinal of the lowest of an ordered StatefulSet's pods
	Want     string // mark that all pods shall have; "" means none
	Overdue  bool   // what has ended goes, whatever becomes of what takes its place
	Pods     []Pod
}

// Verb is what to do to a pod.
type Verb string

// The verbs.
const (
	Release Verb = "release"
	Adopt   Verb = "adopt"
	Retire  Verb = "retire"
	Delete  Verb = "delete"
)

// Action is one step. The actions of a plan are to be done in order.
type Action struct {
	Verb Verb
	Pod  string
}

// sorted are the pods by what they are to us.
type sorted struct {
	fresh    []Pod // owned, as wanted
	stale    []Pod // owned, not as wanted
	released []Pod // bridging, still in their Services
	retired  []Pod // out of them
	leaving  int   // owned and being deleted
}

func (s State) sort() sorted {
	var r sorted
	for _, p := range s.Pods {
		switch {
		case p.Deleting:
			if !p.Released {
				r.leaving++
			}
		case p.Retired:
			r.retired = append(r.retired, p)
		case p.Released:
			r.released = append(r.released, p)
		case p.Mark == s.Want:
			r.fresh = append(r.fresh, p)
		default:
			r.stale = append(r.stale, p)
		}
	}
	return r
}

// Swapped reports whether every replica exists as wanted, Ready or not.
func (s State) Swapped() bool {
	r := s.sort()
	return len(r.stale) == 0 && len(r.fresh) >= s.Replicas
}

// Arrived reports whether every replica exists, or will not before the handler
// runs, and its agent has arrived.
func (s State) Arrived() bool {
	r := s.sort()
	for _, p := range r.fresh {
		if !p.Arrived {
			return false
		}
	}
	return s.Swapped() || len(r.stale) == 0 && s.blocked(r)
}

// blocked reports whether an ordered StatefulSet has fewer pods than replicas and
// creates no other, since one below that is not Ready.
func (s State) blocked(r sorted) bool {
	if !s.Ordered || r.leaving > 0 {
		return false
	}
	below := map[int]Pod{}
	for _, p := range slices.Concat(r.fresh, r.stale) {
		below[p.Ordinal] = p
	}
	for at := s.First; at < s.First+s.Replicas; at++ {
		p, ok := below[at]
		if !ok {
			return false // the next to be created
		}
		if !p.Ready {
			return len(below) < s.Replicas
		}
	}
	return false
}

// Done reports whether every replica is as wanted and Ready, and nothing else
// gets traffic from a Service.
func (s State) Done() bool {
	r := s.sort()
	return s.Swapped() && ready(r.fresh) >= s.Replicas && len(r.released) == 0
}

func ready(pods []Pod) int {
	n := 0
	for _, p := range pods {
		if p.Ready {
			n++
		}
	}
	return n
}

// Plan returns the next steps, none if there is nothing to do but to wait.
func Plan(s State) []Action {
	r := s.sort()
	for _, pods := range [][]Pod{r.fresh, r.stale, r.released, r.retired} {
		sort.Slice(pods, func(i, j int) bool { // not Ready first, then by name, so that a plan is the same each time
			if pods[i].Ready != pods[j].Ready {
				return pods[j].Ready
			}
			return pods[i].Name < pods[j].Name
		})
	}
	var plan []Action
	if s.Method == Recreate {
		plan = recreate(s, r)
	} else {
		plan = surge(s, &r)
	}
	plan = append(plan, drop(s, r)...)
	for _, p := range r.retired {
		if p.Drained {
			plan = append(plan, Action{Delete, p.Name})
		}
	}
	return plan
}

// surge takes back what can be taken back and releases the other stale pods.
func surge(s State, r *sorted) []Action {
	var plan []Action
	need := s.Replicas - len(r.fresh)
	// adopt takes back what it can of pods, and returns the others.
	adopt := func(pods []Pod) (rest []Pod) {
		for _, p := range pods {
			if need <= 0 || !p.Adoptable || !p.Ready || p.Mark != s.Want {
				rest = append(rest, p)
				continue
			}
			plan = append(plan, Action{Adopt, p.Name})
			r.fresh = append(r.fresh, p)
			need--
			if len(r.stale) > 0 {
				// The labels first: the ReplicaSet then has one too many, and by its
				// own rules deletes one that is not Ready, if ours comes too late.
				plan = append(plan, Action{Delete, r.stale[0].Name})
				r.stale = r.stale[1:]
			}
		}
		return rest
	}
	r.released = adopt(r.released)
	r.retired = adopt(r.retired)
	enough := ready(r.fresh) >= s.Replicas
	for _, p := range r.stale {
		if enough {
			plan = append(plan, Action{Delete, p.Name})
		} else {
			plan = append(plan, Action{Release, p.Name})
		}
	}
	return plan
}

// drop takes released pods out of service, as many as the Ready ones can spare.
func drop(s State, r sorted) []Action {
	var plan []Action
	out := func(p Pod) {
		if p.Selected {
			plan = append(plan, Action{Retire, p.Name})
		} else {
			plan = append(plan, Action{Delete, p.Name})
		}
	}
	var serving []Pod
	for _, p := range r.released {
		if p.Mark != "" && p.Mark != s.Want && (!p.Ready || s.Overdue) {
			out(p) // an agent that is not Ready serves nobody, and never will again
			continue
		}
		serving = append(serving, p)
	}
	spare := min(len(serving), ready(r.fresh)+len(serving)-s.Replicas)
	for i := range max(spare, 0) {
		out(serving[i])
	}
	return plan
}

func recreate(s State, r sorted) []Action {
	var plan []Action
	if !s.Ordered || s.Overdue {
		for _, p := range r.stale {
			plan = append(plan, Action{Delete, p.Name})
		}
		return plan
	}
	if len(r.stale) == 0 || r.leaving > 0 || len(r.fresh)+len(r.stale) < s.Replicas && !s.blocked(r) {
		return nil
	}
	sort.Slice(r.stale, func(i, j int) bool { return r.stale[i].Ordinal < r.stale[j].Ordinal })
	next := r.stale[0]
	if s.Want != "" {
		next = r.stale[len(r.stale)-1]
	}
	for _, p := range r.fresh {
		switch {
		case s.Want != "" && !p.Arrived:
			return nil // one at a time
		case s.Want == "" && p.Ordinal < next.Ordinal && !p.Ready:
			return nil // its successor would not be created
		}
	}
	return []Action{{Delete, next.Name}}
}

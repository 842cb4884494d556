package engagement

import (
	"fmt"
	"slices"

	"berth.dev/lease"
)

// arbitrated says which of a workload's engagements hold.
type arbitrated struct {
	replace *engagement            // whose agents stand in the place of a container
	beside  []*engagement          // that have agents beside a container
	refused map[*engagement]string // and why not
}

// arbitrate decides between the engagements of one workload, which come oldest
// first. A replace has the workload to itself but for ingests, which disturb
// nobody; an intercept has its ports, or those of their requests that match its
// filter (lease.Clash); a wiretap takes nothing. Of those that were made in one second (the
// API server's clock has no more), one that was let in before stays in.
func arbitrate(engs []*engagement) arbitrated {
	engs = slices.Clone(engs)
	slices.SortStableFunc(engs, func(a, b *engagement) int {
		if !a.lease.CreationTimestamp.Equal(&b.lease.CreationTimestamp) || (a.status.Phase == "") == (b.status.Phase == "") {
			return 0
		}
		if a.status.Phase != "" {
			return -1
		}
		return 1
	})
	r := arbitrated{refused: map[*engagement]string{}}
	var diverting []*engagement // intercepts and wiretaps
	for _, e := range engs {
		if e.ended != "" || e.status.Phase == lease.Failed {
			continue
		}
		why := ""
		switch e.spec.Kind {
		case lease.Ingest:
		case lease.Intercept, lease.Wiretap:
			if r.replace != nil {
				why = fmt.Sprintf("%s is replaced by %s (container %s)", e.key().Workload(), r.replace.spec.Client, r.replace.spec.Container)
			}
			for _, o := range diverting {
				if what, clash := lease.Clash(o.spec, e.spec); clash {
					why = fmt.Sprintf("%s of %s is intercepted by %s", what, e.key().Workload(), o.spec.Client)
				}
			}
		default:
			if r.replace != nil {
				why = fmt.Sprintf("%s is engaged by %s (container %s)", e.key().Workload(), r.replace.spec.Client, r.replace.spec.Container)
			} else if len(diverting) > 0 {
				why = fmt.Sprintf("%s is held by %s (%s)", e.key().Workload(), diverting[0].spec.Client, diverting[0].spec.Kind)
			}
		}
		switch {
		case why != "":
			r.refused[e] = why
		case e.spec.Beside():
			r.beside = append(r.beside, e)
			if e.spec.Kind.Diverts() {
				diverting = append(diverting, e)
			}
		default:
			r.replace = e
		}
	}
	return r
}

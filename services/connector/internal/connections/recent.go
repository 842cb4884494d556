package connections

import "slices"

// recent remembers the last ids that were over, so that a command that is sent
// again after its end is recognised. It is guarded by its owner's lock.
type recent struct {
	ids []string
	max int
}

func newRecent(most int) *recent { return &recent{max: most} }

func (r *recent) add(id string) {
	r.ids = append(r.ids, id)
	if len(r.ids) > r.max {
		r.ids = slices.Delete(r.ids, 0, len(r.ids)-r.max)
	}
}

func (r *recent) has(id string) bool { return slices.Contains(r.ids, id) }

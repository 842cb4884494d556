package build

import (
	"errors"
	"strings"
	"time"

	control "github.com/moby/buildkit/api/services/control"
)

// tracer makes steps of BuildKit's own account of a build.
type tracer struct {
	tell *teller
	bad  bool
}

// see takes one control.StatusResponse, as the engine encodes it.
func (t *tracer) see(raw []byte) {
	var s control.StatusResponse
	if s.UnmarshalVT(raw) != nil {
		return // a newer engine's: progress is less, the build is the same
	}
	for _, v := range s.Vertexes {
		if v.Started == nil && !v.Cached && v.Error == "" {
			continue
		}
		t.tell.begin(v.Digest, v.Name)
		if v.Completed == nil && v.Error == "" {
			continue
		}
		took := time.Duration(0)
		if v.Completed != nil && v.Started != nil {
			took = v.Completed.AsTime().Sub(v.Started.AsTime())
		}
		if v.Error != "" {
			t.bad = true
		}
		t.tell.end(v.Digest, v.Cached, max(took, 1), v.Error)
	}
	for _, l := range s.Logs {
		t.tell.line(l.Vertex, string(l.Msg))
	}
	for _, w := range s.Warnings {
		t.tell.line(w.Vertex, "WARNING: "+string(w.Short))
	}
}

// over ends the account: an error that no step has told is told by the build.
func (t *tracer) over(err error) {
	var b buildError
	if !t.bad && errors.As(err, &b) {
		t.tell.notice("ERROR: %s", strings.TrimSpace(b.msg))
	}
}

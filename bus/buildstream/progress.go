package buildstream

import (
	"fmt"
	"strings"
	"time"
)

// Progress is what happens in a build, in one vocabulary for BuildKit and the
// classic builder.
type Progress struct {
	State  State  `json:"state"`
	Step   int    `json:"step,omitempty"`   // from 1; 0: of the whole build
	Name   string `json:"name,omitempty"`   // of the step
	Millis int64  `json:"millis,omitempty"` // that the step took
	Text   string `json:"text,omitempty"`   // lines of output, a status, or why it failed
}

// State is what happened to the step.
type State string

// The states.
const (
	Begun  State = "begun"
	Line   State = "line" // Text is lines that it wrote
	Cached State = "cached"
	Ended  State = "ended"
	Broken State = "failed"
)

// Plain is p as lines for a pipe or a log, each with a newline at its end.
func (p Progress) Plain() string {
	n := ""
	if p.Step > 0 {
		n = fmt.Sprintf("#%d ", p.Step)
	}
	took := (time.Duration(p.Millis) * time.Millisecond).Seconds()
	switch p.State {
	case Begun:
		return n + p.Name + "\n"
	case Cached:
		return n + "CACHED\n"
	case Ended:
		return fmt.Sprintf("%sDONE %.1fs\n", n, took)
	case Broken:
		return fmt.Sprintf("%sERROR after %.1fs: %s\n", n, took, p.Text)
	}
	var b strings.Builder
	for l := range strings.Lines(p.Text) {
		b.WriteString(n)
		b.WriteString(strings.TrimRight(l, "\r\n"))
		b.WriteByte('\n')
	}
	return b.String()
}

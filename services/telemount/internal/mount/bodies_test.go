package mount

import (
	"testing"
	"time"

	"berth.dev/files"
)

// What we changed ourselves while it was asked for is not kept: the answer may be of
// before, and the server tells nobody of his own changes.
func TestBodiesChangedMeanwhile(t *testing.T) {
	v := &volume{bodies: map[string]*body{}, dropped: map[string]uint64{}, trees: map[string]uint64{}}
	keep := func(since uint64, paths ...string) {
		for _, p := range paths {
			v.keepBody(p, &body{attr: files.Attr{Watched: true}, at: time.Now()}, since)
		}
	}
	kept := func(when string, want map[string]bool) {
		t.Helper()
		for p, w := range want {
			if got := v.body(p) != nil; got != w {
				t.Errorf("%s: %s is kept: %v", when, p, got)
			}
		}
	}
	v.dropBodies("d/a", false) // before
	first, endFirst := v.ask()
	v.dropBodies("d/b", false)
	second, endSecond := v.ask()
	v.dropBodies("e", true)
	all := []string{"d/a", "d/b", "e/c", "ee"}
	keep(first, all...)
	kept("asked before both changes", map[string]bool{"d/a": true, "d/b": false, "e/c": false, "ee": true})
	keep(second, all...)
	kept("asked before one", map[string]bool{"d/b": true, "e/c": false})
	endFirst()
	keep(second, "e/c")
	kept("still asking", map[string]bool{"e/c": false})
	endSecond()
	third, end := v.ask()
	defer end()
	keep(third, all...)
	kept("asked since", map[string]bool{"d/a": true, "d/b": true, "e/c": true, "ee": true})
	v.dropBodies("d/b", false)
	kept("changed afterwards", map[string]bool{"d/a": true, "d/b": false})
}

package mount

import (
	"maps"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

func TestPosix(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		t.Run(name, func(t *testing.T) {
			if name == "FcntlFlockLocksFile" {
				t.Skip("wants flock(2) to conflict with fcntl(2) locks, which it does not on any local Linux file system either")
			}
			r := newRig(t, "")
			posixtest.All[name](t, r.mount(r.options()))
		})
	}
}

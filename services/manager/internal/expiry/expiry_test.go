package expiry

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestLeaseExpiresByOurClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New()
		// The holder's own clock says 1970: it is never looked at.
		const first, second = "1970-01-01T00:00:00Z", "1970-01-01T00:00:05Z"
		if left := tr.Left("u", first, 20*time.Second); left != 20*time.Second {
			t.Fatalf("first seen: %v left, want the full duration", left)
		}
		time.Sleep(19 * time.Second)
		if left := tr.Left("u", first, 20*time.Second); left != time.Second {
			t.Fatalf("after 19 s: %v left", left)
		}
		if left := tr.Left("u", second, 20*time.Second); left != 20*time.Second {
			t.Fatalf("renewed: %v left", left)
		}
		time.Sleep(20 * time.Second)
		if left := tr.Left("u", second, 20*time.Second); left > 0 {
			t.Fatalf("not renewed for 20 s, yet %v left", left)
		}
	})
}

func TestRestartedManagerGivesFullGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := New()
		old.Left("u", "r", 20*time.Second)
		time.Sleep(15 * time.Second)
		if left := New().Left("u", "r", 20*time.Second); left != 20*time.Second {
			t.Fatalf("%v left", left)
		}
		old.Forget("u")
		if left := old.Left("u", "r", 20*time.Second); left != 20*time.Second {
			t.Fatalf("forgotten: %v left", left)
		}
	})
}

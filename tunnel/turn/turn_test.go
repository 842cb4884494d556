package turn

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

const long = time.Hour

// All go in the order in which they have joined, whatever the order in which they
// come to wait; who goes without waiting is not waited for.
func TestOrder(t *testing.T) {
	var lines Lines[string]
	var mu sync.Mutex
	var went []int
	var all []*Turn[string]
	for range 200 {
		all = append(all, lines.Join("a"))
	}
	left := 0
	var wg sync.WaitGroup
	for _, i := range rand.Perm(len(all)) {
		if i%7 == 3 {
			left++
			wg.Go(all[i].Done)
			continue
		}
		wg.Go(func() {
			defer all[i].Done()
			all[i].Wait(t.Context(), long)
			mu.Lock()
			went = append(went, i)
			mu.Unlock()
			all[i].Done()
		})
	}
	wg.Wait()
	if !slices.IsSorted(went) || len(went)+left != len(all) {
		t.Errorf("%d went, in the order %v", len(went), went)
	}
	if len(lines.last) > 0 {
		t.Errorf("%d lines are kept", len(lines.last))
	}
}

func TestLinesAreApart(t *testing.T) {
	var lines Lines[string]
	defer lines.Join("a").Done()
	b := lines.Join("b")
	b.Wait(t.Context(), long)
	b.Done()
}

// Who is stuck is waited for once, and then no longer by anyone.
func TestStuckIsPassed(t *testing.T) {
	var lines Lines[string]
	stuck, alsoStuck := lines.Join("a"), lines.Join("a")
	one := lines.Join("a")
	one.Wait(t.Context(), time.Millisecond)
	two := lines.Join("a")
	one.Done()
	two.Wait(t.Context(), long)
	stuck.Done()
	alsoStuck.Done()
	three := lines.Join("a")
	three.Done()
	two.Done()
	if len(lines.last) > 0 {
		t.Errorf("%d lines are kept", len(lines.last))
	}
}

func TestContextEndsTheWait(t *testing.T) {
	var lines Lines[string]
	first := lines.Join("a")
	second, third := lines.Join("a"), lines.Join("a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	second.Wait(ctx, long)
	second.Done()
	select {
	case <-third.first:
		t.Error("goes before the first is done")
	default:
	}
	first.Done()
	third.Wait(t.Context(), long)
	third.Done()
}

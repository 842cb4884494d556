package presence

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// script answers probes from a list, then the last one for ever.
type script []bool

func (s *script) Gone(context.Context, string) bool {
	g := (*s)[0]
	if len(*s) > 1 {
		*s = (*s)[1:]
	}
	return g
}

func TestWatch(t *testing.T) {
	for _, tc := range []struct {
		name   string
		period time.Duration
		gone   script
		want   bool
		after  time.Duration
	}{
		{"two proofs in a row", Every, script{false, true, true}, true, 3 * time.Second},
		{"one proof is none", Every, script{true, false, true, false, true, true}, true, 6 * time.Second},
		{"alive until the end", Every, script{false}, false, time.Minute},
		{"seldom asked", Seldom, script{false, true, true}, true, 2*Seldom + Every},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				if got := Watch(ctx, &tc.gone, "live", tc.period); got != tc.want || time.Since(start) != tc.after {
					t.Errorf("%v after %v, want %v after %v", got, time.Since(start), tc.want, tc.after)
				}
			})
		})
	}
}

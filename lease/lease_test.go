package lease

import (
	"strings"
	"testing"
)

// Every container of every workload has a Lease of its own, with a name that an
// object, and a label, may have.
func TestEngagementName(t *testing.T) {
	long := strings.Repeat("a", 250)
	seen := map[string]bool{}
	for _, w := range [][3]string{
		{Deployment, "web", "app"}, {Deployment, "web", "a-app"}, {Deployment, "web-a", "app"}, {Deployment, "web.a", "app"}, {StatefulSet, "web", "app"},
		{Deployment, long, "app"}, {Deployment, long + "b", "app"}, {Deployment, long, "b"}, {Deployment, strings.Repeat("a", 36) + ".b", "app"},
	} {
		n := EngagementName(w[0], w[1], w[2])
		if seen[n] || len(n) > 63 || strings.Contains(n, ".-") || strings.Contains(n, "-.") || strings.Contains(n, "..") || strings.Trim(n, "-.") != n {
			t.Errorf("%v: %q", w, n)
		}
		seen[n] = true
	}
}

package workload

import (
	"slices"
	"strings"
)

// Nearest returns up to n of the names, those first that are most like name.
func Nearest(name string, names []string, n int) []string {
	sorted := slices.Clone(names)
	slices.SortStableFunc(sorted, func(a, b string) int {
		if d := distance(name, a) - distance(name, b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	sorted = slices.Compact(sorted)
	return sorted[:min(n, len(sorted))]
}

// distance is Levenshtein's, but that a common prefix or a part of the name
// counts for more than its length: "frontend" is near "frontend-v1".
func distance(a, b string) int {
	if strings.Contains(b, a) || strings.Contains(a, b) {
		return 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			prev, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, prev+cost)
		}
	}
	return row[len(b)]
}

package option

// nearest is the key that s was probably meant to be, at the smallest edit
// distance if that is small for a word of this length; else "".
func nearest(s string, known []string) string {
	best, limit := "", 1+len(s)/4
	for _, k := range known {
		if d := distance(s, k); d <= limit {
			best, limit = k, d-1
		}
	}
	return best
}

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

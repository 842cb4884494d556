package tunnelserver

import (
	"strings"
	"testing"

	"berth.dev/lease"
)

func TestExclude(t *testing.T) {
	for _, c := range []struct{ patterns, kept string }{
		{"", "AWS_KEY AWS_SECRET PLAIN"},
		{"PLAIN", "AWS_KEY AWS_SECRET"},
		{"AWS_*", "PLAIN"},
		{"AWS,PLAI,*_K?Y", "AWS_SECRET PLAIN"},
		{"*", ""},
	} {
		env := lease.Environment{Env: [][]byte{[]byte("AWS_KEY=1"), []byte("AWS_SECRET=PLAIN=2"), []byte("PLAIN=")}}
		var names []string
		for _, e := range exclude(env, strings.Split(c.patterns, ",")).Env {
			n, _, _ := strings.Cut(string(e), "=")
			names = append(names, n)
		}
		if got := strings.Join(names, " "); got != c.kept {
			t.Errorf("%s keeps %q, want %q", c.patterns, got, c.kept)
		}
	}
}

package engagements

import (
	"slices"
	"strings"
	"testing"

	"berth.dev/lease"
	"berth.dev/services/connector/internal/workload"

	corev1 "k8s.io/api/core/v1"
)

func TestMask(t *testing.T) {
	env := lease.Environment{
		Env:     [][]byte{[]byte("API=s3cret1"), []byte("DB_PASS=s3cret2"), []byte("DB_URL=pg://s3cret2@db"), []byte("DEEP=x pg://s3cret2@db"), []byte("GREETING=hello"), []byte("IMAGE_OWN=1"), []byte("KUBERNETES_PORT=1"), []byte("LIT=$(API)")},
		Mounts:  []string{"/data", "/etc/secret"},
		Volumes: []lease.Volume{{Path: "/data"}, {Path: "/etc/secret"}, {Path: "/etc/key", File: true}},
	}
	template := []corev1.EnvVar{{Name: "DB_URL", Value: "pg://$(DB_PASS)@db"}, {Name: "DEEP", Value: "x $(DB_URL)"}, {Name: "GREETING", Value: "hello"}}
	for _, c := range []struct {
		name   string
		r      *review
		hidden string // variables, sorted
		mounts int
	}{
		{"nothing reviewed", nil, "", 2},
		{"nothing masked", &review{granted: []string{"a"}}, "", 2},
		{"a variable", &review{masked: []workload.SecretUse{{Name: "a", Vars: []string{"API"}}}, env: template}, "API", 2},
		{"a variable that others are made of", &review{masked: []workload.SecretUse{{Name: "a", Vars: []string{"DB_PASS"}}}, env: template}, "DB_PASS DB_URL DEEP", 2},
		{"mounts", &review{masked: []workload.SecretUse{{Name: "a", Paths: []string{"/etc/secret/", "/etc/key"}}}}, "", 1},
		{"a whole Secret: what is not known is not given", &review{masked: []workload.SecretUse{{Name: "a", Prefixes: []string{""}}}, env: template, known: map[string]bool{"GREETING": true, "LIT": true}},
			"API DB_PASS DB_URL DEEP IMAGE_OWN", 2},
		{"a whole Secret with a prefix", &review{masked: []workload.SecretUse{{Name: "a", Prefixes: []string{"DB_"}}}, env: template, known: map[string]bool{"DB_URL": true}},
			"DB_PASS DB_URL DEEP", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := c.r.mask(env)
			var hidden []string
			for i, e := range out.Env {
				k, v, _ := strings.Cut(string(e), "=")
				if v == masked {
					hidden = append(hidden, k)
				} else if string(e) != string(env.Env[i]) {
					t.Errorf("%s became %s", env.Env[i], e)
				}
			}
			if got := strings.Join(hidden, " "); got != c.hidden {
				t.Errorf("masked %q, want %q", got, c.hidden)
			}
			if len(out.Mounts) != c.mounts {
				t.Errorf("mounts %q", out.Mounts)
			}
			if c.mounts == 1 && len(out.Volumes) != 1 {
				t.Errorf("volumes %v", out.Volumes)
			}
			if !slices.Equal(env.Mounts, []string{"/data", "/etc/secret"}) || string(env.Env[0]) != "API=s3cret1" {
				t.Error("what came from the agent was changed")
			}
		})
	}
}

package proof

import "testing"

func TestProof(t *testing.T) {
	k, other := NewKey([]byte("secret")), NewKey([]byte("another installation"))
	p := k.Of("uid", "berth-agent-1")
	for name, tt := range map[string]struct {
		key              Key
		token, uid, name string
		want             bool
	}{
		"itself":               {k, p, "uid", "berth-agent-1", true},
		"of a restarted one":   {NewKey([]byte("secret")), p, "uid", "berth-agent-1", true},
		"another pod":          {k, p, "uid2", "berth-agent-1", false},
		"another agent":        {k, p, "uid", "berth-agent-2", false},
		"another installation": {other, p, "uid", "berth-agent-1", false},
		"nothing":              {k, "", "uid", "berth-agent-1", false},
		"moved boundary":       {k, k.Of("ui", "dberth-agent-1"), "uid", "berth-agent-1", false},
	} {
		if got := tt.key.Good(tt.token, tt.uid, tt.name); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !Is(p) || Is("eyJhbGciOi.x.y") {
		t.Error("proofs and tokens are not told apart")
	}
}

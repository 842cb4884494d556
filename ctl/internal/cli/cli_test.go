package cli

import (
	"bytes"
	"os"
	"testing"
)

// A handler knows by BERTH_CONTAINER what it stands in for; to a ctl that it runs
// that is no --container.
func TestWithinAHandler(t *testing.T) {
	for id, want := range map[string]string{"": "app", "e1": ""} {
		t.Setenv("BERTH_ENGAGEMENT_ID", id)
		t.Setenv("BERTH_CONTAINER", "app")
		var out, errs bytes.Buffer
		a := &App{Stdin: os.Stdin, Stdout: &out, Stderr: &errs, Version: "test"}
		if code := a.Main(t.Context(), []string{"help", "replace"}); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
		if got := os.Getenv("BERTH_CONTAINER"); got != want {
			t.Errorf("in engagement %q BERTH_CONTAINER is %q, want %q", id, got, want)
		}
	}
}

package render

import (
	"bytes"
	"errors"
	"testing"

	"berth.dev/bus/event"
	"berth.dev/bus/fault"
)

func TestError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&fault.Error{Code: fault.NotFound, Stage: "image", Message: "none", Hint: "make images"}, "ctl: image: none\n  try: make images\n"},
		{errors.New("plain"), "ctl: plain\n"},
		{fault.At("daemon", errors.New("x")), "ctl: daemon: x\n"},
	} {
		var b bytes.Buffer
		Error(&b, "ctl", c.err)
		if b.String() != c.want {
			t.Errorf("got %q, want %q", b.String(), c.want)
		}
	}
}

// Results are on stdout, progress on stderr, and JSON has stdout for itself.
func TestPrinter(t *testing.T) {
	for _, json := range []bool{false, true} {
		var out, errs bytes.Buffer
		p := &Printer{Stdout: &out, Stderr: &errs, JSON: json}
		p.Progress("step")
		p.Result("done")
		if err := p.Value(map[string]int{"a": 1}); err != nil {
			t.Fatal(err)
		}
		p.Quiet(true)
		p.Progress("unseen")
		wantOut, wantErr := "done\n", "step\n"
		if json {
			wantOut, wantErr = "{\"a\":1}\n", ""
		}
		if out.String() != wantOut || errs.String() != wantErr {
			t.Errorf("json %v: stdout %q, stderr %q", json, out.String(), errs.String())
		}
	}
}

func TestSummary(t *testing.T) {
	_, e, err := event.New("e1", event.EngagementEnded{Cause: "handler exited"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := summary(e.Data), `cause="handler exited"`; got != want || Short(e) != "connector.ended" || Scope(e) != "engagement" {
		t.Errorf("%q, %q, %q", got, Short(e), Scope(e))
	}
}

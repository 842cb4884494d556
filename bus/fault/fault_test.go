package fault_test

import (
	"errors"
	"fmt"
	"testing"

	"berth.dev/bus/fault"
)

func TestFromAndAt(t *testing.T) {
	f := fault.New(fault.NotFound, "ctl list", "no workload %q", "x")
	wrapped := fmt.Errorf("look up: %w", f)
	if fault.From(wrapped) != f || fault.CodeOf(wrapped) != fault.NotFound {
		t.Errorf("the fault inside is lost: %+v", fault.From(wrapped))
	}
	if p := fault.From(errors.New("boom")); p.Code != fault.Internal || p.Message != "boom" {
		t.Errorf("%+v", p)
	}
	if fault.From(nil) != nil || fault.At("x", nil) != nil || fault.CodeOf(nil) != "" {
		t.Error("nil is no fault")
	}
	at := fault.At("tunnel", wrapped)
	if at.Stage != "tunnel" || at.Error() != `tunnel: no workload "x"` || f.Stage != "" {
		t.Errorf("%+v, and the original %+v", at, f)
	}
	if again := fault.At("DNS", at); again.Stage != "tunnel" {
		t.Errorf("stage %s, want the first", again.Stage)
	}
}

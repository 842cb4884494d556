package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"berth.dev/bus/fault"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/events"
)

func TestFaults(t *testing.T) {
	for _, x := range []struct {
		err  error
		code fault.Code
		hint string
	}{
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), fault.Unavailable, "ctl doctor"},
		{&net.OpError{Op: "dial", Err: errors.New("no")}, fault.Unavailable, "ctl doctor"},
		{context.DeadlineExceeded, fault.Unavailable, "ctl doctor"},
		{fmt.Errorf("x: %w", cerrdefs.ErrNotFound), fault.NotFound, ""},
		{cerrdefs.ErrInvalidArgument, fault.InvalidArgument, ""},
		{cerrdefs.ErrConflict, fault.AlreadyExists, ""},
		{cerrdefs.ErrPermissionDenied, fault.PermissionDenied, "ctl doctor"},
		{errors.New("Error response from daemon: boom"), fault.Internal, ""},
		{fault.New(fault.NotFound, "a hint", "known"), fault.NotFound, "a hint"},
	} {
		f := fault.From(Fault(x.err, "do %s", "it"))
		if f.Code != x.code || f.Hint != x.hint {
			t.Errorf("%v: %+v, want %s and hint %q", x.err, f, x.code, x.hint)
		}
	}
	if Fault(nil, "do it") != nil {
		t.Error("no error became a fault")
	}
	if m := Fault(errors.New("Error response from daemon: boom"), "do it").Error(); m != "do it: boom" {
		t.Errorf("message %q", m)
	}
}

func TestNames(t *testing.T) {
	for _, n := range []string{"ab", "a.b_c-d", "0x"} {
		if !ValidName(n) {
			t.Errorf("%q is refused", n)
		}
	}
	for _, n := range []string{"", "a", "-ab", ".ab", "a/b", "a b", "ä-b"} {
		if ValidName(n) {
			t.Errorf("%q is accepted", n)
		}
	}
	if n := Name("arn:aws/x@y"); n != "arn-aws-x-y" {
		t.Errorf("made %q", n)
	}
}

func TestLastLines(t *testing.T) {
	var l LastLines
	for i := range 40 {
		fmt.Fprintf(&l, "line %d\n", i)
	}
	if s := l.String(); s != "line 37; line 38; line 39" {
		t.Errorf("plain: %q", s)
	}
	fmt.Fprintf(&l, `{"level":"ERROR","msg":"create tun",`)
	fmt.Fprintf(&l, "\"err\":\"no device\"}\nafterwards\n")
	if s := l.String(); s != "create tun: no device" {
		t.Errorf("error: %q", s)
	}
	l = LastLines{}
	fmt.Fprint(&l, "panic: no newline")
	if s := l.String(); s != "panic: no newline" {
		t.Errorf("partial: %q", s)
	}
	fmt.Fprint(&l, strings.Repeat("x", 1<<20))
	if n := len(l.String()); n > 2*lineLength {
		t.Errorf("keeps %d bytes of one line", n)
	}
}

func TestWatchRemembersDeaths(t *testing.T) {
	var changes atomic.Int32
	w := (&Engine{}).NewWatch(func() { changes.Add(1) })
	say := func(a events.Action, id, code string) {
		w.see(events.Message{Action: a, TimeNano: 5, Actor: events.Actor{ID: id, Attributes: map[string]string{"exitCode": code, LabelEngagement: "e-" + id, LabelComponent: Handler}}})
	}
	say(events.ActionOOM, "a", "")
	say(events.ActionDie, "a", "137")
	say(events.ActionDie, "b", "3")
	ctx := t.Context()
	if x, ok := w.Died(ctx, "a", 0); !ok || x != (Exit{Code: 137, OOM: true}) {
		t.Errorf("a died as %+v, %v", x, ok)
	}
	if x, ok := w.DiedOf(ctx, "e-b", 0); !ok || x != (Exit{Code: 3}) {
		t.Errorf("b died as %+v, %v", x, ok)
	}
	if _, ok := w.Died(ctx, "c", time.Millisecond); ok {
		t.Error("c died")
	}
	go say(events.ActionDie, "c", "0")
	if _, ok := w.Died(ctx, "c", 10*time.Second); !ok {
		t.Error("who waits for a death does not hear of it")
	}
	for i := range 2 * keepDeaths {
		say(events.ActionDie, fmt.Sprint(i), "0")
	}
	if len(w.died) != keepDeaths {
		t.Errorf("remembers %d deaths", len(w.died))
	}
	if _, ok := w.Died(ctx, fmt.Sprint(2*keepDeaths-1), 0); !ok {
		t.Error("forgot the last death")
	}
	if changes.Load() == 0 {
		t.Error("nobody was told")
	}
}

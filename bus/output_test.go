package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

// readOutput reads until the end of one container's output.
func readOutput(t *testing.T, tail *bus.OutputTail) (stdout, stderr []byte, order []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Patience)
	defer cancel()
	for {
		p, err := tail.Next(ctx)
		if errors.Is(err, io.EOF) {
			return stdout, stderr, order
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Data) > 32<<10 || p.Service != subject.Runner || p.Time.IsZero() {
			t.Errorf("a piece of %d bytes of %s at %v", len(p.Data), p.Service, p.Time)
		}
		if n := len(order); n == 0 || order[n-1] != p.Stream {
			order = append(order, p.Stream)
		}
		if p.Stream == bus.Stderr {
			stderr = append(stderr, p.Data...)
		} else {
			stdout = append(stdout, p.Data...)
		}
	}
}

func TestOutputArrivesWholeAndInOrder(t *testing.T) {
	b := bustest.Start(t)
	tail, err := b.Connect(subject.Ctl).TailOutput(bustest.Within(t, bustest.Patience), "e1")
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Stop()
	out := b.Connect(subject.Runner).Output("e1", subject.Runner)
	want := make([]byte, 3<<20)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(want)
	done := make(chan error, 1)
	go func() {
		// Pieces of all sizes, and a restart in the midst.
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+int(rng.Uint64()%100_000))
			if _, err := out.Stdout().Write(rest[:n]); err != nil {
				done <- err
				return
			}
			rest = rest[n:]
		}
		if _, err := fmt.Fprint(out.Stderr(), "warning"); err != nil {
			done <- err
			return
		}
		if _, err := fmt.Fprint(out.Stdout(), "!"); err != nil {
			done <- err
			return
		}
		done <- out.Close(context.Background())
	}()
	if _, err := tail.Next(bustest.Within(t, bustest.Patience)); err != nil {
		t.Fatal(err)
	}
	b.Restart()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	late, err := b.Connect(subject.Ctl).TailOutput(bustest.Within(t, bustest.Patience), "e1")
	if err != nil {
		t.Fatal(err)
	}
	defer late.Stop()
	stdout, stderr, order := readOutput(t, late)
	if !bytes.Equal(stdout, append(want, '!')) {
		t.Errorf("stdout: %d bytes that differ from the %d written", len(stdout), len(want)+1)
	}
	if string(stderr) != "warning" || fmt.Sprint(order) != "[stdout stderr stdout]" {
		t.Errorf("stderr %q, order %q", stderr, order)
	}
	if rest, _, _ := readOutput(t, tail); len(rest) == 0 {
		t.Error("the early tail saw nothing more")
	}
	if _, err := out.Stdout().Write([]byte("x")); err == nil {
		t.Error("wrote after Close")
	}
}

func TestSmallWritesAreGathered(t *testing.T) {
	b := bustest.Start(t)
	out := b.Connect(subject.Runner).Output("e1", subject.Runner)
	for i := range 5000 {
		if _, err := fmt.Fprintf(out.Stdout(), "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(bustest.Within(t, bustest.Patience)); err != nil {
		t.Fatal(err)
	}
	st, err := b.Tester().JS.Stream(t.Context(), bus.OutputStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Msgs; n > 2500 {
		t.Errorf("5000 lines became %d messages", n)
	}
}

func TestOutputThatIsRefused(t *testing.T) {
	b := bustest.Start(t)
	out := b.Connect(subject.Builder).Output("e1", subject.Runner)
	if _, err := fmt.Fprint(out.Stdout(), "x"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "builder that writes runner's output", out.Close(bustest.Within(t, bustest.Patience)), fault.PermissionDenied)
}

func TestCloseOfOutputGivesUpWithItsContext(t *testing.T) {
	b := bustest.Start(t)
	out := b.Connect(subject.Runner).Output("e1", subject.Runner)
	b.Stop()
	if _, err := fmt.Fprint(out.Stdout(), "x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := out.Close(ctx); err == nil {
		t.Error("closed without an error")
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
}

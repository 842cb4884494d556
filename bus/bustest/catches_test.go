package bustest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/command"
	"berth.dev/bus/subject"
)

const badEnv = "BUSTEST_BAD"

// TestBadService runs the kit on a service that breaks one promise, in the
// process that TestConformanceCatches starts.
func TestBadService(t *testing.T) {
	bad := os.Getenv(badEnv)
	if bad == "" {
		t.Skip("only a part of TestConformanceCatches")
	}
	bustest.Conformance(t, func(ctx context.Context, cfg bus.Config) error { return runBad(ctx, cfg, bad) }, bustest.Spec{
		Service: subject.Runner,
		Commands: []bustest.Command{{
			Verb:  command.HandlerStart.Verb,
			Valid: command.EngagementRef{Engagement: "e1"},
			Bad:   []any{command.EngagementRef{}},
		}},
	})
}

func runBad(ctx context.Context, cfg bus.Config, bad string) error {
	conn, err := bus.Await(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	svc, err := conn.Serve(subject.Runner, "0.1.0")
	if err != nil {
		return err
	}
	defer svc.Stop()
	calls := make(chan struct{}, 1)
	err = bus.Handle(svc, command.HandlerStart, "", func(context.Context, command.EngagementRef) (command.Accepted, error) {
		select {
		case calls <- struct{}{}:
		default:
			if bad == "repeat" {
				return command.Accepted{}, errors.New("once is enough")
			}
		}
		return command.Accepted{}, nil
	})
	if err != nil {
		return err
	}
	if bad == "leak" {
		go func() { select {} }()
	}
	<-ctx.Done()
	if bad == "slow" {
		time.Sleep(bustest.StopWithin + time.Second)
	}
	if bad == "error" {
		return errors.New("cannot end")
	}
	return nil
}

func TestConformanceCatches(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for bad, want := range map[string]struct{ run, text string }{
		"lenient": {"strict", "want invalid_argument"},
		"repeat":  {"repeat", "once is enough"},
		"leak":    {"ping", "found unexpected goroutines"},
		"slow":    {"stop", "not ended 5s after its context"},
		"error":   {"stop", "ended with cannot end"},
		"deaf":    {"lost", "after the bus went away for good"},
	} {
		t.Run(bad, func(t *testing.T) {
			if want.run == "lost" && testing.Short() {
				t.Skip("lost takes more than ten seconds: skipped with -short")
			}
			t.Parallel()
			cmd := exec.Command(self, "-test.run", "^TestBadService$/^"+want.run+"$", "-test.timeout", "60s")
			if want.run == "lost" {
				cmd.Args = append(cmd.Args, "-test.short=false")
			}
			cmd.Env = append(os.Environ(), badEnv+"="+bad)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), want.text) {
				t.Errorf("%v, want a failure that says %q:\n%s", err, want.text, out)
			}
		})
	}
}

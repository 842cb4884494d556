package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"

	"github.com/nats-io/nats.go/jetstream"
)

// state states n facts about e1, numbered from first, in their cause.
func state(t *testing.T, c *bus.Conn, first, n int) {
	t.Helper()
	for i := range n {
		if err := c.State(bustest.Within(t, bustest.Patience), "e1", event.Restoring{Cause: fmt.Sprint(first + i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// expect reads n facts and wants the numbers from first on.
func expect(t *testing.T, tail *bus.Tail, first, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Patience)
	defer cancel()
	for i := range n {
		env, err := tail.Next(ctx)
		if err != nil {
			t.Fatalf("fact %d: %v", first+i, err)
		}
		r, ok := event.Decode[event.Restoring](env)
		if !ok || r.Cause != fmt.Sprint(first+i) {
			t.Fatalf("fact %d: got %+v", first+i, env)
		}
	}
}

// nothing wants no fact to be there.
func nothing(t *testing.T, tail *bus.Tail) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if env, err := tail.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %+v, %v, want nothing", env, err)
	}
}

func tailAll(t *testing.T, c *bus.Conn, since time.Time, subjects ...string) *bus.Tail {
	t.Helper()
	tail, err := c.TailFacts(bustest.Within(t, bustest.Patience), since, subjects...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tail.Stop)
	return tail
}

func TestEveryTailSeesEveryFactInOrder(t *testing.T) {
	b := bustest.Start(t)
	connector, ctl := b.Connect(subject.Connector), b.Connect(subject.Ctl)
	early := tailAll(t, ctl, time.Time{}, subject.FactsOf(subject.Engagement, "e1"))
	if early.Pending != 0 {
		t.Errorf("pending %d at the beginning", early.Pending)
	}
	state(t, connector, 0, 300)
	expect(t, early, 0, 300)
	late := tailAll(t, ctl, time.Time{})
	if late.Pending != 300 {
		t.Errorf("pending %d, want 300", late.Pending)
	}
	expect(t, late, 0, 299)
	if late.Pending != 1 {
		t.Errorf("pending %d before the last", late.Pending)
	}
	expect(t, late, 299, 1)
	if late.Pending != 0 {
		t.Errorf("pending %d at the end", late.Pending)
	}
	other := tailAll(t, ctl, time.Time{}, subject.FactsOf(subject.Engagement, "e2"))
	since := time.Now()
	state(t, connector, 300, 5)
	expect(t, tailAll(t, ctl, since), 300, 5)
	nothing(t, other)
	// After a context that ended, the tail goes on where it was.
	nothing(t, tailAll(t, ctl, time.Now()))
	expect(t, early, 300, 5)
}

func TestATailOfSeveralSubjects(t *testing.T) {
	b := bustest.Start(t)
	connector := b.Connect(subject.Connector)
	tail := tailAll(t, b.Connect(subject.Ctl), time.Time{}, subject.FactsOf(subject.Engagement, "e1"), subject.FactsOf(subject.Connection, "c1"))
	ctx := bustest.Within(t, bustest.Patience)
	for _, id := range []string{"c1", "c2", "c1"} {
		if err := connector.State(ctx, id, event.Disconnected{Cause: "quit"}); err != nil {
			t.Fatal(err)
		}
		state(t, connector, 0, 1)
	}
	var got []string
	for range 5 {
		env, err := tail.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, env.Subject)
	}
	if want := []string{"c1", "e1", "e1", "c1", "e1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// published sends again what, or whose acknowledgement, went down with the server.
func published(ctx context.Context, c *bus.Conn, subj string, body []byte, id string) (*jetstream.PubAck, error) {
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		ack, err := c.JS.Publish(try, subj, body, jetstream.WithMsgID(id))
		cancel()
		if err == nil || ctx.Err() != nil {
			return ack, err
		}
	}
}

func TestAFactIsStatedOnce(t *testing.T) {
	b := bustest.Start(t)
	connector := b.Connect(subject.Connector)
	ctx := bustest.Within(t, bustest.Patience)
	subj, env, err := event.New("e1", event.Restoring{Cause: "0"})
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(env)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 { // as State does when an acknowledgement was lost
		ack, err := published(ctx, connector, subj, body, env.ID)
		if err != nil || ack.Duplicate != (n > 0) {
			t.Errorf("time %d: %+v, %v", n, ack, err)
		}
		b.Restart() // the window outlives the server
	}
	tail := tailAll(t, connector, time.Time{})
	expect(t, tail, 0, 1)
	nothing(t, tail)
}

func TestAFactOfAnotherServiceIsRefused(t *testing.T) {
	b := bustest.Start(t)
	start := time.Now()
	err := b.Connect(subject.Runner).State(bustest.Within(t, bustest.Patience), "e1", event.Restoring{})
	wantCode(t, "runner that states a fact of connector", err, fault.PermissionDenied)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the refusal took %v: it was a time-out", d)
	}
	_, err = b.Connect(subject.Runner).TailFacts(bustest.Within(t, bustest.Patience), time.Time{})
	wantCode(t, "runner that tails facts", err, fault.PermissionDenied)
}

func TestASlowReaderLosesNothing(t *testing.T) {
	b := bustest.Start(t)
	connector, ctl := b.Connect(subject.Connector), b.Connect(subject.Ctl)
	tail := tailAll(t, ctl, time.Time{})
	state(t, connector, 0, 1)
	expect(t, tail, 0, 1)
	// More than the tail fetches ahead, and its consumer dies in the meantime,
	// as it does after five minutes without a request.
	state(t, connector, 1, 400)
	st, err := connector.JS.Stream(t.Context(), bus.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for name := range st.ConsumerNames(t.Context()).Name() {
		n++
		if err := st.DeleteConsumer(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1 {
		t.Errorf("%d consumers, want the tail's", n)
	}
	expect(t, tail, 1, 400)
}

func TestATailOutlivesTheServer(t *testing.T) {
	b := bustest.Start(t)
	connector, ctl := b.Connect(subject.Connector), b.Connect(subject.Ctl)
	fresh := tailAll(t, ctl, time.Time{}) // has read nothing when the server goes
	used := tailAll(t, ctl, time.Time{})
	ahead := tailAll(t, ctl, time.Time{}) // has fetched what it has not handed out
	state(t, connector, 0, 20)
	expect(t, used, 0, 20)
	expect(t, ahead, 0, 1)
	waiting := make(chan error, 1)
	go func() {
		_, err := used.Next(context.Background()) // across the restart
		waiting <- err
	}()
	b.Restart()
	state(t, connector, 20, 1)
	back := time.Now()
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	if d := time.Since(back); d > 3*time.Second {
		t.Errorf("the waiting tail took %v to go on", d)
	}
	state(t, connector, 21, 20)
	expect(t, used, 21, 20)
	expect(t, fresh, 0, 41)
	expect(t, ahead, 1, 40)
}

func TestStatingAcrossARestart(t *testing.T) {
	b := bustest.Start(t)
	connector := b.Connect(subject.Connector)
	tail := tailAll(t, b.Connect(subject.Ctl), time.Time{})
	const n = 400
	failed := make(chan error, 1)
	go func() {
		for i := range n {
			if err := connector.State(context.Background(), "e1", event.Restoring{Cause: fmt.Sprint(i)}); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	for _, at := range []int{50, 150} {
		expect(t, tail, at-50, 50)
		b.Restart() // in the midst of it
		expect(t, tail, at, 50)
	}
	expect(t, tail, 200, n-200)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	nothing(t, tail)
}

func TestATailEndsWithItsContextWhileTheServerIsAway(t *testing.T) {
	b := bustest.Start(t)
	ctl := b.Connect(subject.Ctl)
	tail := tailAll(t, ctl, time.Time{})
	b.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := tail.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the context's error", err)
	}
	tail.Stop()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestStopEndsAWaitingNext(t *testing.T) {
	b := bustest.Start(t)
	ctl := b.Connect(subject.Ctl)
	tail := tailAll(t, ctl, time.Time{})
	got := make(chan error, 1)
	go func() {
		_, err := tail.Next(context.Background())
		got <- err
	}()
	tail.Stop()
	select {
	case err := <-got:
		if !errors.Is(err, bus.ErrStopped) {
			t.Errorf("%v, want ErrStopped", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Next outlives Stop")
	}
	if _, err := tail.Next(t.Context()); !errors.Is(err, bus.ErrStopped) {
		t.Errorf("after Stop: %v", err)
	}
	st, err := b.Tester().JS.Stream(t.Context(), bus.EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Consumers; n != 0 {
		t.Errorf("%d consumers are left at the server", n)
	}
}

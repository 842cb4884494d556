package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/bustest"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

func TestConnectToNobody(t *testing.T) {
	b := bustest.Start(t)
	cfg := b.Config(subject.Runner)
	b.Stop()
	start := time.Now()
	_, err := bus.Connect(t.Context(), cfg)
	wantCode(t, "no server", err, fault.Unavailable)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Connect took %v to say so", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = bus.Connect(ctx, cfg)
	wantCode(t, "no time", err, fault.Unavailable)
	cfg.Seed = "nonsense"
	if _, err := bus.Connect(t.Context(), cfg); err == nil {
		t.Error("connected with a nonsensical seed")
	}
}

func TestAwaitWaitsForTheServer(t *testing.T) {
	b := bustest.Start(t)
	cfg := b.Config(subject.Runner)
	b.Stop()
	got := make(chan error, 1)
	go func() {
		c, err := bus.Await(context.Background(), cfg)
		if err == nil {
			c.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("Await gave up at once: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	b.Restart()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	b.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := bus.Await(ctx, cfg)
	wantCode(t, "no server until ctx ended", err, fault.Unavailable)
}

func TestCloseTwiceAndWithServices(t *testing.T) {
	b := bustest.Start(t)
	c := b.Connect(subject.Runner)
	for range 2 { // two services on a connection each hook into its closing
		if _, err := c.Serve(subject.Runner, "1.0.0"); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	soon(t, "Lost after Close", c.Lost())
	c.Close()
}

func TestCloseWhileTheServerIsAway(t *testing.T) {
	b := bustest.Start(t)
	c := b.Connect(subject.Runner)
	b.Stop()
	start := time.Now()
	c.Close()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Close took %v", d)
	}
}

func TestLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than ten seconds: skipped with -short")
	}
	b := bustest.Start(t)
	c := b.Connect(subject.Ctl)
	tail, err := c.TailFacts(t.Context(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := tail.Next(context.Background()); ended <- err }()
	stated := make(chan error, 1)
	connector := b.Connect(subject.Connector)
	b.Stop()
	start := time.Now()
	go func() {
		stated <- connector.State(context.Background(), "e1", event.Restoring{})
	}()
	soon(t, "Lost", c.Lost())
	if d := time.Since(start); d < bus.GiveUp-time.Second || d > bus.GiveUp+3*time.Second {
		t.Errorf("lost after %v, want about %v", d, bus.GiveUp)
	}
	select {
	case err := <-ended:
		wantCode(t, "a tail on a lost bus", err, fault.Unavailable)
	case <-time.After(3 * time.Second):
		t.Error("a tail outlives its bus")
	}
	select {
	case err := <-stated:
		wantCode(t, "a fact on a lost bus", err, fault.Unavailable)
	case <-time.After(3 * time.Second):
		t.Error("State outlives its bus")
	}
	tail.Stop()
}

func TestAShortAbsenceIsNoLoss(t *testing.T) {
	b := bustest.Start(t)
	c := b.Connect(subject.Connector)
	for range 3 {
		b.Restart()
		// It needs the connection to be back.
		if err := c.State(bustest.Within(t, bustest.Patience), "e1", event.Restoring{}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-c.Lost():
		t.Error("lost")
	default:
	}
}

func TestARemovedIdentityLosesTheBus(t *testing.T) {
	b := bustest.Start(t)
	c := b.ConnectWith(b.VIF("c1"))
	b.Server().Remove("vif-c1")
	start := time.Now()
	soon(t, "Lost", c.Lost())
	if d := time.Since(start); d > bus.GiveUp/2 {
		t.Errorf("noticed after %v only", d)
	}
}

func TestPresence(t *testing.T) {
	b := bustest.Start(t)
	holder, asker := b.Connect(subject.Ctl), b.Connect(subject.Connector)
	live := subject.Live(subject.Ctl, "x1")
	gone := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return asker.Gone(ctx, live)
	}
	if !gone() {
		t.Error("nobody holds, but not gone")
	}
	release, err := holder.Hold(subject.Ctl, "x1")
	if err != nil {
		t.Fatal(err)
	}
	if gone() {
		t.Error("held, but gone")
	}
	release()
	if !gone() {
		t.Error("released, but not gone")
	}
	if _, err := holder.Hold(subject.Ctl, "x1"); err != nil {
		t.Fatal(err)
	}
	holder.Close()
	if !gone() {
		t.Error("the holder closed, but not gone")
	}
	// A holder that is stopped (SIGSTOP, asleep) is subscribed and silent.
	mute := b.Connect(subject.Ctl)
	sub, err := mute.NC.SubscribeSync(live)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := mute.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if asker.Gone(ctx, live) {
		t.Error("silent, but taken for gone")
	}
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error("Gone did not wait for the silent holder")
	}
	_, err = b.Connect(subject.Runner).Hold(subject.Ctl, "x2")
	wantCode(t, "holding for another service", err, fault.PermissionDenied)
}

// Command dock drives Berth without ctl, straight on the bus: it docks an image in
// the place of a workload, runs a command when the traffic has come to it, and
// ends the engagement. The exit code is the command's.
//
//	dock WORKLOAD IMAGE COMMAND [ARGS…]
//
// A connection has to exist (ctl connect --docker). The engagement lives as long
// as this process: it holds a presence subject, and is gone with it.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
	"berth.dev/bus/event"
	"berth.dev/bus/fault"
	"berth.dev/bus/subject"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: dock WORKLOAD IMAGE COMMAND [ARGS…]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := dock(ctx, os.Args[1], os.Args[2], os.Args[3:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "dock:", err)
		if f := fault.From(err); f.Hint != "" {
			fmt.Fprintln(os.Stderr, "  try:", f.Hint)
		}
		os.Exit(1)
	}
}

func dock(ctx context.Context, workload, image string, argv []string) error {
	cfg, err := identity()
	if err != nil {
		return err
	}
	conn, err := bus.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	state, err := bus.Call(ctx, conn, command.StateGet, "", command.None{})
	if err != nil {
		return err
	}
	if len(state.Connections) != 1 {
		return fmt.Errorf("there are %d connections, and this example wants one", len(state.Connections))
	}

	// The id is ours, so the tail and the presence stand before anything happens.
	id := "e" + strings.ToLower(rand.Text()[:12])
	tail, err := conn.TailFacts(ctx, time.Time{}, subject.FactsOf(subject.Engagement, id))
	if err != nil {
		return err
	}
	defer tail.Stop()
	release, err := conn.Hold(subject.Ctl, id)
	if err != nil {
		return err
	}
	defer release()

	// The container in the engine's own JSON. Without Attach connector starts it.
	config, err := json.Marshal(map[string]any{"Image": image})
	if err != nil {
		return err
	}
	if _, err := bus.Call(ctx, conn, command.EngagementOpen, "", command.OpenEngagement{
		ID: id, Connection: state.Connections[0].ID, Kind: "replace", Workload: workload,
		Holder:  subject.Live(subject.Ctl, id),
		Handler: &command.Handler{Config: config, HostConfig: json.RawMessage(`{}`)},
		Wait:    command.WaitListening, WaitMillis: time.Minute.Milliseconds(),
	}); err != nil {
		return err // refused: nothing was touched
	}
	if err := until(ctx, tail, func(e event.Envelope) bool { return e.Type == event.TypeOf(event.EngagementActive{}) }); err != nil {
		return errors.Join(err, end(conn, tail, id))
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Join(cmd.Run(), end(conn, tail, id))
}

// until reads facts until one is what is waited for. The engagement's end comes
// with a fact as well, a failure with its reason.
func until(ctx context.Context, tail *bus.Tail, is func(event.Envelope) bool) error {
	for {
		e, err := tail.Next(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, e.Time.Format(time.TimeOnly), e.Type)
		if f, ok := event.Decode[event.EngagementFailed](e); ok {
			return &f.Error
		}
		if is(e) {
			return nil
		}
		if event.Terminal(e) {
			return errors.New("the engagement ended early")
		}
	}
}

// end asks for the end, and waits until the workload is restored.
func end(conn *bus.Conn, tail *bus.Tail, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 75*time.Second)
	defer cancel()
	rep, err := bus.Call(ctx, conn, command.EngagementClose, "", command.CloseEngagement{ID: id, Cause: "tested"})
	if err != nil || rep.Already {
		return err
	}
	return until(ctx, tail, event.Terminal)
}

// identity is ctl's: it lies in connector's container, since whoever may use the
// Docker Engine may use the bus. So does the address, as a published port.
func identity() (cfg bus.Config, err error) {
	archive, err := exec.Command("docker", "cp", "berth-connector:/etc/berth/ctl.json", "-").Output()
	if err != nil {
		return cfg, fault.New(fault.FailedPrecondition, "ctl connect --docker", "no workspace runs: %v", err)
	}
	t := tar.NewReader(bytes.NewReader(archive))
	if _, err := t.Next(); err != nil {
		return cfg, err
	}
	if err := json.NewDecoder(t).Decode(&cfg); err != nil {
		return cfg, err
	}
	port, err := exec.Command("docker", "port", "berth-connector", "4222/tcp").Output()
	if err != nil {
		return cfg, err
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(port)), "\n")
	cfg.URL = "nats://" + first
	return cfg, nil
}

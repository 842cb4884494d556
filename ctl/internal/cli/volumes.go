package cli

import (
	"context"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
)

// volumeStage asks how remote volumes will be mounted; the function that it
// returns tells. The plugin is installed beside everything else: no connection
// waits for it, `ctl replace` does.
func (a *App) volumeStage(ctx context.Context, conn *bus.Conn) (tell func(start time.Time)) {
	answer := make(chan command.VolumePlugin, 1)
	go func() {
		if v, err := volumePlugin(ctx, conn, pluginWithin); err == nil {
			answer <- v
		}
	}()
	return func(start time.Time) {
		select {
		case v := <-answer:
			what := v.Kind + " plugin"
			switch {
			case v.Pending:
				what = "the plugin is being installed; ctl status tells"
			case v.Kind == "":
				what = "none: " + v.Reason
			case v.Reason != "":
				what += "; " + v.Reason
			}
			a.stage("volumes", start, what)
		case <-time.After(stageWithin):
			a.stage("volumes", start, "the plugin is being installed; ctl status tells")
		}
	}
}

const (
	stageWithin  = 20 * time.Millisecond // for an answer that is on its way
	pluginWithin = 15 * time.Second
)

// volumePlugin asks runner, which makes sure of it.
func volumePlugin(ctx context.Context, conn *bus.Conn, limit time.Duration) (command.VolumePlugin, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return bus.Call(ctx, conn, command.VolumesEnsure, "", command.None{})
}

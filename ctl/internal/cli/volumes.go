package cli

import (
	"context"
	"time"

	"berth.dev/bus"
	"berth.dev/bus/command"
)

// volumeStage tells how remote volumes will be mounted. The plugin is installed
// beside everything else; a connection does not wait for it, `ctl replace` does.
func (a *App) volumeStage(ctx context.Context, conn *bus.Conn, start time.Time) {
	v, err := volumePlugin(ctx, conn, stageWithin)
	switch {
	case err != nil:
		a.stage("volumes", start, "the plugin is still being installed; ctl status tells")
	case v.Kind == "":
		a.stage("volumes", start, "none: "+v.Reason)
	case v.Reason != "":
		a.stage("volumes", start, v.Kind+" plugin; "+v.Reason)
	default:
		a.stage("volumes", start, v.Kind+" plugin")
	}
}

const (
	stageWithin  = 300 * time.Millisecond
	pluginWithin = 15 * time.Second
)

// volumePlugin asks runner, which makes sure of it.
func volumePlugin(ctx context.Context, conn *bus.Conn, limit time.Duration) (command.VolumePlugin, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return bus.Call(ctx, conn, command.VolumesEnsure, "", command.None{})
}

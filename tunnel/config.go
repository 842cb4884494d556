package tunnel

import (
	"log/slog"
	"time"
)

// Config tunes a session; the zero value is what Berth uses.
type Config struct {
	// Window is how many bytes a stream's peer may send before the reader
	// has taken any, at first. Default 256 KiB, at least 64 KiB.
	Window int
	// MaxWindow bounds what a stream's window may grow to. Default 16 MiB.
	MaxWindow int
	// WindowBudget bounds the growth of all windows of the session together,
	// beyond Window each, and so the memory that readers who fall behind can
	// hold. Default 128 MiB.
	WindowBudget int
	// MaxStreams bounds the streams the peer may have open; more are refused
	// with CodeBusy. Default 16384.
	MaxStreams int
	// AcceptBacklog bounds the requests waiting in Accept; more are refused
	// with CodeBusy. Default 1024.
	AcceptBacklog int
	// KeepAlive is the interval of pings on a silent session; after three
	// without a sign of life the session ends. Default 15 s, negative: none.
	KeepAlive time.Duration
	// Logger gets protocol errors and dropped datagrams. Default: discard.
	Logger *slog.Logger
}

// minWindow leaves room for the largest early data and for one full frame.
const minWindow = 64 << 10

func (c Config) withDefaults() Config {
	if c.Window == 0 {
		c.Window = 256 << 10
	}
	c.Window = max(c.Window, minWindow)
	if c.MaxWindow == 0 {
		c.MaxWindow = 16 << 20
	}
	// A window is a 31-bit number on the wire.
	c.MaxWindow = min(max(c.MaxWindow, c.Window), 1<<30)
	c.Window = min(c.Window, c.MaxWindow)
	if c.WindowBudget == 0 {
		c.WindowBudget = 128 << 20
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 16384
	}
	if c.AcceptBacklog == 0 {
		c.AcceptBacklog = 1024
	}
	if c.KeepAlive == 0 {
		c.KeepAlive = 15 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

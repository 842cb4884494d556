package embed

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// logger hands the server's log to slog. What the server calls a notice is of
// no interest to users of Berth, hence debug.
type logger struct {
	log *slog.Logger

	mu    sync.Mutex
	first string // fatal message: the server says there why it stops
}

func (l *logger) at(level slog.Level, format string, args []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, "nats: "+fmt.Sprintf(format, args...))
	}
}

// Noticef implements server.Logger; so do the others.
func (l *logger) Noticef(format string, v ...any) { l.at(slog.LevelDebug, format, v) }
func (l *logger) Warnf(format string, v ...any)   { l.at(slog.LevelWarn, format, v) }
func (l *logger) Errorf(format string, v ...any)  { l.at(slog.LevelError, format, v) }
func (l *logger) Debugf(format string, v ...any)  { l.at(slog.LevelDebug, format, v) }
func (l *logger) Tracef(format string, v ...any)  { l.at(slog.LevelDebug, format, v) }

// Fatalf does not end the process, as the server's own logger would: Start
// returns the message as its error.
func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	if l.first == "" {
		l.first = fmt.Sprintf(format, v...)
	}
	l.mu.Unlock()
	l.at(slog.LevelError, format, v)
}

func (l *logger) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

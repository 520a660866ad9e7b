// Package seldom writes log lines that may come very often, seldom.
package seldom

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Log logs a message at most once a minute for each text, and says how often it
// was left out since. Any goroutine may use it.
type Log struct {
	logger *slog.Logger         // static
	now    func() time.Duration // static

	mu   sync.Mutex
	last map[string]*line
}

type line struct {
	at      time.Duration
	leftOut int
}

// New makes a Log that writes to logger. now is a monotonic clock.
func New(logger *slog.Logger, now func() time.Duration) *Log {
	return &Log{logger: logger, now: now, last: map[string]*line{}}
}

// Error logs what somebody should do something about.
func (l *Log) Error(msg string, args ...any) { l.log(slog.LevelError, msg, args) }

// Info logs what an operator may want to know and need not act on.
func (l *Log) Info(msg string, args ...any) { l.log(slog.LevelInfo, msg, args) }

func (l *Log) log(level slog.Level, msg string, args []any) {
	now := l.now()
	l.mu.Lock()
	was := l.last[msg]
	if was != nil && now-was.at < time.Minute {
		was.leftOut++
		l.mu.Unlock()
		return
	}
	if was != nil && was.leftOut > 0 {
		args = append(args, "left-out", was.leftOut)
	}
	l.last[msg] = &line{at: now}
	l.mu.Unlock()
	l.logger.Log(context.Background(), level, msg, args...)
}

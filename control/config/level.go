package config

import (
	"fmt"
	"log/slog"
)

// LogLevel is what a daemon logs at the least: debug, info (the default), warn or error.
type LogLevel string

func (l LogLevel) validate(m *mistakes) {
	if _, err := l.parse(); err != nil {
		m.add("log_level", "%v", err)
	}
}

func (l LogLevel) parse() (slog.Level, error) {
	switch l {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q: want debug, info, warn or error", string(l))
}

// Level is the level of package slog.
func (l LogLevel) Level() slog.Level {
	level, err := l.parse()
	if err != nil {
		panic("BUG: a log level that was not validated: " + string(l))
	}
	return level
}

package main

import (
	"log/slog"

	"github.com/holdfast-dr/holdfast/control/config"
)

// live is what of the configuration changes while the process runs.
type live struct {
	file  string
	cfg   *config.Filter // in force
	level *slog.LevelVar
}

// read takes the file in, as a whole or not at all, and returns the keys that changed.
func (l *live) read() ([]string, error) {
	next, err := config.LoadFilter(l.file)
	if err != nil {
		return nil, err
	}
	changed, err := config.CheckLive(l.file, l.cfg, next, l.cfg.Live)
	if err != nil {
		return nil, err
	}
	l.level.Set(next.LogLevel.Level())
	l.cfg = next
	return changed, nil
}

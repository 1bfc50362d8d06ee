package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/control/config"
)

// errRestart says that a configuration differs in what only a restart takes in.
var errRestart = errors.New("only a restart takes these in")

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
	changed := config.Changed(l.cfg, next)
	if fixed := slices.DeleteFunc(slices.Clone(changed), l.cfg.Live); len(fixed) > 0 {
		return nil, fmt.Errorf("%s: %w: %s", l.file, errRestart, strings.Join(fixed, ", "))
	}
	l.level.Set(next.LogLevel.Level())
	l.cfg = next
	return changed, nil
}

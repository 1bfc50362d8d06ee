package main

import (
	"log/slog"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath"
)

// live is what of the configuration changes while the process runs.
type live struct {
	file   string
	cfg    *config.VRA // in force
	level  *slog.LevelVar
	source *datapath.Source // nil: none
	target *datapath.Target
}

// read takes the file in, as a whole or not at all, and returns the keys that changed.
func (l *live) read() ([]string, error) {
	next, err := config.LoadVRA(l.file)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(next); err != nil {
		return nil, config.InFile(l.file, err)
	}
	changed, err := config.CheckLive(l.file, l.cfg, next, l.cfg.Live)
	if err != nil {
		return nil, err
	}
	if l.source != nil && anyBelow(changed, "source.") {
		policy, err := shaping(next.Source)
		if err == nil {
			err = l.source.ConfigureShaping(policy)
		}
		if err != nil {
			return nil, err
		}
	}
	if l.target != nil && anyBelow(changed, "target.") {
		policy, err := retention(next.Target.Retention)
		if err == nil {
			err = l.target.ConfigureRetention(policy)
		}
		if err != nil {
			return nil, err
		}
	}
	l.level.Set(next.LogLevel.Level())
	l.cfg = next
	return changed, nil
}

func anyBelow(keys []string, part string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, part) })
}

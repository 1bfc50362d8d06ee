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
	grow  func() (volumes []string, err error) // takes the sizes of disks that have grown
	log   *slog.Logger
}

// read takes the file in, as a whole or not at all, and returns the keys that changed. Whether or not, disks that
// have grown are served with their new sizes.
func (l *live) read() ([]string, error) {
	grown, err := l.grow()
	if err != nil {
		l.log.Error("a disk is served with the size that it had", "error", err)
	}
	changed, err := l.readFile()
	for _, name := range grown {
		changed = append(changed, "size of "+name)
	}
	return changed, err
}

func (l *live) readFile() ([]string, error) {
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

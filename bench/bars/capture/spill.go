package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
	"github.com/holdfast-dr/holdfast/datapath/spill"
)

// spillSegments is for how many files of a spill its disk has room.
const spillSegments = 2

// spills gives the lab's source a disk for what memory has no room for: a small file system, which is soon full. What
// is allowed is far more.
func (b *bench) spills() error {
	dir := filepath.Join(b.run, "spill")
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) { // it has one
		return b.settled()
	} else if err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", spill.LeftFree+spillSegments*spill.SegmentBytes+spill.SegmentBytes/2)); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	b.stop = append(b.stop, func() error { return syscall.Unmount(dir, syscall.MNT_DETACH) }) // the lab goes on a little
	file := filepath.Join(b.lab.Dir, "etc", "vra-source.yaml")
	c, err := config.LoadVRA(file)
	if err != nil {
		return err
	}
	c.Source.SpillBudget, c.Source.SpillDir = 16<<30, dir
	text, err := config.Marshal(c)
	if err != nil {
		return err
	}
	// Whoever is started anew reads it.
	if err := errors.Join(os.WriteFile(file, text, 0o600), b.lab.Kill(b.Context, "vra-source")); err != nil {
		return err
	}
	return b.settled()
}

// fillSpill drives load l until memory and disk of the source are full.
func (b *bench) fillSpill(l guest.Load) error {
	const most = 20
	l.Duration = b.length
	for range most {
		if _, err := b.drive(&wrote{}, b.on, l); err != nil {
			return err
		}
		s, err := b.lab.Status(b.Context)
		if err != nil {
			return err
		}
		if strings.Contains(s.Reason, "the spill takes no more: its disk is full") {
			return nil
		}
	}
	s, err := b.lab.Status(b.Context)
	return fmt.Errorf("the spill is not full after %d loads of %v: %+v, %v", most, l.Duration, s, err)
}

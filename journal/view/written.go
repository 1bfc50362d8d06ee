package view

import "github.com/holdfast-dr/holdfast/wire/record"

// Written is how many blocks of a volume stand in scratch.
func (v *View) Written(vol record.VolumeID) (blocks int64) {
	d, ok := v.Device(vol)
	if !ok || d.scratch == nil || d.scratch.files.Load() == nil || d.enter(0, 0) != nil {
		return 0
	}
	defer d.leave()
	d.scratch.blocks.each(func(_, count int64, _ word) bool {
		blocks += count
		return true
	})
	return blocks
}

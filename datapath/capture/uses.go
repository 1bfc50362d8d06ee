package capture

import (
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var _ front.Used = (*volume)(nil)

// Begins is told of each connection that begins to use the volume: the VRA sees how many do.
func (v *volume) Begins() (over func()) {
	if invariant.Planted("capture/uses-untold") {
		return func() {}
	}
	v.useWord.Add(1)
	return func() { v.useWord.Add(^uint64(0)) }
}

// Uses tells how many connections use each volume whose filter is connected, and tells of it: one of an older release does not.
func (t *Tap) Uses() map[record.VolumeID]int {
	uses := map[record.VolumeID]int{}
	t.shownAt(descAtUses, func(v VolumeInfo, w uint64) {
		if w > 0 {
			uses[v.ID] = int(min(w-1, 1<<20)) // whatever a filter writes there
		}
	})
	return uses
}

package datapath

import (
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
)

// gather decides how long writes gather before they are looked at again: as long as a few take to come. A guest
// that writes one after the other has its processors woken less often so, a lone write waits for nothing, and
// no more come together than are packed in a moment: who packs for long holds up the guests of a small host.
type gather struct {
	pause  time.Duration
	plenty bool // more stands there than is to be left: look at once
}

// step takes what the last look gave.
func (g *gather) step(ws []capture.Write) {
	var bytes int64
	for i := range ws {
		if ws[i].Data != nil {
			bytes += ws[i].Len
		}
	}
	g.plenty = len(ws) == takeWrites || bytes >= batchRaw
	switch n := len(ws); {
	case bytes >= gatherRaw || n <= 1:
		g.pause = batchGather
	case n > gatherMany:
		g.pause /= 2
	case n >= gatherSome && n <= gatherFew:
		g.pause = min(2*max(g.pause, batchGather), batchGatherMost)
	}
	g.pause = max(g.pause, batchGather)
}

package datapath

import (
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
)

// gather decides how long writes gather before they are looked at again. The more of them come
// within that time the longer it is: a guest that writes on and on has both its own processors woken
// less often, and a lone write waits for nothing.
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
	switch {
	case bytes >= gatherRaw || len(ws) <= 1:
		g.pause = batchGather
	case len(ws) >= gatherSome:
		g.pause = min(2*max(g.pause, batchGather), batchGatherMost)
	}
	g.pause = max(g.pause, batchGather)
}

package datapath

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
)

// TestGather: the closer writes come, the longer they gather, and a lone one never does.
func TestGather(t *testing.T) {
	short := capture.Write{Kind: capture.Data, Len: 4096, Data: [][]byte{nil}}
	long := capture.Write{Kind: capture.Data, Len: batchRaw, Data: [][]byte{nil}}
	zero := capture.Write{Kind: capture.Zero, Len: batchRaw}
	g := &gather{}
	f := func(w capture.Write, n int, pause time.Duration, plenty bool) {
		t.Helper()
		if g.step(slices.Repeat([]capture.Write{w}, n)); g.pause != pause || g.plenty != plenty {
			t.Errorf("after %d writes: %v, %v; want %v, %v", n, g.pause, g.plenty, pause, plenty)
		}
	}
	f(short, 0, batchGather, false)
	f(short, 1, batchGather, false)
	f(short, gatherSome-1, batchGather, false)
	f(short, gatherSome, 2*batchGather, false)
	f(zero, gatherFew, 4*batchGather, false) // what is told of zeros holds no slots
	f(short, gatherSome-1, 4*batchGather, false)
	f(short, gatherFew+1, 4*batchGather, false)
	f(short, gatherMany, 4*batchGather, false)
	f(short, gatherFew, batchGatherMost, false)
	f(short, gatherFew, batchGatherMost, false)
	f(short, gatherMany+1, batchGatherMost/2, false)
	f(short, takeWrites, batchGather, true) // there may be more
	f(short, gatherMany+1, batchGather, false)
	f(short, gatherSome, 2*batchGather, false)
	f(long, 2, batchGather, true) // the pool is for others too
	f(short, gatherSome, 2*batchGather, false)
	f(short, 1, batchGather, false)
}

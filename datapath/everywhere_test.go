package datapath

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
)

// The target hears at once that a checkpoint is listed everywhere: by the cuts alone it
// would never know that of its newest one, and at its limit no cut comes.
func TestNewestIsKnownToBeListedEverywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.interval, w.connections = time.Hour, 3 }) // no later cut tells of it
	w.start()
	w.awaitState(api.StateProtected)
	w.checkpoint("one")
	g := w.tg.group("")
	w.await("the newest checkpoint to be known as listed everywhere", func() bool {
		known := g.Retention().Everywhere
		cp, err := g.Latest()
		return err == nil && known == cp.Number
	})
}

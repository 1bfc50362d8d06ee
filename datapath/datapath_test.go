package datapath

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func volumeID(i int) record.VolumeID { return record.VolumeID(i + 1) }

func TestInitialSyncBesideWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.volumes = []string{"vol1", "vol2"} })
	w.start()
	g := w.writeGently(w.size, time.Millisecond) // what is dropped is for others to test
	w.awaitState(api.StateProtected)
	w.checkpoint("while it writes")
	n, slowest := g.end()
	t.Logf("%d writes, the slowest took %s", n, slowest)
	w.verify("quiet")
}

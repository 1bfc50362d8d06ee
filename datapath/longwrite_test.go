package datapath

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api"
)

// TestLongWrites writes more at once than any batch holds, and in runs of slots as long
// as they come: a write is as long as the guest likes.
func TestLongWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.size, w.pool = 16<<20, 32<<20 })
	w.start()
	w.awaitState(api.StateProtected)
	d, rng := w.f.Device("vol1"), rand.New(rand.NewPCG(5, 5))
	for _, n := range []int{batchRaw + 512, 5<<20 + 512, 1280 << 10, 12 << 20} {
		payload := make([]byte, n)
		fill(rng, payload)
		g, err := d.BeginWrite(rng.Int64N(w.size-int64(n)), n)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(payload)
		for _, b := range g.Buffers() {
			r.Read(b)
		}
		if err := g.Commit(false); err != nil {
			t.Fatal(err)
		}
	}
	w.verify("long writes")
	if p := w.status(); p.State != api.StateProtected {
		t.Errorf("state %s: %v", p.State, p.Reason)
	}
}

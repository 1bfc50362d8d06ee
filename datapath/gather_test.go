package datapath

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
)

// TestWritesGather: a guest that writes one short write after the other does not cost a record each.
func TestWritesGather(t *testing.T) {
	w := newWorld(t, nil)
	w.start()
	w.awaitState(api.StateProtected)
	d, payload := w.f.Device("vol1"), make([]byte, 4096)
	count := &w.s.flows[0].count
	before, began := count.batches.Load(), time.Now()
	const writes = 2000
	for i := range writes {
		payload[i%4096]++
		g, err := d.BeginWrite(int64(i)*4096%w.size, len(payload))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range g.Buffers() {
			copy(b, payload)
		}
		if err := g.Commit(false); err != nil {
			t.Fatal(err)
		}
	}
	w.verify("gathered")
	took, batches := time.Since(began), count.batches.Load()-before
	const others = 16 // that are full, or end at a cut
	each := batchGather
	if took < writes*batchGather/(gatherSome+1) { // they came one behind the other
		each = 2 * batchGather
	}
	if most := int64(took/each) + others; batches > most {
		t.Errorf("%d writes within %v went in %d records, more than one each %v", writes, took, batches, each)
	}
	if batches == 0 || batches > writes/2 {
		t.Errorf("%d writes went in %d records", writes, batches)
	}
}

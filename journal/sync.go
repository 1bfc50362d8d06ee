package journal

import (
	"errors"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// commitReplica carries out the items of an initial sync with no history. They are in
// no log: a stream stands where the manifest says that the replica is whole and
// synced. What a crash tears beyond that was not acknowledged and comes again, as the
// same records or, from a source that lost them too, as a read of the same blocks
// before the sync can close.
func (g *Group) commitReplica(items []item) error {
	applied := make(map[record.StreamID]entry)
	fill := filler{pool: g.store.fills, replica: g.replicaNow, touched: make(map[*replica.Volume]struct{})}
	defer fill.end()
	closed := false
	for _, it := range items {
		if it.verdict != toReplica {
			continue
		}
		if err := fill.add(it.rec); err != nil {
			return err
		}
		e := entry{kind: entryApplied, stream: it.rec.Stream, life: it.after.last, seq: it.rec.Seq, sum: it.rec.Checksum}
		e.closed = it.after.phase == phaseLog
		closed = closed || e.closed
		applied[it.rec.Stream] = e
	}
	if len(applied) == 0 {
		return nil
	}
	if err := fill.settle(); err != nil {
		return err
	}
	if !invariant.Planted("journal/ack-before-replica") {
		if err := syncAll(fill.touched); err != nil {
			return g.stopTaking(err) // a failed sync is final for these files
		}
	}
	es := make([]entry, 0, len(applied))
	for _, e := range applied {
		es = append(es, e)
	}
	return g.manifest.put(closed, es...)
}

func syncAll(volumes map[*replica.Volume]struct{}) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all error
	for v := range volumes {
		wg.Go(func() {
			if err := v.Sync(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				all = errors.Join(all, err)
			}
		})
	}
	wg.Wait()
	return all
}

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
	touched := make(map[*replica.Volume]struct{})
	closed := false
	for _, it := range items {
		if it.verdict != toReplica {
			continue
		}
		if err := g.apply(it.rec, touched); err != nil {
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
	if !invariant.Planted("journal/ack-before-replica") {
		if err := syncAll(touched); err != nil {
			return g.stopTaking(err) // a failed sync is final for these files
		}
	}
	es := make([]entry, 0, len(applied))
	for _, e := range applied {
		es = append(es, e)
	}
	return g.manifest.put(closed, es...)
}

// apply writes one record's extents into the replicas, in order.
func (g *Group) apply(rec record.Record, touched map[*replica.Volume]struct{}) error {
	if g.block == nil {
		g.block = make([]byte, 0, record.LineBytes)
	}
	opened := -1
	for i := range rec.Extents {
		e := rec.Extent(i)
		g.mu.Lock()
		v := g.volumes[e.Volume].replica
		g.mu.Unlock()
		touched[v] = struct{}{}
		if e.Kind == record.ExtentZero {
			if err := v.Zero(e.Off, e.Len); err != nil {
				return err
			}
			continue
		}
		if e.Block != opened {
			var err error
			if g.block, err = rec.OpenBlock(g.block, e.Block); err != nil {
				return err
			}
			opened = e.Block
		}
		if err := v.Write(g.block[e.BlockOff:e.BlockOff+int(e.Len)], e.Off); err != nil {
			return err
		}
	}
	return nil
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

package capture

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Fold has every filter move its live generations to its dirty maps; it waits for all
// filters that are needed. What is published after it was called is not folded but captured.
func (t *Tap) Fold(ctx context.Context) error {
	if invariant.Planted("capture/no-fold") {
		return nil
	}
	if err := t.askAll(ctx, request{ask: askFold}, func([]byte) error { return nil }); err != nil {
		return fmt.Errorf("fold %w", err)
	}
	t.merge.Lock()
	defer t.merge.Unlock()
	t.foldedLocked()
	return nil
}

// Restart begins a new incarnation: RaiseIncarnation, Discard, Fold. Writes that were
// published before it are not given any more, but are dirty; later ones are given.
func (t *Tap) Restart(ctx context.Context, above record.Incarnation) (record.Incarnation, error) {
	next := t.RaiseIncarnation(above)
	t.Discard()
	return next, t.Fold(ctx)
}

// MarkAll makes every block of the volume dirty (initial sync; the target lost data) and
// adds to lost. Holes too: the target may hold old bytes there; they go as SyncZero.
func (t *Tap) MarkAll(ctx context.Context, vol record.VolumeID) error {
	_, err := t.askVolume(ctx, request{ask: askMarkAll, volume: vol}, again)
	return err
}

// MarkExtents makes the blocks that the extents touch dirty (the target cannot give them
// back) and adds to lost.
func (t *Tap) MarkExtents(ctx context.Context, vol record.VolumeID, extents []Extent) error {
	for _, e := range extents {
		if _, err := t.askVolume(ctx, request{ask: askMark, volume: vol, off: e.Off, n: e.Len}, again); err != nil {
			return err
		}
	}
	return nil
}

// Dirty tells how much the target may lack of each volume: what its dirty map holds, what
// sync reads have taken and not published, and what guests' writes in flight were left
// out of one. If it is nothing, a ticket taken afterwards is above all of these.
func (t *Tap) Dirty(ctx context.Context) (map[record.VolumeID]DirtySummary, error) {
	dirty := map[record.VolumeID]DirtySummary{}
	err := t.askAll(ctx, request{ask: askDirty}, func(body []byte) error {
		pairs, err := parsePairs(body)
		for _, p := range pairs {
			dirty[record.VolumeID(p[0])] = DirtySummary{Blocks: p[1]}
		}
		return err
	})
	return dirty, err
}

func parsedPairs(body []byte, err error) ([][2]int64, error) {
	if err != nil {
		return nil, err
	}
	return parsePairs(body)
}

// DirtyExtents returns the first extents of the dirty map at or after byte from, in
// order, at most `most`; none when there is nothing more. An extent may be as long as the volume.
func (t *Tap) DirtyExtents(ctx context.Context, vol record.VolumeID, from int64, most int) ([]Extent, error) {
	q := request{ask: askExtents, volume: vol, off: from, max: uint32(min(most, maxExtents))}
	pairs, err := parsedPairs(t.askVolume(ctx, q, again))
	if err != nil {
		return nil, err
	}
	extents := make([]Extent, len(pairs))
	for i, p := range pairs {
		extents[i] = Extent{Off: p[0], Len: p[1]}
	}
	return extents, nil
}

// SyncRead has the filter read what is dirty in [off, off+n) (widened to whole blocks)
// and publish it; it returns when all of it is published, and guests' writes that were
// left out of it have their tickets (or lost tells of them), so Next and Free must go on
// meanwhile. A closing boundary's ticket must be taken after the last one returned nil. Any n is good: pieces are read as slots come free, guests' writes first;
// holes are skipped over quickly. What could not be read or published is dirty as
// before, and counted in lost. When ctx ends, or the filter does (ErrFilterGone), it
// returns at once, though the filter may finish the piece it is at.
func (t *Tap) SyncRead(ctx context.Context, vol record.VolumeID, off, n int64) error {
	_, err := t.askVolume(ctx, request{ask: askSyncRead, volume: vol, off: off, n: n}, once)
	return err
}

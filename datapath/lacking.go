package datapath

import (
	"context"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// The target may lose what it had: bytes rot, and nothing there brings them back. Then it
// names the places, and their blocks become dirty here like those of a write that was
// dropped: lost rises with it, a resync opens, reads them and closes, and the checkpoints
// after that are whole. Marking too much, or twice, costs reading it again and no more.

const (
	// lackPlaces is how many places may wait to be marked; what comes beyond is told again.
	lackPlaces = 16 * wire.MaxLacks
	// lackEvery is how often places are marked: each time may open a resync, during which no
	// checkpoint is made.
	lackEvery = 5 * time.Second
)

// lacking takes word of what the target has lost.
func (f *flow) lacking(m *wire.Lacking) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.mu.lost)+len(m.Places) > lackPlaces {
		return
	}
	f.mu.lost = append(f.mu.lost, m.Places...)
	select {
	case f.lostCame <- struct{}{}:
	default:
	}
}

// markLost marks what the target has lost until ctx ends.
func (f *flow) markLost(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.lostCame:
		}
		f.mu.Lock()
		places := f.mu.lost
		f.mu.lost = nil
		f.mu.Unlock()
		if err := f.mark(ctx, places); err != nil && ctx.Err() == nil {
			f.log.Warn("what the target has lost is not marked; it will say so again", "error", err)
		}
		if !pause(ctx, lackEvery) {
			return
		}
	}
}

// mark makes the places dirty, as far as they are of our volumes.
func (f *flow) mark(ctx context.Context, places []wire.Lack) error {
	of := make(map[record.VolumeID][]capture.Extent)
	bytes := int64(0)
	for _, p := range places {
		of[p.Volume] = append(of[p.Volume], capture.Extent{Off: p.Off, Len: p.Len})
		bytes += p.Len
	}
	for _, v := range f.sent() {
		if invariant.Planted("datapath/lost-unmarked") {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, askFilters)
		err := f.tap.MarkExtents(ctx, v.ID, of[v.ID])
		cancel()
		if err != nil {
			return err
		}
	}
	f.log.Warn("the target has lost what it had of some places; they are sent again", "places", len(places), "bytes", bytes)
	f.count.asked.Add(uint64(bytes))
	return nil
}

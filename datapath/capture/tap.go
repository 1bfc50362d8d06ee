package capture

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// TapConfig says which filters a Tap reads.
type TapConfig struct {
	RunDir  string // as the filters'
	Group   record.GroupID
	Filters []string // pool sockets
	Log     *slog.Logger
}

// Tap is the VRA's end of a group's capture. One process at a time has it.
//
// Next is for one goroutine; all else may be called concurrently.
type Tap struct{}

// OpenTap makes or maps the order page and starts to connect (and reconnect) to the
// filters. It does not wait for them.
func OpenTap(cfg TapConfig) (*Tap, error) { return nil, errors.ErrUnsupported }

// Close unmaps everything and gives the group up. What was not freed stays published
// for the next Tap. No Write's Data may be touched afterwards.
func (t *Tap) Close() error { return errors.ErrUnsupported }

// Volumes lists the volumes of all filters, by ID; ok once every configured filter has answered.
func (t *Tap) Volumes() (volumes []VolumeInfo, ok bool) { return nil, false }

// Next returns the next writes in ticket order, at most max; when there is none it
// waits for one, at most wait, and then returns none and no error. Its error is ctx's or fatal.
func (t *Tap) Next(ctx context.Context, max int, wait time.Duration) ([]Write, error) {
	return nil, errors.ErrUnsupported
}

// Free gives the slots of ws back to their filters. Order does not matter, though
// ticket order is cheapest. Marks are ignored. It is safe from any goroutine.
func (t *Tap) Free(ws []Write) {}

// TakeTicket takes a ticket for a cut or a boundary; it comes back from Next as Mark,
// after every write with a lower ticket and before every one with a higher.
func (t *Tap) TakeTicket() record.Ticket { return 0 }

// LastTicket is the highest ticket that anyone has taken so far.
func (t *Tap) LastTicket() record.Ticket { return 0 }

// Lost counts the times that writes were dropped. Read it after a cut's ticket was taken.
func (t *Tap) Lost() uint64 { return 0 }

// LostCovered is the count that the last closed resync covered; it differs from Lost
// while the target lacks something. It outlives this process, not a boot.
func (t *Tap) LostCovered() uint64 { return 0 }

// SetLostCovered notes what a closed resync covered.
func (t *Tap) SetLostCovered(n uint64) {}

// Incarnation is the present one; 0 on a page no VRA has used since the boot.
func (t *Tap) Incarnation() record.Incarnation { return 0 }

// RaiseIncarnation draws an incarnation above the present one and above `above` (what
// the target stands at) and returns it. Discard and Fold follow, in this order.
func (t *Tap) RaiseIncarnation(above record.Incarnation) record.Incarnation { return 0 }

// PublishDurable says that all writes with tickets up to T are durable at the target
// (Marks and skipped tickets count as durable): generations up to there are dropped.
// It never goes back. Not before Fold has returned, for a new incarnation.
func (t *Tap) PublishDurable(T record.Ticket) {}

// Discard drops all writes published so far: Next gives none with a ticket up to the
// one returned. Their marks stand in live generations, so that Fold must follow.
func (t *Tap) Discard() record.Ticket { return 0 }

// Fold has every filter move its live generations to its dirty maps; it waits for all
// configured filters. What was published after it was called is not folded but captured.
func (t *Tap) Fold(ctx context.Context) error { return errors.ErrUnsupported }

// Restart begins a new incarnation: RaiseIncarnation, Discard, Fold.
func (t *Tap) Restart(ctx context.Context, above record.Incarnation) (record.Incarnation, error) {
	return 0, errors.ErrUnsupported
}

// MarkAll makes every block of the volume dirty (initial sync; the target lost data) and
// adds to lost. Holes too: the target may hold old bytes there; they go as SyncZero.
func (t *Tap) MarkAll(ctx context.Context, vol record.VolumeID) error { return errors.ErrUnsupported }

// Dirty tells how much each volume's dirty map holds.
func (t *Tap) Dirty(ctx context.Context) (map[record.VolumeID]DirtySummary, error) {
	return nil, errors.ErrUnsupported
}

// DirtyExtents returns the first extents of the dirty map at or after byte from, in
// order, at most max; none when there is nothing more. An extent may be as long as the volume.
func (t *Tap) DirtyExtents(ctx context.Context, vol record.VolumeID, from int64, max int) ([]Extent, error) {
	return nil, errors.ErrUnsupported
}

// SyncRead has the filter read what is dirty in [off, off+n) (widened to whole blocks)
// and publish it; it returns when all of it is published, so Next and Free must go on
// meanwhile. Any n is good: pieces are read as slots come free, guests' writes first;
// holes are skipped over quickly. On an error what was not read is dirty as before.
// When ctx ends it returns at once, though the filter may finish the piece it is at.
func (t *Tap) SyncRead(ctx context.Context, vol record.VolumeID, off, n int64) error {
	return errors.ErrUnsupported
}

// Stats is a snapshot of counters; all but Slots and Free only grow, per filter process.
type Stats struct {
	GuestWrites   uint64 // writes, zeroings and discards answered
	GuestBytes    uint64
	CapturedBytes uint64
	Dropped       uint64 // writes dropped to the dirty map
	Uncaptured    uint64 // writes to blocks already dirty
	SyncBytes     uint64 // read for sync, holes and zeros included
	Revoked       uint64 // slots this Tap revoked
	Slots, Free   int
	Filters       int // connected
}

// Stats sums up over the connected filters.
func (t *Tap) Stats() Stats { return Stats{} }

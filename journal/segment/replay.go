package segment

import (
	"errors"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// ReplayOptions has a useful zero.
type ReplayOptions struct {
	// ControlOnly leaves out the records that carry writes, data and folded, and reads
	// none of them in a verified segment.
	ControlOnly bool
}

// Replay calls each with every record in [from, to) in order, with tables and body and
// without payload, borrowed until each returns. An error of each ends it. from and to
// are places that Durable returned, or a segment's edges; what was dropped, or is not
// durable, is ErrRange. It may be called beside appends, and by many.
func (l *Log) Replay(from, to Pos, o ReplayOptions, each func(Pos, record.Record) error) error {
	return errors.ErrUnsupported
}

// Life says which log this is up to pos, a place that Durable returned: the number of
// the segment that holds the byte before it, and a number, never zero, that stands for
// every record before pos. Recovery may move the last round to another segment, so
// compare pos and life alone. ok is false when the log does not know the place.
func (l *Log) Life(pos Pos) (segment, life uint64, ok bool) { return 0, 0, false }

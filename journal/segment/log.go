package segment

import (
	"errors"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Log is the log of one group. Append, Commit and Abandon are for one goroutine;
// the others may be called beside them.
type Log struct{}

// Open opens the group's log in dir, which it makes when absent (the caller has its
// parent). It calls each, if not nil, with every durable record in order; the record
// has its tables and body and no payload, and is borrowed until each returns. A tail
// that was never acknowledged is cut; anything else amiss is ErrCorrupt.
func Open(fs ioengine.FS, dir string, group record.GroupID, w Watermark, o Options, each func(Pos, record.Record) error) (*Log, error) {
	return nil, errors.New("segment: not yet")
}

// Append copies one whole record to the log's end and returns its place. It is
// durable only after Commit. It may write, and begin a segment; after an error other
// than a malformed record the log has failed.
func (l *Log) Append(rec []byte) (Pos, error) { return 0, ErrFailed }

// Commit makes everything appended durable. After an error nothing since the last
// Commit is, and the log has failed.
func (l *Log) Commit() error { return ErrFailed }

// Abandon takes a failed log on: it forgets what is not durable, leaves the open
// segment at its last good byte, and begins another. The caller appends again what
// it still holds. It may be called again when it fails.
func (l *Log) Abandon() error { return ErrFailed }

// Durable returns how far the log is durable.
func (l *Log) Durable() Pos { return 0 }

// End returns where the next record goes, unless a segment begins first.
func (l *Log) End() Pos { return 0 }

// ReadAt fills p with the durable bytes at pos. p may span segments.
func (l *Log) ReadAt(p []byte, pos Pos) error { return ErrRange }

// Segments returns the segments, oldest first.
func (l *Log) Segments() []Info { return nil }

// Close ends the log without committing. It waits for sealing to end.
func (l *Log) Close() error { return nil }

// State says what is known of a segment.
type State uint8

// The states of a segment.
const (
	StateOpen     State = iota + 1 // takes records
	StateClosed                    // takes no more; footer and read-back to come
	StateVerified                  // has its footer, and every byte was read back from the device and verified
	StateBad                       // the footer could not be written, or the read-back found damage; Info.Err says what
)

// Info describes a segment.
type Info struct {
	Number     uint64
	First, End Pos // where its records begin and end; the open one's end is what is durable
	Records    int
	State      State
	Err        error // of StateBad
}

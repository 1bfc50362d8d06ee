package segment

import (
	"errors"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Watermarks is the file of a store that keeps the watermark of each of its groups.
// Raise is for one goroutine at a time; Get may be called beside it.
type Watermarks struct{}

// OpenWatermarks opens the file, which it makes when absent.
func OpenWatermarks(fs ioengine.FS, dir, name string) (*Watermarks, error) {
	return nil, errors.New("segment: not yet")
}

// Get returns a group's watermark; the zero Watermark when it has none.
func (m *Watermarks) Get(group record.GroupID) Watermark { return Watermark{} }

// Raise sets the given watermarks, and returns when they are durable. A place lower
// than the one that stands changes nothing. Many groups cost what one costs: one
// write and one sync.
func (m *Watermarks) Raise(marks map[record.GroupID]Watermark) error { return nil }

// Close closes the file.
func (m *Watermarks) Close() error { return nil }

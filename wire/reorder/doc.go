// Package reorder decides how the records of a stream travel over several connections
// and come out in order: Target holds what came before its turn, Source knows what is
// to be sent again when a connection is cut.
//
//	Source ── Pick, May ──► connection 0 ──┐
//	                    ──► connection 3 ──┼──► Target ── Judge, Came, Pop ──► in order
//	                    ──► connection 4 ──┘
//
// What both rely on:
//   - Each opening of a stream has a number, the count of the Stands for it in the
//     session. A record says of which it is, so that what is still under way from
//     before a reopening is known and dropped.
//   - Of the records of an opening that are sent and not acknowledged the room (Room)
//     is at most Window, except while all of them are on one connection, on which
//     nothing overtakes. So a target never holds more than Window for a stream, and
//     refuses more (ErrBeyond): a Source that keeps to May never meets that.
//   - A record is taken once. What came before is dropped; what comes again with the
//     same seq and other bytes is refused (ErrDiffers).
//
// It is pure: no clock, no lock, no memory of records. Time is passed in. A record
// costs some 50 bytes at its source until it is acknowledged, and at its target while
// it is held.
package reorder

import (
	"errors"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// How a source broke the rules.
var (
	ErrBeyond  = errors.New("a record beyond the reorder window")
	ErrDiffers = errors.New("two records of one seq")
	ErrOpening = errors.New("a record of an opening that was not")
	ErrGap     = errors.New("a gap that nobody fills")
)

const (
	// Window is the room of the records of a stream that may be under way at once:
	// 384 of the smallest, 5 of the largest. It is part of the protocol.
	Window = 24 << 20
	// MaxGap is how long a target holds what came early without the record that is missing.
	MaxGap = time.Minute
)

// Rooms are the sizes of buffers that targets receive into: any record fits the largest.
var Rooms = [...]int{smallest, 512 << 10, 1280 << 10, record.MaxRecordBytes}

const smallest = 64 << 10

// Room is what a record of so many bytes takes of the window. It is part of the protocol.
func Room(bytes int) int64 {
	for _, r := range Rooms {
		if bytes <= r {
			return int64(r)
		}
	}
	return int64(bytes)
}

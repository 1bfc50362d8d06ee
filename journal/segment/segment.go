// Package segment keeps a group's log: records back to back in append-only files,
// durable once committed, whole again after any crash. FORMAT.md has the bytes.
//
//	l, err := segment.Open(fs, dir, group, marks.Get(group), segment.Options{}, each)
//	pos, err := l.Append(rec) // some more
//	err = l.Commit()          // now they are durable
//	if errors.Is(err, segment.ErrFailed) {
//		err = l.Abandon() // then append again what is still held
//	}
//
// What every caller may rely on:
//   - What was committed is found by every later Open, at the same place, or Open says
//     ErrCorrupt. What was appended and not committed may be found too, as whole
//     rounds from the front: no crash leaves a part of one.
//   - A failed write or sync is final for its file: nothing is written to it or synced
//     again by that life, and a later life copies what it cannot vouch for.
//   - No bytes that were ever synced are written again, so that a torn write can harm
//     nothing that was acknowledged.
//   - Open tells a torn tail from damage by the watermark, which is kept outside the
//     log (Watermarks), and by the commits that were written after a round.
//
// Open reads no record of a closed segment: a header and a trailer each, and of the last
// one the headers above the watermark. Replay reads the rest; whoever serves a block
// verifies it. Closed segments are read back from the device and verified whole, beside the
// appends; Segments tells what that found, and Verify does it again.
//
// It costs one write and one sync a Commit, and up to 4 KiB of padding. For each segment three
// more syncs, two of them of the folder, which no Commit waits for: half of a segment before it is
// full the next one is made ready, and to begin that costs the Commit a write of a page. In memory: a share of Stages, 48 bytes for
// each record that this life appended until its segment is verified, and some 300
// bytes a segment; a Replay takes up to 8 MiB while it runs.
//
// Dropped segments give their files to the Pool, from which new ones come: such a file has
// its space, so that a commit changes no metadata. Without a spare one a segment is a new
// file whose space is set aside in steps; where there is no space for all of it the file grows
// as it is written.
package segment

import (
	"errors"
	"fmt"
	"log/slog"
)

// Pos is a place in a group's log, in bytes. It rises over all segments and is never
// used again for other bytes once it was durable. A record's place is that of its
// first byte. Zero is no place: a log begins at Start.
type Pos int64

// Start is where every log begins.
const Start Pos = pageBytes

// pageBytes is what headers, rounds and footers are padded to: no page that was ever
// synced is written again.
const pageBytes = 4096

func (p Pos) String() string { return fmt.Sprintf("%#x", int64(p)) }

// Watermark is what is known of a group's log from outside it. Damage in [First,
// Durable) is corruption, never a torn tail. The zero Watermark is that of a new log.
type Watermark struct {
	First   Pos // the log's oldest byte that was not dropped; 0: Start
	Durable Pos // the log was durable up to here
}

// Options has a useful zero.
type Options struct {
	// SegmentBytes is how much a segment takes before the next begins; the round that
	// passes it is still written whole. Default 256 MiB.
	SegmentBytes int64
	// StageBytes is how much Append gathers before it writes. Default 1 MiB.
	StageBytes int
	// LendBytes is from what size on records are written from where they lie, if that is
	// aligned as the file wants it. Default 128 of the file's sectors: 64 KiB, or 512.
	LendBytes int
	// Stages are the buffers for that, shared by the logs of a store. Default: four of
	// StageBytes for this log alone.
	Stages *Stages
	// OpenFiles is how many closed segments stay open for reading. Default 64.
	OpenFiles int
	// Spare is where dropped segments go and new ones come from. Default: files are made
	// and removed.
	Spare *Pool
	// Log takes what an operator should know. Default: nothing is said.
	Log *slog.Logger
	// Go runs the sealing of a closed segment, which reads all of it. Default: one
	// goroutine, which Close waits for.
	Go func(func())
	// Ahead runs the making of the next segment, which waits for the disk a few times and for
	// nothing else. Default: a goroutine of its own, which Close waits for.
	Ahead func(func())
	// Pace is called by that with the bytes of each read before it, and may wait; its
	// error ends the sealing, which the next Open takes up. Default: it does not wait.
	Pace func(bytes int) error
	// Damaged is told what the read-back of a closed segment found, on the goroutine that
	// seals; it may be called before Open returns. Default: only Segments tells.
	Damaged func([]Damage)
	// Verified is told of a segment whose file was read back, verified and ended with its
	// footer, on the goroutine that seals; the file is not used for anything else
	// until it returns. Discarded is told when a file is no longer the log's. Default: nobody is.
	Verified, Discarded func(FileInfo)
	// ReadBack is told after Verified of a segment that was sealed, on the same goroutine, and
	// may wait for what is not ready before Open returned. Default: nobody is.
	ReadBack func(FileInfo)
	// Life draws the number that ties commits to one life of a segment, and that no
	// guest can guess. Default: crypto/rand.
	Life func() uint64
}

// The errors of a log, for errors.Is.
var (
	// ErrCorrupt says that bytes which were durable are not what was written.
	ErrCorrupt = errors.New("corrupt log")
	// ErrVersion says that a newer release wrote the file.
	ErrVersion = errors.New("unknown version of the log's format")
	// ErrFailed says that a write or sync failed: only Abandon takes the log on.
	ErrFailed = errors.New("log has failed")
	// ErrClosed says that the log was closed.
	ErrClosed = errors.New("log is closed")
	// ErrRange says that bytes were asked for that are not durable, or were dropped.
	ErrRange = errors.New("outside the durable log")
)

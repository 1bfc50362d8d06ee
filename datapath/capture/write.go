package capture

import "github.com/holdfast-dr/holdfast/wire/record"

// Kind says what a Write from a Tap is.
type Kind uint8

// The kinds of a Write.
const (
	Data     Kind = 1 + iota // a guest's write
	Zero                     // a guest's zeroing or discard: the range reads as zeros
	SyncData                 // a sync read: what the disk held
	SyncZero                 // a sync read of a hole or of zeros
	Mark                     // no write: a ticket that TakeTicket gave, in its place
)

// Write is one write as the Tap gives it, in ticket order.
type Write struct {
	Ticket record.Ticket
	Volume record.VolumeID // 0 for a Mark
	Off    int64           // bytes
	Len    int64           // bytes; Zero and SyncZero may be long, others at most front.MaxWrite
	Kind   Kind
	// Data holds the Len bytes of Data and SyncData in order. It is memory shared
	// with the filter: read only, and only until Tap.Free.
	Data [][]byte
	// Captured is when the ticket was taken, CLOCK_MONOTONIC ns.
	Captured int64

	ring *tapRing // where Free gives it back; nil for a Mark
	at   uint64   // its entry there
	slot uint32
}

// Extent is a range of a volume, in bytes.
type Extent struct{ Off, Len int64 }

// VolumeInfo describes a volume that a filter serves.
type VolumeInfo struct {
	ID    record.VolumeID
	Name  string
	Bytes int64
}

// DirtySummary tells how much the target is known to lack of a volume.
type DirtySummary struct {
	Blocks int64 // of BlockBytes; holes count too, but cost next to nothing to sync
}

// Sizes both sides agree on.
const (
	BlockBytes = 4096 // what one mark covers
	SlotBytes  = 8192
)

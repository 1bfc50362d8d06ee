package front

import "github.com/holdfast-dr/holdfast/ioengine"

// Laned is a Device that carries out the requests of a queue without a goroutine for each.
type Laned interface {
	Device
	// Lane makes a lane for that many requests at a time, for the calling goroutine alone, which
	// stays on its thread until the lane is closed. An error wraps ioengine.ErrNoLoop: then the
	// device is used as any other.
	Lane(requests int) (Lane, error)
}

// Lane starts requests, and tells of their ends while its goroutine is in Loop().Step: there, or
// on a goroutine of its own for a request that had to wait for something else than the disk; or in the call, where there was nothing
// to wait for. All
// methods belong to the goroutine that made it.
type Lane interface {
	// Loop is what the goroutine waits by.
	Loop() *ioengine.Loop
	// Write carries w out, as its Commit without fua does, and calls done when the guest may be
	// answered. It ends w.
	Write(w Write, done func(error))
	// Pass begins to write the parts at off as they stand, and calls done when the guest may be answered:
	// a write of which nobody needs a copy that stays as it is. False: it is not begun, and goes by Write.
	Pass(parts [][]byte, off int64, done func(error)) bool
	// Looks says whether it looks at what it reads, as for a checksum: then the parts of a Read must be memory that nobody else changes
	// meanwhile, or takes away. One that does not is given a guest's own.
	Looks() bool
	// Read begins to fill the parts and calls done when they are filled. False: it is not begun, and
	// the Device is to be asked.
	Read(parts [][]byte, off int64, done func(error)) bool
	// Told is called when guests have been told of what ended: what was put off for that is done.
	Told()
	// Close ends the lane, once every request has ended.
	Close()
}

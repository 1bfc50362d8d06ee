package datapath

import "time"

// Every depth and waiting time of the data path, and why.
const (
	// batchRaw is the payload of a batch at most, in bytes: large enough that its
	// header, its commit and its sync cost nothing beside its compression.
	batchRaw = 1 << 20
	// batchRawMin is what a batch may always hold: with less the tables weigh too much.
	// At 5 Mbit it takes the link 105 ms.
	batchRawMin = 64 << 10
	// pieceBytes is how much of a write goes into a batch at a time: no more than an
	// empty batch always takes, since a write may be longer than any batch.
	pieceBytes = 64 << 10
	// batchExtents bounds the tables: 1 MiB of 512-byte writes is 2048.
	batchExtents = 8192
	// batchAge is how old the first write of a batch may become before the batch is
	// sealed, whatever the line does: a twentieth of a second is not seen in the lag.
	batchAge = 50 * time.Millisecond
	// batchLink is how long a record may occupy the link: what waits behind it waits
	// so long (design section 12).
	batchLink = 100 * time.Millisecond
	// fitFrom is the part of the window from which on records are moved to memory of their
	// size: the rest may be taken by what compression left free.
	fitFrom = 4
	// batchGather is how long writes gather, at least, before they are looked at again, and, while the line is
	// idle, how far apart batches are at least: each record costs both sites what a dozen
	// writes in it do, and each wake-up of the VRA its filter a system call before the next write. It is less than a
	// store takes to sync, and a write that comes alone is sealed at once.
	batchGather = time.Millisecond
	// batchGatherMost is how long they gather at most while they come one behind the other: on a
	// host whose processors are the guests' each record is a dozen threads woken.
	batchGatherMost = 8 * time.Millisecond
	// gatherSome is how many writes come one behind the other; up to gatherFew are let gather for longer, and more than
	// gatherMany for less: what is packed by them keeps a processor from its guests for a fraction of a millisecond.
	gatherSome, gatherFew, gatherMany = 4, 16, 40
	// gatherRaw is how much of payload, in bytes, is not let gather: slots are for others too.
	gatherRaw = 256 << 10
	// busyPoll is how often sync reads look whether the window has room.
	busyPoll = 5 * time.Millisecond
	// poolShare is the part of a pool that one batch may hold: several are being
	// filled, packed and stowed at once.
	poolShare = 8

	// takeWrites is how many writes feed takes from the tap at once: enough for a
	// batch of 4 KiB writes.
	takeWrites = 256
	// jobs is how many batches there are beyond those that pack holds: one being
	// filled, one being stowed, one on its way each side of pack.
	jobs = 4

	// syncFlight is how many sync reads run at once: one reads while the other's
	// slots are taken; more would only compete with guests for slots.
	syncFlight = 2
	// syncRead is the range of one sync read, in bytes: an end of the walk is never
	// far away, and a volume of 1 TiB of holes takes a quarter of a million of them.
	syncRead = 4 << 20
	// syncPage is how many dirty extents are asked for at once.
	syncPage = 1024
	// syncAhead is how much of the link's time may stand in the window before sync
	// reads wait: guests' writes queue behind it.
	syncAhead = time.Second
	// syncAheadMin is what may always stand there, in bytes.
	syncAheadMin = 8 << 20

	// syncFutile is the payload per second, in bytes, of guests' writes to what is dirty, for each batch that can be packed at
	// once, that no resync gains on: what it reads is dirty again before it is sealed.
	syncFutile = 256 << 20
	// syncLook is how long those writes are counted, at least, and syncAnyway how long a read waits for
	// them at most: a resync never stands still.
	syncLook   = 100 * time.Millisecond
	syncAnyway = 250 * time.Millisecond

	// tickEvery is how often the machine is told how things stand.
	tickEvery = 100 * time.Millisecond
	// silence is how long a target may be unheard before the lag is unknown.
	silence = 5 * time.Second
	// dirtyEvery is how often the filters are asked how much is dirty while something is,
	// or while that is not known.
	dirtyEvery = time.Second
	// tendEvery is how often it is looked whether a volume can join, or something that a user
	// asked for can be done that could not before.
	tendEvery = 200 * time.Millisecond
	// freezeLimit is how long each command of a freeze may take, and how long guests may be at
	// rest before the cut has its ticket.
	freezeLimit = 10 * time.Second
	// askStatus is how long a status may wait for the filters: people wait for it.
	askStatus = 500 * time.Millisecond
	// startGrace is how long filters may be unheard after a start before that is an error.
	startGrace = 2 * time.Second
	// askFilters is how long a question to the filters may take.
	askFilters = 10 * time.Second

	// retryStorage is how long a source waits after the target could not store, and
	// retryRefused after any other refusal; after retryOutdrawn it draws an incarnation
	// above one that was let in before.
	retryStorage = 2 * time.Second
	retryRefused = 10 * time.Second

	retryOutdrawn = time.Second
)

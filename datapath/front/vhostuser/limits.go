package vhostuser

import "time"

// What one server can be made to hold, as a sum: MaxQueues queues, of each maxWorkers
// requests under way, each with a piece of a read or with the device's buffers of one write,
// of which few are longer than pooledBytes at a time, and, of a device that looks at what its lanes read, laneCopies
// buffers of copiedBytes:
//
//	16 x (16 x 1 MiB + 64 x 64 KiB) + 4 x 32 MiB = 448 MiB at the very worst,
//
// by a guest that asks for nothing but the longest requests; a driver of today sends
// at most 1.25 MiB at a time.
const (
	// MaxQueues is the most queues a front end may set up.
	MaxQueues = 16
	// maxQueueSize is the most entries of one queue: more than QEMU sets up.
	maxQueueSize = 1024
	// maxChain is the most descriptors one request may have, indirect ones included.
	maxChain = 1024
	// segmentsMax is told to drivers: descriptors of payload in one request.
	segmentsMax = 254
	// maxWorkers bounds the requests of one queue that are carried out at a time.
	maxWorkers = 16
	// laneRequests bounds those of one queue that a device's lane carries out at a time; more wait.
	laneRequests = 256
	// laneCopies bounds those that are read into memory of ours, and copiedBytes each of them; more, and longer ones, are for workers.
	laneCopies  = 64
	copiedBytes = 64 << 10
	// maxRegions is the most pieces the guest's memory comes in: what the protocol has
	// room for.
	maxRegions = 8
	// maxMessage bounds a message's payload, in bytes.
	maxMessage = 4096
	// maxRanges bounds the ranges of one discard or write-zeroes.
	maxRanges = 16

	// maxZeroSectors is the longest range of a discard or write-zeroes that drivers are
	// told of: 1 GiB.
	maxZeroSectors = 1 << 21

	// pooledBytes is the longest buffer of a read: a longer one is read in pieces.
	pooledBytes = 1 << 20
	// maxBigWrites bounds the writes of more than pooledBytes that are under way at a time.
	maxBigWrites = 4
	// replyTime is how long a front end may take to read an answer.
	replyTime = 5 * time.Second
)

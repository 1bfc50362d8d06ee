package nbd

import "time"

// What one server can be made to hold, as a sum: maxConns connections, each with
// one receive buffer, at most maxWorkers goroutines that each carry one piece of a
// read (or one write, whose buffers are the device's), one big read of a client
// without structured replies, and the replies that wait:
//
//	64 x (64 KiB + 16 x 1 MiB + 32 MiB + 1 MiB) = about 3 GiB at the very worst,
//
// where a lane serves laneBytes of requests take the place of the pieces. That is
// under 1 MiB a connection for a client of 4 KiB requests that reads its replies.
const (
	// MaxName is the longest export name or description, in bytes, as in the protocol.
	MaxName = 4096

	// maxConns bounds the connections of one server. A client opens 1 to 16.
	maxConns = 64
	// maxWorkers bounds the requests of one connection that are carried out at a
	// time: more than a disk gains from, and QEMU sends 16 at most.
	maxWorkers = 16

	// laneRequests bounds the requests of one connection that its device's lane carries out at a time, and
	// laneBytes their payload: no more is taken in then.
	laneRequests = 128
	laneBytes    = maxWorkers * pieceBytes

	// receiveBytes is read ahead of small requests: 15 writes of 4 KiB in one call.
	receiveBytes = 64 << 10
	// straightBytes is the payload from which reading ahead stops, so that it goes
	// from the socket to the device's buffers without a copy between.
	straightBytes = 16 << 10
	// pieceBytes is the longest piece of a structured read: larger ones leave as
	// several chunks, so that memory stays small.
	pieceBytes = 1 << 20
	// waitingBytes of replies may wait for the one that writes; then workers wait.
	waitingBytes = 1 << 20
	// holdBytes of replies are held back while more requests stand in the receive
	// buffer, so that one write answers them all.
	holdBytes = 256 << 10

	// quickBytes and quickTime say which requests are carried out by the reader
	// itself though others wait: those that cost less than passing them on. One that
	// is alone may cost loneTime: who comes meanwhile waits that long.
	quickBytes = 64 << 10
	quickTime  = 20 * time.Microsecond
	loneTime   = 500 * time.Microsecond

	// maxOptions and maxOption bound a handshake, handshakeTime ends a slow one.
	maxOptions    = 256
	maxOption     = 64 << 10
	handshakeTime = 10 * time.Second
	// partingTime is how long a client may take to read its last replies.
	partingTime = 2 * time.Second

	// maxExtents is the most extents in one answer: 32 KiB.
	maxExtents = 4096
	// statusBytes of data end an answer: a device may have to look for each of its blocks, and clients ask for all that
	// is left of a disk where they want to know of the next MiB. Holes cost a device little, and are told of whole.
	statusBytes = 8 << 20
	// maxCalls is how many requests of one Client are under way; more wait.
	maxCalls = 128
	// maxChunk bounds what a server may send a Client in one chunk beside payload: QEMU's longest block status, 1 MiB
	// of extents behind the number of their context.
	maxChunk = 4 + 1<<20

	// preferredBlock is told to clients; smaller and unaligned requests are served too.
	preferredBlock = 4096
)

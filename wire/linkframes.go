package wire

import (
	"time"
)

// A link test runs on two connections of its own, opened as those of a session but
// for the first frame on data, which is Test and not Join. Version 4 has it.

// Limits of one test; a target ends one that goes beyond them.
const (
	MaxTestTime  = time.Minute // each way
	MaxTestBytes = 4 << 30     // each way
	// testChunk is the longest body of a Chunk: the frame fills one record of TLS.
	testChunk = 16<<10 - frameBytes
	// testIdle is how long a target waits for the next word of a test; testWhole bounds
	// a test in all: both ways, what is in the queues, and the pings.
	testIdle  = 15 * time.Second
	testWhole = 2*MaxTestTime + time.Minute
	// reportEvery is how often the receiver of a bulk says what it has.
	reportEvery = 200 * time.Millisecond
)

// ping asks for the other end's time.
type ping struct{ number uint64 }

const pingBytes = 8

func (p ping) appendTo(b []byte) []byte { return putU64(b, p.number) }

func parsePing(b []byte) (ping, error) {
	d := decoder{p: b}
	p := ping{d.u64()}
	return p, d.end("ping")
}

// pong answers it at once.
type pong struct {
	number uint64
	wall   int64 // ns since 1970, as the answer is written
}

const pongBytes = 8 + 8

func (p pong) appendTo(b []byte) []byte { return putU64(putU64(b, p.number), uint64(p.wall)) }

func parsePong(b []byte) (pong, error) {
	d := decoder{p: b}
	p := pong{d.u64(), int64(d.u64())}
	return p, d.end("pong")
}

// bulk announces what its sender sends, or asks the other end to send: for so long,
// so many bytes, whichever comes first, and no faster than rate.
type bulk struct {
	lasts time.Duration
	bytes int64
	rate  int64 // bits per second of payload; 0 is as fast as it goes
}

const bulkBytes = 8 + 8 + 8

func (k bulk) appendTo(b []byte) []byte {
	return putU64(putU64(putU64(b, uint64(k.lasts)), uint64(k.bytes)), uint64(k.rate))
}

func parseBulk(b []byte) (bulk, error) {
	d := decoder{p: b}
	k := bulk{time.Duration(d.u64()), int64(d.u64()), int64(d.u64())}
	if d.bad == "" && (k.lasts <= 0 || k.lasts > MaxTestTime || k.bytes <= 0 || k.bytes > MaxTestBytes || k.rate < 0) {
		d.fail("beyond the limits of a test")
	}
	return k, d.end("bulk")
}

// measured is what one end found: of a bulk it receives, bytes and the time since the
// first of them, now and then and at the end; of one it sent, only its connection.
type measured struct {
	bytes int64
	took  time.Duration
	last  bool
	tcp   TCPStats // of the sender, when last; else zero
}

const measuredBytes = 8 + 8 + 1 + 3*8 + 2*4

func (m measured) appendTo(b []byte) []byte {
	b = putBool(putU64(putU64(b, uint64(m.bytes)), uint64(m.took)), m.last)
	b = putU64(putU64(putU64(b, m.tcp.Segments), m.tcp.Retransmitted), uint64(m.tcp.RTT))
	return putU32(putU32(b, m.tcp.MSS), m.tcp.PathMTU)
}

func parseMeasured(b []byte) (measured, error) {
	d := decoder{p: b}
	m := measured{bytes: int64(d.u64()), took: time.Duration(d.u64()), last: d.bool()}
	m.tcp = TCPStats{Segments: d.u64(), Retransmitted: d.u64(), RTT: time.Duration(d.u64()), MSS: d.u32(), PathMTU: d.u32()}
	if d.bad == "" && (m.bytes < 0 || m.took < 0 || m.tcp.RTT < 0) {
		d.fail("less than nothing")
	}
	return m, d.end("measured")
}

// TCPStats is what the kernel of a bulk's sender says about its connection; zero where
// it cannot tell.
type TCPStats struct {
	Segments      uint64 // with payload, those sent again included
	Retransmitted uint64
	RTT           time.Duration // smoothed
	MSS           uint32        // payload of a full-size segment
	PathMTU       uint32        // as the kernel believes it to be
}

package wire

import (
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// taping puts what passes one way of a connection on a tape. It follows the frames, so
// that it can leave out what guests wrote: of a Record or Ordered the blocks, of a Chunk all that is
// in it. What is no frame ends the session, and the tape of this way with the header that failed.
type taping struct {
	mu      sync.Mutex // held over a write and the seeing of it, so that the tape has the order of the wire
	conn    *tape.Connection
	way     tape.Way
	payload bool

	at    uint64 // bytes seen
	stage stage
	left  int    // bytes of the stage
	skip  int    // bytes of a frame that do not go on the tape, after those that do
	lead  int    // bytes of the frame before the record in it
	head  []byte // of the frame, and of the record in it
}

// stage is a part of a frame.
type stage int

const (
	inFrame  stage = iota // its header
	inRecord              // the header of the record in it
	inKept                // what goes on the tape
	inSkip                // what does not
	astray                // this is no frame
)

func newTaping(c *tape.Connection, way tape.Way, payload bool) *taping {
	return &taping{conn: c, way: way, payload: payload, left: frameBytes}
}

// see takes what was sent or received next; it borrows p.
func (t *taping) see(p []byte) {
	for len(p) > 0 && t.stage != astray {
		n := min(len(p), t.left)
		if t.stage != inSkip {
			t.conn.Bytes(t.way, t.at, t.stage == inFrame && len(t.head) == 0, p[:n])
		}
		if t.stage == inFrame || t.stage == inRecord {
			t.head = append(t.head, p[:n]...)
		}
		t.at += uint64(n)
		t.left -= n
		p = p[n:]
		for t.left == 0 && t.stage != astray {
			t.turn()
		}
	}
}

// turn goes to the next stage; the one before is over.
func (t *taping) turn() {
	switch t.stage {
	case inFrame:
		kind, n, err := parseFrame(t.head)
		t.stage, t.left = inKept, n
		switch {
		case err != nil:
			t.stage = astray
		case t.payload:
		case kind == typeRecord, kind == typeOrdered:
			t.lead = 0
			if kind == typeOrdered {
				t.lead = min(n, orderedBytes)
			}
			t.stage, t.left, t.skip = inRecord, min(n, t.lead+record.HeaderBytes), n-t.lead
		case kind == typeChunk:
			t.stage = inSkip
		}
	case inRecord:
		h, err := record.ParseHeader(t.head[frameBytes+t.lead:])
		if err != nil || h.Size != t.skip {
			t.stage = astray
			return
		}
		t.stage, t.left, t.skip = inKept, h.TablesEnd()-record.HeaderBytes, h.Size-h.TablesEnd()
		if invariant.Planted("wire/tape-keeps-all") {
			t.left, t.skip = t.left+t.skip, 0
		}
	case inKept:
		t.stage, t.left, t.skip = inSkip, t.skip, 0
	case inSkip:
		t.stage, t.left, t.head = inFrame, frameBytes, t.head[:0]
	}
}

// taped puts the link on a tape, from its first frame on; a nil tape is none.
func (l *link) taped(to *tape.Tape, side tape.Side) {
	if to == nil {
		return
	}
	l.tape = to.Open(tape.Opened{
		Side: side, Peer: l.peer.String(), Here: l.socket.LocalAddr().String(), There: l.socket.RemoteAddr().String(),
	})
	l.out = newTaping(l.tape, tape.Sent, to.Payload())
	l.in = newTaping(l.tape, tape.Received, to.Payload())
}

// Read is that of TLS; what came goes on the tape.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if l.in != nil {
		l.in.mu.Lock()
		defer l.in.mu.Unlock()
		l.in.see(p[:n])
	}
	return n, err
}

// Write is that of TLS; what it took goes on the tape.
func (l *link) Write(p []byte) (int, error) {
	if l.out == nil {
		return l.Conn.Write(p)
	}
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	n, err := l.Conn.Write(p)
	l.out.see(p[:n])
	return n, err
}

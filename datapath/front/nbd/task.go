package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// task is one request on its way through a worker, which uses one task again and
// again.
type task struct {
	request
	code  uint32      // what is known to be wrong with it, before the device is asked
	err   error       // the device's own words for code
	write front.Write // filled, to be committed
	comes bool        // its header is in, and its payload is not whole yet

	// The answer, or what of it is still to be added.
	head    []byte
	payload []byte
	buf     *readBuf // payload's home

	extents extents

	parts [1][]byte    // payload, for a lane
	done  func(error)  // ends it, when a lane has carried it out; made once
	lane  atomic.Int32 // how far that is: laneStarts and so on
}

// A request with a lane.
const (
	laneHas    = iota // or it is with none
	laneStarts        // the call that starts it has not returned
	laneDone          // it ended before that: err says how
)

// home is who gets the payload back.
func (t *task) home() releaser {
	if t.buf == nil {
		return nil // not a nil *readBuf in an interface
	}
	return t.buf
}

// quick says whether it is small enough to be carried out at once.
func (t *task) quick() bool {
	return t.code != wireOK || (t.cmd == cmdRead || t.cmd == cmdWrite) && t.n <= quickBytes
}

// take reads the next request, with its payload. An error ends the connection, but for errLater: then
// take goes on with the same task where it stood.
func (c *conn) take(t *task) error {
	if !t.comes {
		if err := c.takeHeader(t); err != nil || t.cmd != cmdWrite {
			return err
		}
		c.expectPayload(t)
		t.comes = true
	}
	err := c.in.get()
	if err == errLater {
		return err
	}
	t.comes = false
	if err != nil && !invariant.Planted("nbd/leaked-write") {
		t.abort()
	}
	return err
}

func (c *conn) takeHeader(t *task) error {
	p, err := c.in.next(requestBytes)
	if err != nil {
		return err
	}
	r, err := parseRequest(p)
	if err != nil {
		return err
	}
	t.request, t.code, t.err, t.write, t.comes = r, 0, nil, nil, false
	t.head, t.payload, t.buf, t.parts[0] = t.head[:0], nil, nil, nil
	switch {
	case r.cmd == cmdDisconnect:
		return errDisconnect
	case r.cmd == cmdWrite && r.n > front.MaxWrite:
		return fmt.Errorf("write of %d bytes", r.n) // not worth the reading
	}
	t.code = r.check(c.size, c.readOnly, c.structured, c.allocation)
	if w, is := c.dev.(front.Watched); is && r.refusedChange(t.code) && !invariant.Planted("nbd/refusal-unsaid") {
		w.Refused(fmt.Errorf("%d bytes at %d: %w", r.n, r.off, &Error{Code: t.code}))
	}
	return nil
}

// expectPayload says where what follows a write's header belongs: into the device's buffers, or into
// nothing when the write is refused.
func (c *conn) expectPayload(t *task) {
	if t.code == wireOK && t.n > 0 {
		w, err := c.dev.BeginWrite(int64(t.off), int(t.n))
		if err == nil {
			t.write = w
			c.in.want(w.Buffers(), 0)
			return
		}
		t.code, t.err = wireError(err), err
		c.deviceErrors.Add(1)
	}
	c.in.want(nil, int(t.n))
}

// abort ends a write that is not to be carried out.
func (t *task) abort() {
	if t.write != nil {
		t.write.Abort()
		t.write = nil
	}
}

// carryOut does what the task asks and makes the answer, of which all but the last
// part may have been added to c.out already.
func (c *conn) carryOut(t *task) {
	if t.code == wireOK {
		begin := time.Now()
		c.judge(t, c.do(t))
		if t.quick() {
			// A mean over the last few; that others may lose an update does no harm.
			c.cost.Store((c.cost.Load()*7 + int64(time.Since(begin))) / 8)
		}
	}
	c.answer(t)
}

// judge notes what the device says of a task.
func (c *conn) judge(t *task, err error) {
	t.err = err
	if t.code = wireError(err); t.code != wireOK {
		c.deviceErrors.Add(1)
	}
}

// errNoProgress is a device's own fault.
var errNoProgress = errors.New("device tells of no extents")

func (c *conn) do(t *task) error {
	off, n, fua := int64(t.off), int64(t.n), t.flags&flagFUA != 0
	switch t.cmd {
	case cmdFlush:
		return c.dev.Flush()
	case cmdBlockStatus:
		return t.extents.ask(c.dev, off, n, t.flags&flagReqOne != 0)
	}
	if n == 0 {
		return nil
	}
	switch t.cmd {
	case cmdRead:
		return c.read(t)
	case cmdWrite:
		return t.write.Commit(fua && !invariant.Planted("nbd/lost-fua"))
	case cmdTrim:
		return c.dev.Trim(off, n, fua)
	default: // cmdWriteZeroes: check lets no other pass
		mayUnmap := t.flags&flagNoHole == 0 || invariant.Planted("nbd/unmapped-anyway")
		return c.dev.Zero(off, n, mayUnmap, fua)
	}
}

// read reads into a buffer of ours; a long structured one in pieces, of which the
// last is left for answer.
func (c *conn) read(t *task) error {
	n, piece := int(t.n), int(t.n)
	var gate chan struct{}
	if c.structured {
		piece = pieceBytes
	} else if n > pieceBytes {
		gate = c.big
		gate <- struct{}{}
	}
	for done := 0; ; {
		p := min(piece, n-done)
		t.buf = c.srv.bufs.get(p)
		t.buf.gate = gate
		t.payload = t.buf.all[:p]
		at := int64(t.off) + int64(done)
		if err := c.dev.ReadAt(t.payload, at); err != nil {
			t.dropPayload()
			return err
		}
		if done += p; done == n {
			return nil
		}
		t.head = appendDataChunk(t.head[:0], t.cookie, 0, at, p)
		c.out.add(t.head, t.payload, t.buf)
		c.out.flush()
	}
}

// dropPayload gives the buffer of a read back that is not answered with it.
func (t *task) dropPayload() {
	t.buf.release()
	t.buf, t.payload = nil, nil
}

func appendDataChunk(p []byte, cookie uint64, flags uint16, off int64, n int) []byte {
	p = appendChunk(p, cookie, flags, chunkData, 8+n)
	return binary.BigEndian.AppendUint64(p, uint64(off))
}

// answer makes the last part of the answer.
func (c *conn) answer(t *task) {
	t.head = t.head[:0]
	switch {
	case !c.structured || t.cmd != cmdRead && t.cmd != cmdBlockStatus:
		t.head = appendSimple(t.head, t.cookie, t.code)
	case t.code != wireOK:
		t.head = appendErrorChunk(t.head, t.cookie, t.code)
	case t.cmd == cmdBlockStatus:
		t.head = t.extents.appendTo(t.head, t.cookie)
	case len(t.payload) == 0:
		t.head = appendChunk(t.head, t.cookie, chunkDone, chunkNone, 0)
	default:
		end := int64(t.off) + int64(t.n)
		t.head = appendDataChunk(t.head, t.cookie, chunkDone, end-int64(len(t.payload)), len(t.payload))
	}
}

// extents gathers what a device tells of a range, neighbours of a kind as one.
type extents struct {
	max  int
	list []extent
	data int64                         // bytes told of that are no hole
	emit func(n int64, hole bool) bool // made once
}

type extent struct {
	n    int64
	hole bool
}

// ask fills the list with what stands in the range, or at the beginning of it.
func (e *extents) ask(dev front.Device, off, n int64, one bool) error {
	if e.emit == nil {
		e.emit = e.add
	}
	e.list, e.max, e.data = e.list[:0], maxExtents, 0
	if one {
		e.max = 1
	}
	if err := dev.Extents(off, n, e.emit); err != nil {
		return err
	}
	for i := range e.list { // a device must not tell of more than it was asked for
		e.list[i].n = min(e.list[i].n, n)
		if n -= e.list[i].n; n == 0 {
			e.list = e.list[:i+1]
			break
		}
	}
	if len(e.list) == 0 {
		return errNoProgress
	}
	return nil
}

func (e *extents) add(n int64, hole bool) bool {
	if n <= 0 {
		return true
	}
	if k := len(e.list); k > 0 && e.list[k-1].hole == hole {
		e.list[k-1].n += n
	} else if k == e.max {
		return false
	} else {
		e.list = append(e.list, extent{n, hole})
	}
	if !hole {
		e.data += n
	}
	return e.data < statusBytes || invariant.Planted("nbd/tells-of-all")
}

func (e *extents) appendTo(p []byte, cookie uint64) []byte {
	p = appendChunk(p, cookie, chunkDone, chunkBlockStatus, 4+8*len(e.list))
	p = binary.BigEndian.AppendUint32(p, contextID)
	for _, x := range e.list {
		p = binary.BigEndian.AppendUint32(p, uint32(x.n))
		state := uint32(0)
		if x.hole {
			state = stateHole | stateZero
		}
		p = binary.BigEndian.AppendUint32(p, state)
	}
	return p
}

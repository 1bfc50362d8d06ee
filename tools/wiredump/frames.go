package main

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// kindDamage is the kind of what is no frame: something that is missing or wrong.
const kindDamage = "damage"

// The kinds of what happened beside frames.
const (
	kindOpened = "opened"
	kindClosed = "closed"
	kindNote   = "note"
)

// frame is one line of the list.
type frame struct {
	Time       time.Time  `json:"time"`
	Connection uint32     `json:"connection,omitempty"`
	Link       string     `json:"link,omitempty"` // control, data, test; by its first frame
	Way        string     `json:"way,omitempty"`  // sent, received
	At         uint64     `json:"at"`             // of its header, among the bytes of its connection and way
	Kind       string     `json:"kind"`           // its name, or damage, opened, closed, note
	Bytes      int        `json:"bytes,omitempty"`
	Stream     string     `json:"stream,omitempty"`
	Group      string     `json:"group,omitempty"`
	Seq        record.Seq `json:"seq,omitempty"`
	Record     *recordOf  `json:"record,omitempty"`
	Text       string     `json:"text,omitempty"`
}

// recordOf is what a Record carries.
type recordOf struct {
	Kind        string    `json:"kind"`
	Epoch       uint32    `json:"epoch"`
	Incarnation uint32    `json:"incarnation"`
	Time        time.Time `json:"time"`
	First       uint64    `json:"first_ticket"`
	Last        uint64    `json:"last_ticket"`
	Extents     int       `json:"extents"`
	Zeros       int       `json:"zero_extents"`
	Blocks      int       `json:"blocks"`
	Codec       string    `json:"codec,omitempty"` // raw, lz4, mixed; none without blocks
	Raw         int64     `json:"raw_bytes"`
	Stored      int64     `json:"stored_bytes"`
	Ratio       float64   `json:"ratio,omitempty"` // of raw to stored
	Payload     string    `json:"payload"`         // none, verified, left out, damaged
	Detail      string    `json:"detail,omitempty"`
}

// frames takes one way of a connection apart, and tells what it finds.
type frames struct {
	line    frame // what all of them have
	tell    func(frame)
	payload bool // the tape holds what guests wrote

	want  uint64 // place of the byte that comes next
	begin uint64 // place of the frame under way
	p     []byte // of it, as far as it came
	need  int    // bytes of p that the next step needs
	name  string // of it, once its header was read
	size  int    // of its body
	lead  int    // bytes from the frame's beginning to the record in it, 0: there is none
	head  record.Header
	lost  bool // until a frame begins
}

func newFrames(line frame, payload bool, tell func(frame)) *frames {
	return &frames{line: line, tell: tell, payload: payload, need: wire.FrameHeaderBytes}
}

// take takes the bytes of an entry.
func (f *frames) take(e tape.Entry) {
	switch {
	case f.lost && !e.Begins:
		return
	case f.lost:
	case e.Offset > f.want:
		f.damage(e.Time, f.want, "%d bytes are missing on the tape", e.Offset-f.want)
	case e.Offset < f.want:
		f.damage(e.Time, e.Offset, "bytes stand on the tape twice")
	case e.Begins && len(f.p) > 0:
		f.damage(e.Time, f.begin, "a frame of which %d bytes are there, and another begins at %d", len(f.p), e.Offset)
	}
	if f.lost && !e.Begins {
		return
	}
	f.lost, f.want = false, e.Offset
	for p := e.Data; len(p) > 0 && !f.lost; {
		if len(f.p) == 0 {
			f.begin = f.want
		}
		n := min(len(p), f.need-len(f.p))
		f.p = append(f.p, p[:n]...)
		f.want += uint64(n)
		p = p[n:]
		for !f.lost && len(f.p) == f.need {
			f.step(e.Time)
		}
	}
}

// step goes on with a frame of which all that was needed has come.
func (f *frames) step(at time.Time) {
	var err error
	switch {
	case f.name == "":
		if f.name, f.size, err = wire.FrameHeader(f.p); err != nil {
			f.damage(at, f.begin, "%v", err)
			return
		}
		f.need += f.size
		if f.name == wire.FrameChunk && !f.payload {
			f.need = len(f.p)
			f.done(at, f.size)
		} else if f.name == wire.FrameRecord || f.name == wire.FrameOrdered {
			f.lead = wire.FrameHeaderBytes
			if f.name == wire.FrameOrdered {
				f.lead += wire.OrderedBytes
			}
			f.need = f.lead + record.HeaderBytes
		} else if f.size == 0 {
			f.done(at, 0)
		}
	case f.lead > 0 && f.head.Size == 0:
		if f.head, err = record.ParseHeader(f.p[f.lead:]); err == nil && f.lead-wire.FrameHeaderBytes+f.head.Size != f.size {
			err = fmt.Errorf("a record of %d bytes in a frame of %d", f.head.Size, f.size)
		}
		if err != nil {
			f.damage(at, f.begin, "record: %v", err)
			return
		}
		f.need = wire.FrameHeaderBytes + f.size
		if !f.payload {
			f.need = f.lead + f.head.TablesEnd()
		}
		if len(f.p) == f.need { // never: tables or a body follow
			f.done(at, f.head.Size-f.head.TablesEnd())
		}
	default:
		f.done(at, wire.FrameHeaderBytes+f.size-len(f.p))
	}
}

// done tells of a frame whose end is reached; so many bytes of it were left out.
func (f *frames) done(at time.Time, left int) {
	x := f.line
	x.Time, x.At, x.Kind, x.Bytes = at, f.begin, f.name, f.size
	if f.lead > 0 {
		f.record(&x)
	} else if left > 0 {
		x.Text = "left out"
	} else if e, err := wire.Explain(f.p); err != nil {
		x.Kind, x.Text = kindDamage, fmt.Sprintf("%s: %v", f.name, err)
	} else {
		x.Text, x.Seq = e.Text, e.Seq
		if e.Stream != 0 {
			x.Stream = e.Stream.String()
		}
		if e.Group != 0 {
			x.Group = e.Group.String()
		}
	}
	f.tell(x)
	f.reset()
	f.want += uint64(left)
}

// damage tells of something wrong; what comes is passed over until a frame begins.
func (f *frames) damage(at time.Time, place uint64, format string, args ...any) {
	x := f.line
	x.Time, x.At, x.Kind, x.Text = at, place, kindDamage, fmt.Sprintf(format, args...)
	f.tell(x)
	f.reset()
	f.lost = true
}

func (f *frames) reset() {
	f.p, f.name, f.need, f.head = f.p[:0], "", wire.FrameHeaderBytes, record.Header{}
	f.lead = 0
}

// end tells of a frame that the end of the connection, or of the tape, cut off.
func (f *frames) end(at time.Time) {
	if len(f.p) > 0 && !f.lost {
		x := f.line
		x.Time, x.At, x.Kind, x.Text = at, f.begin, kindNote, fmt.Sprintf("%s: only %d bytes of it", or(f.name, "a frame"), len(f.p))
		f.tell(x)
	}
	f.reset()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// record says what there is to say of a Record.
func (f *frames) record(x *frame) {
	p, h := f.p[f.lead:], f.head
	x.Stream, x.Seq = h.Stream.String(), h.Seq
	x.Record = &recordOf{
		Kind: h.Kind.String(), Epoch: uint32(h.Epoch), Incarnation: uint32(h.Incarnation), Time: time.Unix(0, int64(h.Time)).UTC(),
		First: uint64(h.First), Last: uint64(h.Last), Extents: h.Extents, Blocks: h.Blocks, Raw: h.Raw, Stored: h.Stored, Payload: "none",
	}
	r, err := record.ParseTables(h, p)
	if err != nil {
		x.Kind, x.Text = kindDamage, fmt.Sprintf("record: %v", err)
		return
	}
	x.Record.tables(r)
	switch {
	case h.Stored == 0:
	case !f.payload:
		x.Record.Payload = "left out"
	default:
		x.Record.Payload = "verified"
		if err := r.VerifyPayload(); err != nil {
			x.Record.Payload = "damaged"
			x.Kind, x.Text = kindDamage, fmt.Sprintf("record: %v", err)
		}
	}
}

// tables adds what the tables and the body say.
func (x *recordOf) tables(r record.Record) {
	codecs := make(map[record.Codec]int)
	for i := range r.Blocks {
		codecs[r.Block(i).Codec]++
	}
	switch {
	case r.Blocks == 0:
	case codecs[record.CodecRaw] == r.Blocks:
		x.Codec = "raw"
	case codecs[record.CodecLZ4] == r.Blocks:
		x.Codec = "lz4"
	default:
		x.Codec = fmt.Sprintf("mixed: %d of %d blocks lz4", codecs[record.CodecLZ4], r.Blocks)
	}
	if r.Stored > 0 {
		x.Ratio = float64(r.Raw) / float64(r.Stored)
	}
	for i := range r.Extents {
		if r.Extent(i).Kind == record.ExtentZero {
			x.Zeros++
		}
	}
	switch r.Kind {
	case record.KindCut:
		if c, err := record.ParseCut(r); err == nil {
			x.Detail = fmt.Sprintf("checkpoint %d %q", c.Checkpoint, c.Tag)
		}
	case record.KindConfirm:
		if n, err := record.ParseConfirm(r); err == nil {
			x.Detail = fmt.Sprintf("checkpoint %d", n)
		}
	case record.KindResyncOpen, record.KindResyncClose:
		if o, err := record.ParseResync(r); err == nil {
			x.Detail = fmt.Sprintf("initial %v %q", o.Initial, o.Reason)
		}
	case record.KindResize:
		if o, err := record.ParseResize(r); err == nil {
			x.Detail = fmt.Sprintf("volume %d to %d bytes", o.ID, o.Bytes)
		}
	}
}

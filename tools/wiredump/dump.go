package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/tape"
)

// maxConnections bounds what a damaged tape can make of our memory: connections that are
// open at once.
const maxConnections = 4096

// lateConnections is how many connections that were closed are still listened to: bytes
// that passed in the same moment come after.
const lateConnections = 64

// connection is one on the tape.
type connection struct {
	link string // control, data, test; empty until its first frame
	ways [3]*frames
}

// printer writes the lines, and counts.
type printer struct {
	options
	out     *bufio.Writer
	encode  *json.Encoder
	shown   int
	damaged int
	err     error // of writing
}

// dump lists the tape that in holds.
func dump(ctx context.Context, in io.Reader, out, log io.Writer, o options) error {
	r, err := tape.NewReader(in)
	switch {
	case errors.Is(err, tape.ErrFormat):
		return fmt.Errorf("%w: make one with vra --debug-tape", err)
	case errors.Is(err, tape.ErrVersion):
		return fmt.Errorf("%w: use the wiredump of the release that wrote it", err)
	case err != nil:
		return err
	}
	p := &printer{options: o, out: bufio.NewWriterSize(out, 64<<10)}
	p.encode = json.NewEncoder(p.out)
	reading := list(ctx, r, p)
	if err := p.out.Flush(); p.err == nil {
		p.err = err
	}
	if err := errors.Join(reading, p.err); err != nil {
		return err
	}
	if p.damaged > 0 {
		return fmt.Errorf("%d places are damaged or missing: see the lines of kind %s", p.damaged, kindDamage)
	}
	return nil
}

var errEnough = errors.New("enough")

// list reads the tape to its end, or as far as it is to be shown.
func list(ctx context.Context, r *tape.Reader, p *printer) error {
	open := make(map[uint32]*connection)
	var closed []uint32 // of open, the last ones
	last := r.Header().Began
	note := func(kind, format string, args ...any) {
		p.print(frame{Time: last, Kind: kind, Text: fmt.Sprintf(format, args...)})
	}
	for p.err == nil && ctx.Err() == nil {
		e, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			for _, c := range open {
				c.end(last)
			}
			return nil
		case errors.Is(err, tape.ErrCut):
			note(kindNote, "%v: vra was killed, or is writing it", err)
			continue
		case errors.Is(err, tape.ErrDamaged):
			note(kindDamage, "the tape itself: %v", err)
			continue
		case err != nil:
			return err
		}
		last = e.Time
		switch e.Type {
		case tape.Lost:
			note(kindDamage, "the tape could not take %d bytes in time", e.Offset)
		case tape.Full:
			note(kindNote, "the tape reached its limit")
		case tape.Open:
			if len(open) == maxConnections {
				return fmt.Errorf("at %d: more than %d connections are open at once: this is no tape of vra", r.At(), maxConnections)
			}
			if c := open[e.Connection]; c != nil {
				c.end(last)
			}
			open[e.Connection] = p.connection(e.Connection, r.Header().Payload)
			p.print(frame{Time: last, Connection: e.Connection, Kind: kindOpened,
				Text: fmt.Sprintf("%v, peer %s, %s here, %s there", e.Opened.Side, e.Opened.Peer, e.Opened.Here, e.Opened.There)})
		default:
			c := open[e.Connection]
			if c == nil {
				note(kindDamage, "connection %d was never opened, or that is missing", e.Connection)
				continue
			}
			if e.Type == tape.Bytes {
				c.ways[e.Way].take(e)
				continue
			}
			p.print(frame{Time: last, Connection: e.Connection, Link: c.link, Kind: kindClosed})
			if closed = append(closed, e.Connection); len(closed) > lateConnections {
				if c := open[closed[0]]; c != nil {
					c.end(last)
					delete(open, closed[0])
				}
				closed = closed[1:]
			}
		}
	}
	if errors.Is(p.err, errEnough) {
		p.err = nil
	}
	return ctx.Err()
}

// connection makes a connection whose frames are printed.
func (p *printer) connection(number uint32, payload bool) *connection {
	c := new(connection)
	for _, way := range []tape.Way{tape.Sent, tape.Received} {
		c.ways[way] = newFrames(frame{Connection: number, Way: way.String()}, payload, func(x frame) {
			if c.link == "" {
				c.link = linkOf(x.Kind)
			}
			x.Link = c.link
			p.print(x)
		})
	}
	return c
}

func (c *connection) end(at time.Time) {
	for _, way := range []tape.Way{tape.Sent, tape.Received} {
		c.ways[way].end(at)
	}
}

// linkOf is what a connection is whose first frame has this name.
func linkOf(name string) string {
	switch name {
	case "Hello", "Welcome":
		return "control"
	case "Join", "Joined", "Attach":
		return "data"
	case "Test":
		return "test"
	}
	return ""
}

// print writes a line if it is asked for.
func (p *printer) print(x frame) {
	if p.err != nil {
		return
	}
	if x.Kind == kindDamage {
		p.damaged++
	}
	record := p.kind == wire.FrameRecord && x.Record != nil // an Ordered is one too
	if p.kind != "" && x.Kind != p.kind && !record || p.stream != "" && x.Stream != p.stream {
		return
	}
	x.Time = x.Time.UTC()
	if p.json {
		p.err = p.encode.Encode(x)
	} else {
		_, p.err = fmt.Fprintln(p.out, x.text())
	}
	if p.shown++; p.err == nil && p.shown == p.count {
		p.err = errEnough
	}
}

// text is the line for people.
func (x frame) text() string {
	s := x.Time.Format("15:04:05.000000")
	if x.Connection > 0 {
		s += fmt.Sprintf("  %d %-7s", x.Connection, or(x.Link, "-"))
	}
	if x.Way != "" {
		s += fmt.Sprintf(" %s %10d", map[string]string{tape.Sent.String(): ">", tape.Received.String(): "<"}[x.Way], x.At)
	}
	s += "  " + x.Kind
	if x.Bytes > 0 {
		s += fmt.Sprintf(" %d", x.Bytes)
	}
	if r := x.Record; r != nil {
		s += fmt.Sprintf("  %s/%d/%d/%d %s", x.Stream, r.Epoch, r.Incarnation, x.Seq, r.Kind)
		if r.Extents > 0 {
			s += fmt.Sprintf(", tickets %d-%d, %d extents (%d zero)", r.First, r.Last, r.Extents, r.Zeros)
		}
		if r.Blocks > 0 {
			s += fmt.Sprintf(", %d blocks %s, %d to %d bytes (%.2f), %s", r.Blocks, r.Codec, r.Raw, r.Stored, r.Ratio, r.Payload)
		}
		if r.Detail != "" {
			s += ", " + r.Detail
		}
	} else {
		if x.Stream != "" {
			s += "  stream " + x.Stream
		}
		if x.Group != "" {
			s += "  group " + x.Group
		}
		if x.Seq > 0 {
			s += fmt.Sprintf("  seq %d", x.Seq)
		}
	}
	if x.Text != "" {
		s += "  " + x.Text
	}
	return s
}

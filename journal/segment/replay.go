package segment

import (
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ReplayOptions has a useful zero.
type ReplayOptions struct {
	// ControlOnly leaves out the records that carry writes, data and folded, and reads
	// none of them in a verified segment.
	ControlOnly bool
	// Skipped is told, in its place among the others, of each record that ControlOnly left
	// out; nil: nobody is.
	Skipped func(record.StreamID, record.Seq)
}

// Replay calls each with every record in [from, to) in order, with tables and body and
// without payload, borrowed until each returns. An error of each ends it. from and to
// are places that Durable returned, or a segment's edges: others work, and may cost a
// segment's reading. What was dropped, or is not durable, is ErrRange. It may be called
// beside appends, and by many.
//
// A verified segment is read by its footer, many records at once; of another one the
// headers lead on from record to record. Large records cost a page or two each, small
// ones the reading of their bytes in large parts.
func (l *Log) Replay(from, to Pos, o ReplayOptions, each func(Pos, record.Record) error) error {
	segs, err := l.span(from, to)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range segs {
			l.unpin(s)
		}
	}()
	p := &replayer{from: from, to: to, o: o, each: each}
	for i, k := range l.known(segs) {
		file, err := l.openSegment(segs[i], ioengine.ReadOnly)
		if err == nil {
			err = l.replaySegment(p, k, file)
		}
		if err != nil {
			return fmt.Errorf("segment %d: %w", k.Number, err)
		}
	}
	return nil
}

// span returns the segments that hold [from, to), pinned.
func (l *Log) span(from, to Pos) (segs []*segment, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.mu.closed:
		return nil, ErrClosed
	case from > to || from < l.mu.segs[0].First || to > l.durableLocked():
		return nil, fmt.Errorf("%w: from %s to %s", ErrRange, from, to)
	}
	for _, s := range l.mu.segs {
		if s.First < to && s.limit() > from {
			s.pins.Add(1)
			l.busy.Add(1)
			segs = append(segs, s)
		}
	}
	return segs, nil
}

// known copies what is known of the segments now.
func (l *Log) known(segs []*segment) []*segment {
	l.mu.RLock()
	defer l.mu.RUnlock()
	now := make([]*segment, len(segs))
	for i, s := range segs {
		now[i] = &segment{header: s.header, end: s.end, chain: s.chain, entries: s.entries, state: s.state, restored: s.restored, edition: s.edition}
	}
	return now
}

// replay is Replay while the log is opened.
func (l *Log) replay(segs []*segment, from, to Pos, o ReplayOptions, each func(Pos, record.Record) error) error {
	p := &replayer{from: from, to: to, o: o, each: each}
	for _, s := range segs {
		file, err := l.fs.Open(l.path(s.Number), ioengine.ReadOnly|ioengine.Direct)
		if err == nil {
			err = l.replaySegment(p, s, file)
		}
		if err != nil {
			return fmt.Errorf("segment %d: %w", s.Number, err)
		}
	}
	return nil
}

// LostRecord is the error of Replay about one record that is damaged, when a footer says
// what it was: Replay goes on from To.
type LostRecord struct {
	Pos, To Pos
	Kind    record.Kind
	Stream  record.StreamID
	Seq     record.Seq
	Err     error // ErrCorrupt, or of the disk
}

func (e *LostRecord) Error() string { return e.Err.Error() }
func (e *LostRecord) Unwrap() error { return e.Err }

func lost(e entry, err error) error {
	if !errors.Is(err, ErrCorrupt) {
		return err
	}
	return &LostRecord{e.Pos, e.Pos + Pos(e.Size), e.Kind, e.Stream, e.Seq, err}
}

// replayer is one call of Replay.
type replayer struct {
	from, to Pos
	o        ReplayOptions
	each     func(Pos, record.Record) error
	left     []entry // out of what is delivered, and to be told of in its place
}

// replaySegment takes the file of s.
func (l *Log) replaySegment(p *replayer, s *segment, file ioengine.File) error {
	defer file.Close() // only read
	if l.isClosed() {
		return ErrClosed
	}
	sc, err := scannerOf(file, s)
	if err != nil {
		return asCorrupt(err)
	}
	if s.state == StateClosed || s.state == StateOpen {
		return p.walk(sc, s)
	}
	entries, err := sc.footer(s) // it says itself whether it is whole, also in a segment that is not
	if errors.Is(err, ErrCorrupt) {
		l.opt.Log.Warn("footer is damaged: the segment is read without", "segment", s.Number, "err", err)
		return p.walk(sc, s)
	}
	if err != nil {
		return err
	}
	return p.table(sc, entries)
}

// walk reads the rounds from header to header.
func (p *replayer) walk(sc *scanner, s *segment) error {
	if p.o.ControlOnly {
		sc.want = wantControl
	}
	pos, chain := s.First, s.Chain
	if p.from > s.First {
		c, ok, err := sc.chainAt(p.from)
		if err != nil {
			return err
		}
		if ok {
			pos, chain = p.from, c
		}
	}
	var r round
	for pos < min(p.to, s.end) {
		err := sc.round(&r, pos, chain)
		if torn := (*errTorn)(nil); errors.As(err, &torn) && invariant.Planted("journal/segment/damage-is-end") {
			return nil
		}
		if err != nil && !sc.wholeWithout(&r, s, err) {
			return asCorrupt(err)
		}
		p.leaveOut(r.entries)
		for i, rec := range r.records {
			if err := p.deliver(r.places[i], rec); err != nil {
				return err
			}
		}
		p.tellUpTo(r.end)
		pos, chain = r.end, r.chain
	}
	if pos > s.end || pos == s.end && chain != s.chain {
		return corrupt("other records than were written")
	}
	return nil
}

// wholeWithout says whether a round is whole but for its commit, or the zeros before that:
// the rest of the segment follows from its records. It spoils nothing that r holds.
func (sc *scanner) wholeWithout(r *round, s *segment, why error) bool {
	if torn := (*errTorn)(nil); !errors.As(why, &torn) || r.end == 0 || len(r.entries) == 0 || r.end > s.end || sc.unchained ||
		invariant.Planted("journal/segment/commit-is-all") {
		return false
	}
	if r.end == s.end {
		return r.chain == s.chain
	}
	x := &scanner{header: sc.header, restored: sc.restored, file: sc.file, size: sc.size, want: wantHeaders, pace: sc.pace}
	var next round
	return x.round(&next, r.end, r.chain) == nil
}

func (p *replayer) deliver(pos Pos, rec record.Record) error {
	if pos < p.from || pos >= p.to || p.o.ControlOnly && !isControl(rec.Kind) {
		return nil
	}
	p.tellUpTo(pos)
	if err := p.each(pos, rec); err != nil {
		return fmt.Errorf("record at %s: %w", pos, err)
	}
	return nil
}

// leaveOut takes the entries of records some of which are left out, for whom that is to
// be told.
func (p *replayer) leaveOut(entries []entry) {
	if p.o.Skipped == nil || !p.o.ControlOnly {
		return
	}
	for _, e := range entries {
		if e.Pos >= p.from && e.Pos < p.to && !isControl(e.Kind) {
			p.left = append(p.left, e)
		}
	}
}

// tellUpTo tells of what was left out below the place.
func (p *replayer) tellUpTo(pos Pos) {
	n := 0
	for ; n < len(p.left) && p.left[n].Pos < pos; n++ {
		p.o.Skipped(p.left[n].Stream, p.left[n].Seq)
	}
	if p.left = p.left[n:]; len(p.left) == 0 {
		p.left = nil
	}
}

// table reads the records that the footer lists.
func (p *replayer) table(sc *scanner, entries []entry) error {
	p.leaveOut(entries)
	wanted := entries[:0]
	for _, e := range entries {
		if e.Pos >= p.from && e.Pos < p.to && (!p.o.ControlOnly || isControl(e.Kind)) {
			wanted = append(wanted, e)
		}
	}
	if n := len(wanted); n > 0 && invariant.Planted("journal/segment/replay-short") {
		wanted = wanted[:n-1]
	}
	parts := divide(sc.First, wanted)
	ahead := 1 // few parts are read in order
	if len(parts) >= readAhead {
		ahead = readAhead
	}
	started := 0
	defer func() {
		for _, x := range parts[:started] {
			<-x.done
		}
	}()
	for i, x := range parts {
		for ; started < min(i+ahead, len(parts)); started++ {
			parts[started].start(sc.file, ahead > 1)
		}
		<-x.done
		if err := p.deliverPart(sc, x); err != nil {
			return err
		}
		x.mem = nil
	}
	p.tellUpTo(p.to)
	return nil
}

// deliverPart gives on the records of a part that was read.
func (p *replayer) deliverPart(sc *scanner, x *part) error {
	if x.err != nil {
		return x.err
	}
	for _, e := range x.entries {
		rec, err := sc.tablesIn(x, e)
		if err != nil {
			return lost(e, asCorrupt(sc.amiss(e.Pos, err)))
		}
		if err := p.deliver(e.Pos, rec); err != nil {
			return err
		}
	}
	return nil
}

// tablesIn parses the record of e: out of the part where that holds all its tables, else
// by another read.
func (sc *scanner) tablesIn(x *part, e entry) (record.Record, error) {
	q := x.mem[offset(sc.First, e.Pos)-x.off:]
	h, err := record.ParseHeader(q)
	if err != nil {
		return record.Record{}, err
	}
	if entryOf(e.Pos, h) != e {
		return record.Record{}, corrupt("another record")
	}
	n := h.TablesEnd()
	if n > len(q) {
		if q, err = sc.bytes(offset(sc.First, e.Pos), n); err != nil {
			return record.Record{}, err
		}
	}
	return record.ParseTables(h, q[:min(n, len(q))])
}

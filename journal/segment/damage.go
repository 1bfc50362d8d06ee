package segment

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Damage is a part of the log that cannot be read back as it was written: a record's
// block as it is stored, or all of a record whose tables are not whole.
type Damage struct {
	From, To Pos
	Err      error // ErrCorrupt or record.ErrCorrupt; else the disk did not give the bytes
}

// locate finds the damage in a segment that does not verify. What lies between the
// records is in none of it: no checkpoint needs that.
func (l *Log) locate(sc *scanner, s *segment) (found []Damage) {
	sc.header = s.header // whatever the file says now
	entries := s.entries
	if entries == nil {
		var err error
		if entries, err = sc.footer(s); err != nil {
			entries, found = sc.list(s)
		}
	}
	for _, e := range entries {
		if l.isClosed() {
			return nil
		}
		if _, err := sc.whole(e); err != nil {
			found = append(found, sc.damageIn(e)...)
		}
	}
	slices.SortFunc(found, func(a, b Damage) int { return cmp.Compare(a.From, b.From) })
	return found
}

// list finds the records of a segment of which no table is known. Where it cannot
// read on from record to record it goes on at the next round, and what it passes
// over is damage.
func (sc *scanner) list(s *segment) (entries []entry, passed []Damage) {
	sc.want, sc.unchained = wantHeaders, true
	var r round
	for pos := s.First; pos < s.end; {
		err := sc.round(&r, pos, 0)
		entries = append(entries, r.entries...)
		if err == nil {
			pos = r.end
			continue
		}
		at := pos
		if n := len(r.entries); n > 0 {
			at = r.entries[n-1].Pos + Pos(r.entries[n-1].Size)
		}
		to, next := s.end, s.end
		if c, ok, _ := sc.following(at, s.end, pos); ok && c.Durable == pos {
			to, next = c.Records, c.End
		} else if ok {
			to, next = c.Durable, c.Durable
		}
		if at < to && commitEnd(at) != to { // else it is the commit alone
			passed = append(passed, Damage{at, to, asCorrupt(err)})
		}
		pos = next
	}
	return entries, passed
}

// damageIn finds the damaged blocks of one record, each read by itself so that a
// sector that cannot be read is no other block's fault.
func (sc *scanner) damageIn(e entry) (found []Damage) {
	all := func(err error) []Damage { return []Damage{{e.Pos, e.Pos + Pos(e.Size), asCorrupt(err)}} }
	head, err := sc.read(e.Pos, record.HeaderBytes)
	if err != nil {
		return all(err)
	}
	h, err := record.ParseHeader(head)
	if err != nil {
		return all(sc.amiss(e.Pos, err))
	}
	if entryOf(e.Pos, h) != e || invariant.Planted("journal/segment/blame-record") {
		return all(corrupt("another record"))
	}
	tables, err := sc.read(e.Pos, h.TablesEnd())
	if err != nil {
		return all(err)
	}
	r, err := record.ParseTables(h, bytes.Clone(tables))
	if err != nil {
		return all(sc.amiss(e.Pos, err))
	}
	raw := make([]byte, 0, record.LineBytes)
	for i := range h.Blocks {
		b := r.Block(i)
		from := e.Pos + Pos(b.At)
		stored, err := sc.read(from, b.Stored)
		if err == nil {
			_, err = record.OpenStored(raw, h.Identity, i, b, stored)
		}
		if err != nil {
			found = append(found, Damage{from, from + Pos(b.Stored), fmt.Errorf("record %s: block %d: %w", h.Identity, i, err)})
		}
	}
	return found
}

// read reads n bytes at pos and, but for whole pages, nothing else.
func (sc *scanner) read(pos Pos, n int) ([]byte, error) {
	off := offset(sc.First, pos)
	begin := off &^ (pageBytes - 1)
	p := buf.Aligned(buf.RoundUp(int(off-begin) + n))
	got, err := sc.file.ReadAt(p, begin)
	if int64(got) >= off-begin+int64(n) {
		return p[off-begin:][:n], nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = corrupt("the file ends")
	}
	return nil, err
}

package segment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// seal has a closed segment read back and given its footer, beside the appends. A
// failure concerns this one segment and is told by Segments, and what in it is damaged
// by Options.Damaged. What it holds was durable without a footer: one that cannot be
// written, on a full disk for one, is written after the next Open. A segment that is dropped
// before its turn, or meanwhile, is not read on, and its file is used again.
func (l *Log) seal(s *segment) {
	if !l.enter() {
		return
	}
	done := func() {
		defer l.busy.Done()
		s.sealing.Store(true)
		defer l.sealed(s)
		if l.pin(s) != nil {
			return
		}
		defer l.unpin(s)
		k := l.known([]*segment{s})[0]
		damage, err := l.sealNow(s, k)
		state := StateBad
		switch {
		case errors.Is(err, ErrClosed), l.left(s):
			return
		case err == nil:
			state = StateVerified
		case errors.Is(err, errFooter):
			state = StateClosed
			l.opt.Log.Warn("segment has no footer yet", "segment", s.Number, "err", err)
		default:
			l.opt.Log.Error("segment not verified", "segment", s.Number, "damaged", len(damage), "err", err)
		}
		l.mu.Lock()
		if s.edition != k.edition {
			l.mu.Unlock()
			return // the file that was read is not there any more
		}
		s.state, s.err = state, nil
		if state == StateBad {
			s.err = err
		} else {
			s.entries = nil
		}
		l.mu.Unlock()
		if len(damage) > 0 && l.opt.Damaged != nil {
			l.opt.Damaged(damage)
		}
		if state == StateVerified && l.opt.Verified != nil {
			l.files.forget(s.Life) // what was open of it could write: from now on it is read
			l.opt.Verified(l.fileInfo(s))
		}
		if state == StateVerified && l.opt.ReadBack != nil {
			l.opt.ReadBack(l.fileInfo(s))
		}
	}
	if l.opt.Go == nil {
		go done()
		return
	}
	l.opt.Go(done)
}

// enter begins work that Close waits for, until busy.Done; false: the log is closed.
func (l *Log) enter() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return false
	}
	l.busy.Add(1)
	return true
}

// sealed says that the file is read back no more, and discards it if it was dropped meanwhile.
func (l *Log) sealed(s *segment) {
	s.sealing.Store(false)
	if !l.left(s) || l.isClosed() {
		return
	}
	l.upkeep.Lock()
	defer l.upkeep.Unlock()
	if err := l.discard(); err != nil { // the next Drop finishes it
		l.opt.Log.Warn("dropped segments still have files", "err", err)
	}
}

// errFooter says that a segment is well and its footer could not be written.
var errFooter = errors.New("footer")

// sealNow returns why the segment is not sealed, and what of it is damaged.
func (l *Log) sealNow(s, k *segment) ([]Damage, error) {
	file, err := l.openSegment(s, 0)
	if errors.Is(err, ErrCorrupt) {
		return []Damage{{k.First, k.end, err}}, err
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() // what is not synced of it by now is not wanted
	sc, err := openScanner(file)
	if sc == nil {
		return nil, err
	}
	sc.pace = func(bytes int) error {
		if l.opt.Pace != nil {
			if err := l.opt.Pace(bytes); err != nil {
				return err
			}
		}
		if l.left(s) && !invariant.Planted("journal/segment/seal-what-is-gone") {
			return errGone
		}
		return nil
	}
	var entries []entry
	if err == nil {
		entries, err = l.verify(sc, k)
	}
	if errors.Is(err, ErrClosed) || errors.Is(err, errGone) {
		return nil, err
	}
	if err != nil {
		return l.locate(sc, k), err
	}
	l.mu.Lock()
	s.records = len(entries)
	l.mu.Unlock()
	if err := writeFooter(file, k, entries); err != nil {
		return nil, fmt.Errorf("%w: %w", errFooter, err)
	}
	return nil, nil
}

// verify reads the segment past the page cache where that can be, checks every record
// with its payload, every commit and the chain, and returns the table of the records.
func (l *Log) verify(sc *scanner, s *segment) (entries []entry, err error) {
	if sc.header != s.header {
		return nil, corrupt("header: it changed")
	}
	sc.want = wantWhole
	if invariant.Planted("journal/segment/seal-unread") {
		sc.want = wantHeaders
	}
	r, chain := round{}, s.Chain
	for pos := s.First; pos < s.end; pos, chain = r.end, r.chain {
		if l.isClosed() {
			return nil, ErrClosed
		}
		if err := sc.round(&r, pos, chain); err != nil {
			return nil, asCorrupt(err)
		}
		if r.end > s.end {
			return nil, corrupt("more records than were written")
		}
		entries = append(entries, r.entries...)
	}
	if chain != s.chain || s.entries != nil && !slices.Equal(entries, s.entries) {
		return nil, corrupt("other records than were written")
	}
	return entries, nil
}

func (l *Log) isClosed() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.closed
}

// writeFooter puts the footer after the last round, ends the file with it, and
// reads it back.
func writeFooter(file ioengine.File, s *segment, entries []entry) error {
	f := footer{Life: s.Life, First: s.First, End: s.end, Chain: s.chain, Entries: entries}
	p := buf.Aligned(footerBytes(len(f.Entries)))
	f.put(p)
	off := offset(s.First, s.end)
	if _, err := file.WriteAt(p, off); err != nil {
		return err
	}
	if err := file.Truncate(off + int64(len(p))); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	clear(p)
	if err := readFull(file, p, off); err != nil {
		return err
	}
	_, err := parseFooter(p)
	return err
}

// lastPage reads the trailer at the end of the file. It is nil where that is none of this
// life: torn by a crash, or of an earlier use of the file.
func (sc *scanner) lastPage() (*trailer, error) {
	if sc.size < 2*pageBytes {
		return nil, nil
	}
	p, err := sc.bytes(sc.size-trailerBytes, trailerBytes)
	if err != nil {
		return nil, err
	}
	t, err := parseTrailer(p)
	if errors.Is(err, ErrVersion) && le.Uint64(p[atTrailerLife:]) == sc.Life {
		return nil, fmt.Errorf("at the end of the file: %w", err)
	}
	if err != nil || t.Life != sc.Life || sc.size != offset(t.First, t.End)+int64(footerBytes(t.count)) {
		return nil, nil
	}
	return &t, nil
}

// footer reads the table of the records of a verified segment.
func (sc *scanner) footer(s *segment) ([]entry, error) {
	t, err := sc.lastPage()
	if err != nil {
		return nil, err
	}
	if t == nil || t.First != s.First || t.End != s.end || t.Chain != s.chain {
		return nil, corrupt("footer: it is gone")
	}
	n := footerBytes(t.count)
	p, err := sc.bytes(sc.size-int64(n), n)
	if err != nil {
		return nil, err
	}
	f, err := parseFooter(p)
	if err != nil {
		return nil, err
	}
	chain := s.Chain
	for _, e := range f.Entries {
		chain = chainNext(chain, record.Header{Checksum: e.Sum})
	}
	if chain != s.chain {
		return nil, corrupt("footer: of other records")
	}
	return f.Entries, nil
}

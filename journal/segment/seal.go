package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// seal has a closed segment read back and given its footer, beside the appends. A
// failure concerns this one segment and is told by Segments, and what in it is damaged
// by Options.Damaged. What it holds was durable without a footer: one that cannot be
// written, on a full disk for one, is written after the next Open.
func (l *Log) seal(s *segment) {
	work := func() {
		damage, err := l.sealNow(s)
		state := StateBad
		switch {
		case errors.Is(err, ErrClosed):
			return
		case err == nil:
			state = StateVerified
		case errors.Is(err, errFooter):
			state = StateClosed
			l.opt.Log.Warn("segment has no footer yet", "group", l.group, "segment", s.Number, "err", err)
		default:
			l.opt.Log.Error("segment not verified", "group", l.group, "segment", s.Number, "damaged", len(damage), "err", err)
		}
		l.mu.Lock()
		s.state = state
		if state == StateBad {
			s.err = err
		} else {
			s.entries = nil
		}
		l.mu.Unlock()
		if len(damage) > 0 && l.opt.Damaged != nil {
			l.opt.Damaged(damage)
		}
	}
	if l.opt.Go == nil {
		l.sealing.Go(work)
		return
	}
	l.sealing.Add(1)
	l.opt.Go(func() {
		defer l.sealing.Done()
		work()
	})
}

// errFooter says that a segment is well and its footer could not be written.
var errFooter = errors.New("footer")

// sealNow returns why the segment is not sealed, and what of it is damaged.
func (l *Log) sealNow(s *segment) ([]Damage, error) {
	file, err := l.fs.Open(path.Join(l.dir, fileName(s.Number)), ioengine.Direct)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		return []Damage{{s.First, s.end, err}}, err
	}
	if err != nil {
		return nil, err
	}
	defer file.Close() // what is not synced of it by now is not wanted
	sc, err := openScanner(file)
	if err == nil {
		err = l.verify(sc, s)
	}
	if errors.Is(err, ErrClosed) || sc == nil {
		return nil, err
	}
	if err != nil {
		return l.locate(sc, s), err
	}
	if err := writeFooter(file, s); err != nil {
		return nil, fmt.Errorf("%w: %w", errFooter, err)
	}
	return nil, nil
}

// verify reads the segment past the page cache where that can be, and checks every
// record with its payload, every commit and the chain.
func (l *Log) verify(sc *scanner, s *segment) error {
	if sc.header != s.header {
		return corrupt("header: it changed")
	}
	var r round
	done := 0
	for pos, chain := s.First, s.Chain; pos < s.end; pos, chain = r.end, r.chain {
		if l.isClosed() {
			return ErrClosed
		}
		if err := sc.round(&r, pos, chain); err != nil {
			return asCorrupt(err)
		}
		if done+len(r.entries) > len(s.entries) {
			return corrupt("more records than were written")
		}
		for _, e := range s.entries[done : done+len(r.entries)] {
			if _, err := sc.whole(e); err != nil && !invariant.Planted("journal/segment/seal-unread") {
				return asCorrupt(err)
			}
		}
		done += len(r.entries)
	}
	if (done != len(s.entries) || r.end != s.end || r.chain != s.chain) && s.end != s.First {
		return corrupt("other records than were written")
	}
	return nil
}

func (l *Log) isClosed() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.closed
}

// writeFooter puts the footer after the last round, ends the file with it, and
// reads it back.
func writeFooter(file ioengine.File, s *segment) error {
	f := footer{Life: s.Life, First: s.First, End: s.end, Chain: s.chain, Entries: s.entries}
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

// hasFooter says whether the file ends in the footer of s, which was read whole.
func (sc *scanner) hasFooter(s *segment) (bool, error) {
	off := offset(s.First, s.end)
	n := footerBytes(len(s.entries))
	if sc.size != off+int64(n) {
		return false, nil
	}
	p, err := sc.bytes(off, n)
	if err != nil {
		return false, err
	}
	f, err := parseFooter(p)
	if errors.Is(err, ErrVersion) {
		return false, fmt.Errorf("at %s: %w", s.end, err)
	}
	if err != nil {
		return false, nil // torn by a crash: it is written again
	}
	same := f.Life == s.Life && f.First == s.First && f.End == s.end && f.Chain == s.chain && len(f.Entries) == len(s.entries)
	for i := range f.Entries {
		same = same && f.Entries[i] == s.entries[i]
	}
	return same, nil
}

package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Open opens the group's log in dir, which it makes when absent (the caller has its
// parent). It calls each, if not nil, with every record in order; the record has its
// tables and body and no payload, and is borrowed until each returns. An error of
// each ends Open. A tail that was never acknowledged is cut; anything else amiss is
// ErrCorrupt, and the files are left as they were.
//
//  1. Each segment but the last must hold all that its successor's header says.
//  2. Of the last one every whole round counts. The last round alone may never have
//     been synced: its payload is verified too.
//  3. Below the watermark, and below what a later commit vouches for, nothing may be
//     missing.
//  4. A new segment begins with a copy of that last round, synced; the old ends
//     before it. So what was not durable when it was found is durable now, without
//     a second sync of a file whose last one may have failed, and no file ever
//     holds the writes of two lives.
func Open(fsys ioengine.FS, dir string, group record.GroupID, w Watermark, o Options, each func(Pos, record.Record) error) (*Log, error) {
	if group == 0 {
		return nil, errBadLog
	}
	o = o.withDefaults()
	l := &Log{fs: fsys, dir: dir, group: group, opt: o, files: newFiles(fsys, dir, o.OpenFiles)}
	if each == nil {
		each = func(Pos, record.Record) error { return nil }
	}
	if err := l.recover(w, each); err != nil {
		return nil, errors.Join(fmt.Errorf("log of group %s: %w", group, err), l.files.close())
	}
	for _, s := range l.mu.segs {
		if s.state == StateClosed {
			l.seal(s)
		}
	}
	return l, nil
}

func (l *Log) recover(w Watermark, each func(Pos, record.Record) error) error {
	numbers, err := l.list()
	if err != nil {
		return err
	}
	w.First, w.Durable = max(w.First, Start), max(w.Durable, Start)
	if len(numbers) == 0 {
		return l.recoverNothing(w)
	}
	var pred *segment
	for i, n := range numbers {
		last := i == len(numbers)-1
		if pred, err = l.recoverSegment(n, pred, last, w, each); err != nil {
			return fmt.Errorf("segment %d: %w", n, err)
		}
	}
	return nil
}

// list returns the numbers of the segments, rising, and removes what never became one.
func (l *Log) list() (numbers []uint64, err error) {
	if err := l.fs.Mkdir(l.dir); err != nil {
		return nil, err
	}
	names, err := l.fs.List(l.dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names { // sorted, and numbers have one width
		if n, ok := fileNumber(name); ok {
			numbers = append(numbers, n)
		} else if strings.HasSuffix(name, newSuffix) {
			if err := l.fs.Remove(path.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	return numbers, nil
}

func (l *Log) recoverNothing(w Watermark) error {
	if w.Durable > Start {
		return corrupt(fmt.Sprintf("no segments, but it was durable up to %s", w.Durable))
	}
	if err := l.fs.SyncDir(path.Dir(l.dir)); err != nil {
		return err
	}
	h := header{Group: l.group, Number: 1, Life: l.opt.Life(), First: Start, Chain: chainStart(l.group)}
	writer, err := l.create(h, nil)
	if err != nil {
		return err
	}
	l.take(writer, &segment{header: h, end: h.First, chain: h.Chain, state: StateOpen})
	return nil
}

// recoverSegment adds segment n to the log, after pred (nil for the oldest); the
// last one is closed and a new one opened after it.
func (l *Log) recoverSegment(n uint64, pred *segment, last bool, w Watermark, each func(Pos, record.Record) error) (*segment, error) {
	file, err := l.fs.Open(path.Join(l.dir, fileName(n)), ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		return nil, err
	}
	s, err := l.scanSegment(file, n, pred, last, w, each)
	return s, errors.Join(err, file.Close())
}

func (l *Log) scanSegment(file ioengine.File, n uint64, pred *segment, last bool, w Watermark, each func(Pos, record.Record) error) (*segment, error) {
	sc, err := openScanner(file)
	if err != nil {
		return nil, err
	}
	if err := l.checkHeader(sc.header, n, pred, w); err != nil {
		return nil, err
	}
	s := &segment{header: sc.header, end: sc.First, chain: sc.Chain, state: StateClosed}
	if last {
		return s, l.recoverLast(sc, s, w, each)
	}
	next, err := l.successor(n)
	if err != nil {
		return nil, err
	}
	if err := l.recoverClosed(sc, s, next, each); err != nil {
		return nil, err
	}
	l.mu.segs = append(l.mu.segs, s)
	return s, nil
}

// checkHeader checks that the segment is in its place.
func (l *Log) checkHeader(h header, n uint64, pred *segment, w Watermark) error {
	switch {
	case h.Group != l.group:
		return corrupt(fmt.Sprintf("it is of group %s", h.Group))
	case h.Number != n:
		return corrupt(fmt.Sprintf("it is number %d", h.Number))
	case pred == nil && h.First > w.First:
		return corrupt(fmt.Sprintf("the log should begin at %s, and it begins at %s", w.First, h.First))
	case pred != nil && (h.Number != pred.Number+1 || h.Pred != pred.Life || h.First != pred.end || h.Chain != pred.chain):
		return corrupt(fmt.Sprintf("it does not follow segment %d", pred.Number))
	}
	return nil
}

// successor returns the header of the segment after number n.
func (l *Log) successor(n uint64) (header, error) {
	file, err := l.fs.Open(path.Join(l.dir, fileName(n+1)), ioengine.ReadOnly|ioengine.Direct)
	if errors.Is(err, fs.ErrNotExist) {
		return header{}, fmt.Errorf("%w: segment %d is missing", ErrCorrupt, n+1)
	}
	if err != nil {
		return header{}, err
	}
	sc, err := openScanner(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return header{}, fmt.Errorf("segment %d: %w", n+1, err)
	}
	return sc.header, nil
}

// recoverClosed reads a segment up to where its successor begins: all of that was
// durable when the successor was made.
func (l *Log) recoverClosed(sc *scanner, s *segment, next header, each func(Pos, record.Record) error) error {
	var r round
	for s.end < next.First {
		if err := sc.round(&r, s.end, s.chain); err != nil {
			return asCorrupt(err)
		}
		if err := s.deliver(&r, each); err != nil {
			return err
		}
	}
	has, err := sc.hasFooter(s)
	if err != nil {
		return err
	}
	if has {
		s.state, s.entries = StateVerified, nil
	}
	return nil
}

// deliver adds a round to the segment and gives its records to each.
func (s *segment) deliver(r *round, each func(Pos, record.Record) error) error {
	for i, rec := range r.records {
		if err := each(r.entries[i].Pos, rec); err != nil {
			return fmt.Errorf("record at %s: %w", r.entries[i].Pos, err)
		}
	}
	s.end, s.chain = r.end, r.chain
	s.entries = append(s.entries, r.entries...)
	s.records += len(r.entries)
	return nil
}

// asCorrupt says that what is amiss is no torn tail.
func asCorrupt(err error) error {
	if torn := (*errTorn)(nil); errors.As(err, &torn) && !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

// recoverLast reads the segment that was open, and opens the one after it.
func (l *Log) recoverLast(sc *scanner, s *segment, w Watermark, each func(Pos, record.Record) error) error {
	final, torn, err := readRounds(sc, s, each)
	if err != nil {
		return err
	}
	end := s.end
	if final != nil {
		end = final.end
	}
	if end < w.Durable && !invariant.Planted("journal/segment/no-watermark") {
		return fmt.Errorf("%w: it ends at %s and was durable up to %s: %w", ErrCorrupt, end, w.Durable, torn)
	}
	vouched, err := sc.vouches(end)
	if err != nil {
		return err
	}
	if vouched && !invariant.Planted("journal/segment/no-vouching") {
		return fmt.Errorf("%w: a later commit was written when it was durable beyond %s: %w", ErrCorrupt, end, torn)
	}
	return l.carry(sc, s, final, each)
}

// readRounds delivers all whole rounds but the last, and returns that one, if any,
// with its payload verified; and why the next is none.
func readRounds(sc *scanner, s *segment, each func(Pos, record.Record) error) (final *round, torn *errTorn, err error) {
	rounds := [2]round{}
	begin, chain := s.end, s.chain
	for i := 0; ; i++ {
		r := &rounds[i%2]
		err := sc.round(r, begin, chain)
		if errors.As(err, &torn) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		if final != nil { // r's commit says that it was durable
			if err := s.deliver(final, each); err != nil {
				return nil, nil, err
			}
		}
		final, begin, chain = r, r.end, r.chain
	}
	if final == nil || invariant.Planted("journal/segment/payload-unread") {
		return final, torn, nil
	}
	for _, e := range final.entries {
		_, err := sc.whole(e)
		if damaged := (*errTorn)(nil); errors.As(err, &damaged) {
			return nil, damaged, nil
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return final, torn, nil
}

// carry begins the next segment with a copy of the final round of s, which may be nil.
func (l *Log) carry(sc *scanner, s *segment, final *round, each func(Pos, record.Record) error) error {
	h := header{Group: l.group, Number: s.Number + 1, Life: l.opt.Life(), First: s.end, Pred: s.Life, Chain: s.chain}
	if s.end == s.First {
		h.Number, h.Pred = s.Number, s.Pred // nothing is left in it: it is replaced
	} else {
		l.mu.segs = append(l.mu.segs, s)
	}
	var fill func(*writer) error
	if final != nil {
		fill = func(w *writer) error {
			for _, e := range final.entries {
				rec, err := sc.whole(e)
				if err != nil {
					return asCorrupt(err)
				}
				if err := w.append(rec.Header, rec.Bytes()); err != nil {
					return err
				}
			}
			return nil
		}
	}
	w, err := l.create(h, fill)
	if err != nil {
		return err
	}
	next := &segment{header: h, end: h.First, chain: h.Chain, state: StateOpen}
	if final != nil {
		if w.end != final.end || w.chain != final.chain {
			return errors.Join(corrupt("the last round changed while it was copied"), w.file.Close())
		}
		w.next(nil)
		if err := next.deliver(final, each); err != nil {
			return errors.Join(err, w.file.Close())
		}
	}
	l.take(w, next)
	return nil
}

package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// ErrRoom says that what a ReplaceRange adds takes more places than the range has.
var ErrRoom = errors.New("no room in the range")

// ReplaceRange folds the closed segments first to last, by number, into one with the
// number first: it holds the records that build adds, at the places that add returns,
// from the first one's First on and below the last one's To (else ErrRoom, and nothing
// was done), and stands for all that range. add copies the record. The old files go once
// the new one is durable and verified; an error or a crash before that leaves them all,
// a crash after it is finished by the next Open. It may be called beside appends and
// reads; build may read the log. After an error Segments tells whether it was done.
//
// publish, if not nil, is called once all is ready: swap, which it calls at most once, puts
// the new segment into the place of the old ones, and says whether that was done, also
// with an error: then the log has the new one, and the disk perhaps not for good.
//
// When it returned nil a place in the range stands for what the new segment has there,
// or is ErrRange: whoever keeps places looks them up again.
func (l *Log) ReplaceRange(first, last uint64, build func(add func(rec []byte) (Pos, error)) error, publish func(swap func() (life uint64, done bool, err error)) error) error {
	l.upkeep.Lock()
	defer l.upkeep.Unlock()
	old, err := l.run(first, last)
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range old {
			l.unpin(s)
		}
	}()
	if publish == nil {
		publish = func(swap func() (uint64, bool, error)) error {
			_, _, err := swap()
			return err
		}
	}
	if err := l.fold(old, build, publish); err != nil {
		return fmt.Errorf("folding segments %d to %d: %w", first, last, err)
	}
	return nil
}

// run returns the closed segments first to last, pinned.
func (l *Log) run(first, last uint64) ([]*segment, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.mu.closed {
		return nil, ErrClosed
	}
	segs := l.mu.segs[:len(l.mu.segs)-1] // the last one is open
	from := slices.IndexFunc(segs, func(s *segment) bool { return s.Number == first })
	to := slices.IndexFunc(segs, func(s *segment) bool { n, _ := s.last(); return n == last })
	if from < 0 || to < from {
		return nil, fmt.Errorf("%w: no closed segments %d to %d", ErrRange, first, last)
	}
	old := slices.Clone(segs[from : to+1])
	for _, s := range old {
		s.pins.Add(1)
		l.busy.Add(1)
	}
	return old, nil
}

func (l *Log) fold(old []*segment, build func(add func(rec []byte) (Pos, error)) error, publish func(swap func() (uint64, bool, error)) error) error {
	first := old[0]
	next := &segment{header: foldHeader(old, l.opt.Life()), state: StateVerified}
	temp := strings.TrimSuffix(l.path(first.Number), suffix) + foldSuffix
	err := l.build(temp, func(file ioengine.File) error {
		w := newWriter(file, next.header, NewStages(scanBytes, 2))
		defer w.drop()
		if err := build(w.adder(next.Fold.To)); err != nil {
			return err
		}
		if err := w.endRound(); err != nil {
			return err
		}
		next.Fold.End, next.Fold.EndChain = w.end, w.chain
		next.end, next.chain = w.end, w.chain
		page := buf.Aligned(pageBytes)
		next.put(page)
		if _, err := file.WriteAt(page, 0); err != nil {
			return err
		}
		var err error
		next.records, err = l.finishCopy(file, next)
		return err
	})
	if err != nil {
		return err
	}
	if invariant.Planted("journal/segment/fold-early") {
		for _, s := range old[1:] {
			_ = l.fs.Remove(l.path(s.Number))
		}
		_ = l.fs.SyncDir(l.dir)
	}
	swapped := false
	err = publish(func() (uint64, bool, error) {
		err := l.rename(temp, first, next)
		swapped = l.isGone(first)
		return next.Life, swapped, err
	})
	if err != nil {
		if !swapped {
			err = errors.Join(err, l.removeTemp(temp))
		}
		return err
	}
	if l.opt.Discarded != nil {
		l.opt.Discarded(l.fileInfo(first))
	}
	l.tellVerified(next)
	return l.discard()
}

// isGone says whether the segment is no part of the log any more.
func (l *Log) isGone(s *segment) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return s.gone
}

// removeTemp removes what will not be renamed; it may be gone already.
func (l *Log) removeTemp(temp string) error {
	if err := l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// foldHeader is that of a segment that stands for old.
func foldHeader(old []*segment, life uint64) header {
	first, last := old[0], old[len(old)-1]
	number, lastLife := last.last()
	firstLife := first.Life
	if first.folded() {
		firstLife = first.Fold.FirstLife
	}
	return header{
		Group: first.Group, Number: first.Number, Life: life,
		First: first.First, Pred: first.Pred, Chain: first.Chain,
		Fold: fold{
			To: last.limit(), Last: number,
			FirstLife: firstLife, LastLife: lastLife, Chain: last.limitChain(),
		},
	}
}

// replaceBy puts a folded segment into the place of those it stands for, whose files but
// the first are left to discard.
func (l *Log) replaceBy(next *segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := slices.IndexFunc(l.mu.segs, func(s *segment) bool { return s.Number == next.Number })
	to := slices.IndexFunc(l.mu.segs, func(s *segment) bool { return s.Number > next.Fold.Last })
	l.mu.segs[from].gone = true // its name is the new one's
	l.takeOutLocked(from, to, next)
	l.mu.dropped = slices.DeleteFunc(l.mu.dropped, func(s *segment) bool { return s.Number == next.Number })
}

// roundBytes is when a folded segment's round ends.
const roundBytes Pos = 1 << 20

// adder returns a function that adds records one after the other, below to.
func (w *writer) adder(to Pos) func(rec []byte) (Pos, error) {
	return func(rec []byte) (Pos, error) {
		h, err := record.ParseHeader(rec)
		switch {
		case err != nil:
			return 0, err
		case h.Size != len(rec):
			return 0, fmt.Errorf("%w: %d bytes of a record of %d", record.ErrShort, len(rec), h.Size)
		case commitEnd(w.end+Pos(h.Size)) > to:
			return 0, ErrRoom
		}
		if w.end-w.begin >= roundBytes {
			if err := w.endRound(); err != nil {
				return 0, err
			}
			if commitEnd(w.end+Pos(h.Size)) > to {
				return 0, ErrRoom
			}
		}
		pos := w.end
		return pos, w.append(h, rec)
	}
}

// endRound ends the round that was begun, if any.
func (w *writer) endRound() error {
	if w.empty() {
		return nil
	}
	if err := w.finish(); err != nil {
		return err
	}
	w.next(nil)
	return nil
}

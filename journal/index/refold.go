package index

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// FoldMark says that the index knows [From, To) as a folded segment of that life has it. The
// log's places are the same before and after a fold: an index without the mark, or with
// another, finds what is no longer there.
type FoldMark struct {
	From, To segment.Pos
	Life     uint64
}

// Fold forgets the records in [from, to), all of them flushed, and takes those that add is
// called with instead, in rising order and in that range. It is visible at once, whole or
// not at all, and on disk when it returns. The log has to hold them before.
func (t *Table) Fold(from, to segment.Pos, add func(add func(segment.Pos, record.Record) error) error) error {
	f, err := t.PrepareFold(from, to, add)
	if err != nil {
		return err
	}
	return f.Show(0)
}

// Folding is a Fold whose records are on disk and which no lookup sees yet. It ends by
// Show or Discard.
type Folding struct {
	t        *Table
	from, to segment.Pos
	resets   uint64
	made     []layoutRun
}

// PrepareFold does the first part of a Fold, and may be called beside all else.
func (t *Table) PrepareFold(from, to segment.Pos, add func(add func(segment.Pos, record.Record) error) error) (*Folding, error) {
	if to > t.Covered().Pos || from >= to {
		return nil, fmt.Errorf("index of group %s: fold of [%s, %s) with %s flushed", t.cfg.Group, from, to, t.Covered().Pos)
	}
	f := &Folding{t: t, from: from, to: to, resets: t.resets()}
	m, last := newMemtable(), from-1
	spill := func() error {
		r, err := t.writeRun(m.each)
		if r != nil {
			f.made = append(f.made, layoutRun{id: r.id, pages: r.pages, run: r})
		}
		m = newMemtable()
		return err
	}
	err := add(func(pos segment.Pos, r record.Record) error {
		if pos <= last || pos >= to {
			return fmt.Errorf("record %s at %s: not above %s and below %s", r.Identity, pos, last, to)
		}
		last = pos
		if m.bytes() > t.cfg.FoldBytes {
			if err := spill(); err != nil {
				return err
			}
		}
		return m.add(pos, &r)
	})
	if err == nil && !m.empty() {
		err = spill()
	}
	if err != nil {
		return nil, fmt.Errorf("index of group %s: fold: %w", t.cfg.Group, errors.Join(err, f.Discard()))
	}
	return f, nil
}

// Fresh says whether Show can succeed: the index was not reset since.
func (f *Folding) Fresh() bool { return f.resets == f.t.resets() }

// Show makes lookups see the fold, and puts it on disk. life, if not 0, is the log's for the
// range from now on, which Marks tells. After an error lookups see none of it.
func (f *Folding) Show(life uint64) error {
	t, span := f.t, Span{f.from, f.to}
	err := t.install(f.resets, func(l *layout) error {
		for i, r := range l.runs {
			if r.run.overlaps(f.from, f.to) && !invariant.Planted("journal/index/fold-adds-only") {
				l.runs[i].masks = withMask(r.masks, span)
			}
		}
		l.runs = append(l.runs, f.made...)
		if life != 0 {
			l.marks = withFoldMark(l.marks, FoldMark{f.from, f.to, life})
		}
		return nil
	}, func() { t.io.folds = append(t.io.folds, span) })
	if err != nil {
		return fmt.Errorf("index of group %s: fold: %w", t.cfg.Group, errors.Join(err, f.Discard()))
	}
	f.made = nil
	t.mergeSoon()
	return nil
}

// Discard gives up a fold that is not to be shown; after Show it does nothing.
func (f *Folding) Discard() error {
	made := f.made
	f.made = nil
	return f.t.discard(made)
}

// withFoldMark returns marks with one in the place of those that it covers. Those passed
// are not changed.
func withFoldMark(marks []FoldMark, m FoldMark) []FoldMark {
	out := slices.DeleteFunc(slices.Clone(marks), func(have FoldMark) bool { return have.From < m.To && have.To > m.From })
	i := 0
	for i < len(out) && out[i].From < m.From {
		i++
	}
	return slices.Insert(out, i, m)
}

// Marks returns which folds of the log the index knows.
func (t *Table) Marks() []FoldMark {
	t.io.Lock()
	defer t.io.Unlock()
	return slices.Clone(t.io.layout.marks)
}

// SetMarks says to an index that has nothing yet which folds there are in what will be
// added; the next Flush has them with it.
func (t *Table) SetMarks(marks []FoldMark) {
	t.io.Lock()
	defer t.io.Unlock()
	t.io.layout.marks = slices.Clone(marks)
}

package index

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// Flush writes what was added to disk: it is Freeze and what that returned.
func (t *Table) Flush(s Snapshot) error { return t.Freeze(s)() }

// Freeze begins a Flush and returns at once: what was added until now is what will be
// written. s is the place up to which everything was added, and the journal's state
// there; it takes s.State. What it returns does the writing, once, on any goroutine,
// before the next Freeze: lookups and adds go on meanwhile. After its error nothing
// is lost: lookups find all as before, and the next Freeze has it with it.
func (t *Table) Freeze(s Snapshot) (write func() error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return func() error { return errTableClosed }
	}
	if !t.mu.active.empty() {
		t.mu.frozen = append(t.mu.frozen, t.mu.active)
		t.mu.active = newMemtable()
		t.addMemtableLocked()
	}
	frozen := slices.Clone(t.mu.frozen)
	resets := t.resets()
	return func() error { return t.write(frozen, s, resets) }
}

// addMemtableLocked is showLocked with the runs as they are.
func (t *Table) addMemtableLocked() {
	var runs []layoutRun
	for _, s := range t.mu.view.sources {
		if r, ok := s.source.(*run); ok {
			runs = append(runs, layoutRun{run: r, masks: s.masks})
		}
	}
	t.showLocked(runs)
}

// write makes runs of the memtables and names them in current.
func (t *Table) write(frozen []*memtable, s Snapshot, resets uint64) error {
	var made []layoutRun
	for _, m := range frozen {
		r, err := t.writeRun(m.each)
		if err != nil {
			return fmt.Errorf("index of group %s: flush: %w", t.cfg.Group, errors.Join(err, t.discard(made)))
		}
		if r != nil {
			made = append(made, layoutRun{id: r.id, pages: r.pages, run: r})
		}
	}
	err := t.install(resets, func(l *layout) error {
		l.covered = s
		l.runs = append(l.runs, made...)
		return nil
	}, func() {
		t.mu.covered = s
		t.mu.frozen = slices.DeleteFunc(t.mu.frozen, func(m *memtable) bool { return slices.Contains(frozen, m) })
	})
	if err != nil {
		return fmt.Errorf("index of group %s: flush: %w", t.cfg.Group, errors.Join(err, t.discard(made)))
	}
	t.mergeSoon()
	return nil
}

// errStale says that the index was reset meanwhile.
var errStale = errors.New("index was reset")

// install changes what is on disk: change makes the new layout from a copy of the old, current
// is written, then lookups see it; shown is called in between with the table's lock held. Files
// that the new one does without are removed.
func (t *Table) install(resets uint64, change func(l *layout) error, shown func()) error {
	t.io.Lock()
	defer t.io.Unlock()
	if resets != t.resets() {
		return errStale
	}
	old := t.io.layout
	l := old
	l.runs = slices.Clone(old.runs)
	if err := change(&l); err != nil {
		return err
	}
	l.first, l.next = segment.Pos(t.first.Load()), t.number.Load()
	l.marks = slices.DeleteFunc(slices.Clone(l.marks), func(m FoldMark) bool { return m.To <= l.first })
	n, err := l.write(t.cfg.FS, t.cfg.Dir, t.cfg.Group)
	t.written.Add(int64(n))
	if err != nil {
		return err
	}
	t.io.layout = l
	t.mu.Lock()
	if shown != nil {
		shown()
	}
	t.showLocked(l.runs)
	t.mu.Unlock()
	for _, r := range old.runs {
		if !slices.ContainsFunc(l.runs, func(have layoutRun) bool { return have.run == r.run }) {
			t.io.garbage = append(t.io.garbage, runName(r.id.number))
			_ = r.run.release() // it was only read
		}
	}
	t.sweepLocked()
	return nil
}

// writeRun makes a run of what each gives, in order, without what was dropped; nil when
// nothing is left.
func (t *Table) writeRun(each func(fn func(*version) error) error) (*run, error) {
	id := runID{group: t.cfg.Group, number: t.number.Add(1) - 1, life: drawLife()}
	name := t.path(runName(id.number))
	w, err := newRunWriter(t.cfg.FS, name, id, t.cfg.Pace)
	if err != nil {
		t.forget(id.number) // it may be there all the same
		return nil, err
	}
	first := segment.Pos(t.first.Load())
	err = each(func(v *version) error {
		if v.pos < first {
			return nil
		}
		return w.add(v)
	})
	if err == nil && w.versions > 0 {
		var r *run
		if r, err = w.finish(); err == nil {
			t.written.Add(w.written)
			t.equip(r)
			return r, nil
		}
	}
	if aerr := w.f.Close(); aerr != nil && err == nil {
		err = aerr
	}
	t.forget(id.number)
	return nil, err
}

func drawLife() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return binary.LittleEndian.Uint64(b[:])
}

// forget has the file of a run that nothing names removed, with the next that go.
func (t *Table) forget(number uint64) {
	t.io.Lock()
	defer t.io.Unlock()
	t.io.garbage = append(t.io.garbage, runName(number))
}

// discard closes runs that will not be named. Their files stay until current was written
// again: it may name them after an error.
func (t *Table) discard(runs []layoutRun) (err error) {
	for _, r := range runs {
		err = errors.Join(err, r.run.release())
		t.forget(r.id.number)
	}
	return err
}

// Drop makes records below first be found no more, and removes what holds only such. It
// must be called again after OpenTable.
func (t *Table) Drop(first segment.Pos) error {
	if int64(first) <= t.first.Load() || invariant.Planted("journal/index/keep-dropped") {
		return nil
	}
	t.first.Store(int64(first))
	t.mu.Lock()
	if t.mu.active != nil && !t.mu.active.empty() && t.mu.active.hi <= first {
		t.mu.active = newMemtable()
		t.addMemtableLocked()
	}
	t.mu.Unlock()
	whole := func(r layoutRun) bool { return r.run.hi <= first }
	t.io.Lock()
	any := slices.ContainsFunc(t.io.layout.runs, whole)
	t.io.Unlock()
	if any {
		err := t.install(t.resets(), func(l *layout) error {
			l.runs = slices.DeleteFunc(l.runs, whole)
			return nil
		}, nil)
		if err != nil {
			return fmt.Errorf("index of group %s: drop: %w", t.cfg.Group, err)
		}
	}
	t.mergeSoon()
	return nil
}

// Reset forgets all, on disk too.
func (t *Table) Reset() error {
	t.io.Lock()
	defer t.io.Unlock()
	old := t.io.layout
	l := layout{}
	t.generation.Add(1)
	if err := t.clear(&l); err != nil {
		return fmt.Errorf("index of group %s: reset: %w", t.cfg.Group, err)
	}
	l.next = max(l.next, t.number.Load())
	t.adopt(l)
	return errors.Join(old.close())
}

func (t *Table) resets() uint64 { return t.generation.Load() }

package index

import (
	"cmp"
	"errors"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// runShape is what a run is chosen for a merge by.
type runShape struct {
	bytes  int64
	lo, hi segment.Pos
}

// Merges take from six to eight neighbours. The largest has at most a third of the
// whole, so that each merge makes the run a version stands in three times as large or more:
// among n flushed versions each is written log3(n/flush) times at most. Of 400 flushes
// alike each is written 3.2 times more, and 6 runs stand side by side, 12 at most; with four
// neighbours it would be 4.6 times, and 5.4 runs.
const (
	mergeLeast = 6
	mergeMost  = 8
	mergeRatio = 3
)

// planMerge chooses which of the runs, ordered by hi, become one, or nothing. What
// results is no larger than limit; first is the place below which all was dropped: a
// run that lies below it by more than half is written again by itself, to give space back.
func planMerge(runs []runShape, first segment.Pos, limit int64) (from, to int) {
	best := int64(0)
	for i := range runs {
		total, largest := int64(0), int64(0)
		for j := i; j < len(runs) && j < i+mergeMost; j++ {
			total += runs[j].bytes
			largest = max(largest, runs[j].bytes)
			if total > limit {
				break
			}
			n := j + 1 - i
			better := best == 0 || total/int64(n) < best
			if n >= mergeLeast && largest*mergeRatio <= total && better {
				from, to, best = i, j+1, total/int64(n)
			}
		}
	}
	if best > 0 {
		return from, to
	}
	for i, r := range runs {
		if r.lo < first && first-r.lo > r.hi-first {
			return i, i + 1
		}
	}
	return 0, 0
}

// mergeSoon has a merge done, if one is due and none runs.
func (t *Table) mergeSoon() {
	t.mu.Lock()
	idle := !t.mu.merging && !t.mu.closed
	if idle {
		t.mu.merging = true
		t.merges.Add(1)
	}
	t.mu.Unlock()
	if !idle {
		return
	}
	t.cfg.Go(func() {
		defer t.merges.Done()
		t.mergeAll()
	})
}

// mergeAll merges until nothing is due. A merge that fails is tried again after the next flush.
func (t *Table) mergeAll() {
	defer func() {
		t.mu.Lock()
		t.mu.merging = false
		t.mu.Unlock()
	}()
	for !t.closing.Load() {
		did, err := t.merge()
		if err != nil && !errors.Is(err, errStale) && !errors.Is(err, errTableClosed) {
			t.cfg.Log.Warn("merge of the index failed", "reason", err.Error())
		}
		if !did || err != nil {
			return
		}
	}
}

// merge does one merge; did is false when none is due.
func (t *Table) merge() (did bool, err error) {
	inputs, folds, resets := t.chooseMerge()
	if len(inputs) == 0 {
		return false, nil
	}
	defer func() {
		for _, in := range inputs {
			err = errors.Join(err, in.run.release())
		}
	}()
	r, err := t.writeRun(func(fn func(*version) error) error { return t.mergeInto(inputs, fn) })
	if err != nil {
		return true, err
	}
	var made []layoutRun
	if r != nil {
		made = []layoutRun{{id: r.id, pages: r.pages, run: r}}
	}
	err = t.install(resets, func(l *layout) error {
		for i := range made { // what was folded meanwhile is folded in it too
			for _, m := range t.io.folds[folds:] {
				if made[i].run.overlaps(m.From, m.To) && !invariant.Planted("journal/index/merge-unfolds") {
					made[i].masks = withMask(made[i].masks, m)
				}
			}
		}
		l.runs = slices.DeleteFunc(l.runs, func(have layoutRun) bool {
			return slices.ContainsFunc(inputs, func(in layoutRun) bool { return in.run == have.run })
		})
		l.runs = append(l.runs, made...)
		return nil
	}, nil)
	if err != nil {
		return true, errors.Join(err, t.discard(made))
	}
	t.merged.Add(1)
	return true, nil
}

// chooseMerge returns the runs to merge, in use, and how many folds and resets there were.
func (t *Table) chooseMerge() (inputs []layoutRun, folds int, resets uint64) {
	t.io.Lock()
	defer t.io.Unlock()
	runs := slices.Clone(t.io.layout.runs)
	slices.SortStableFunc(runs, func(a, b layoutRun) int { return cmp.Compare(uint64(b.run.hi), uint64(a.run.hi)) })
	shapes := make([]runShape, len(runs))
	for i, r := range runs {
		shapes[i] = runShape{int64(r.pages) * pageBytes, r.run.lo, r.run.hi}
	}
	from, to := planMerge(shapes, segment.Pos(t.first.Load()), t.cfg.RunBytes)
	inputs = runs[from:to]
	for _, in := range inputs {
		in.run.refs.Add(1)
	}
	return inputs, len(t.io.folds), t.resets()
}

// mergeInto calls fn with the versions of the runs, in order, without what is folded.
func (t *Table) mergeInto(runs []layoutRun, fn func(*version) error) error {
	m := merging{}
	for _, r := range runs {
		in := &mergeInput{scan: r.run.scan(t.cfg.Pace), masks: r.masks}
		ok, err := in.advance()
		if err != nil {
			return err
		}
		if ok {
			m.inputs = append(m.inputs, in)
		}
	}
	m.turn()
	for n := 0; len(m.inputs) > 0; n++ {
		if n%4096 == 0 && t.closing.Load() {
			return errTableClosed
		}
		i := m.least()
		if err := fn(&m.inputs[i].v); err != nil {
			return err
		}
		if err := m.advance(i); err != nil {
			return err
		}
	}
	return nil
}

// mergeInput is a run that is merged.
type mergeInput struct {
	*scan
	masks []Span
}

// advance moves on to what is not folded.
func (in *mergeInput) advance() (bool, error) {
	for {
		ok, err := in.next()
		if !ok || err != nil || len(in.masks) == 0 || masked(in.masks, in.v.pos) == nil {
			return ok, err
		}
	}
}

// merging are the inputs of a merge, none at its end. They are told apart by where their next versions
// begin, a number each, and compared in full only where two begin at one place.
type merging struct {
	inputs []*mergeInput
	area   area              // of the versions that are next
	begins [mergeMost]uint64 // place in the volume<<mergeBits | which input; afterArea: no version of the area
}

const (
	mergeBits = 3
	afterArea = ^uint64(0)
)

var _ [1<<mergeBits - mergeMost]struct{} // a bit pattern for each input

// turn goes on to the next area that inputs have.
func (m *merging) turn() {
	for i, in := range m.inputs {
		if i == 0 || in.v.area < m.area {
			m.area = in.v.area
		}
	}
	for i := range m.begins {
		m.begins[i] = afterArea
		if i < len(m.inputs) {
			m.place(i)
		}
	}
}

func (m *merging) place(i int) {
	v := &m.inputs[i].v
	if m.begins[i] = afterArea; v.area == m.area {
		off := v.cell<<cellShift(v.area.level()) + uint64(v.span>>32)
		m.begins[i] = off<<mergeBits | uint64(i)
	}
}

// least returns the input whose version comes first.
func (m *merging) least() int {
	b := &m.begins
	first := min(b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7])
	if first == afterArea {
		m.turn()
		return m.least()
	}
	least := int(first & (1<<mergeBits - 1))
	for i := least + 1; i < len(m.inputs); i++ {
		if b[i]>>mergeBits == first>>mergeBits && m.inputs[i].v.compare(&m.inputs[least].v.sortKey) < 0 {
			least = i
		}
	}
	return least
}

// advance moves an input on, or takes it out at its end.
func (m *merging) advance(i int) error {
	ok, err := m.inputs[i].advance()
	if err != nil {
		return err
	}
	if ok {
		m.place(i)
		return nil
	}
	m.inputs = slices.Delete(m.inputs, i, i+1)
	m.turn()
	return nil
}

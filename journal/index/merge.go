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

// Merges take from four to eight neighbours. The largest has at most a third of the
// whole, so that each merge makes the run a version stands in three times as large or more:
// among n flushed versions each is written log3(n/flush) times at most.
const (
	mergeLeast = 4
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
			t.cfg.Log.Warn("merge of the index failed", "group", t.cfg.Group.String(), "reason", err.Error())
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
	type input struct {
		*scan
		masks []Span
	}
	var inputs []input
	advance := func(in *input) (bool, error) {
		for {
			ok, err := in.next()
			if !ok || err != nil || masked(in.masks, in.v.pos) == nil {
				return ok, err
			}
		}
	}
	for _, r := range runs {
		in := input{r.run.scan(t.cfg.Pace), r.masks}
		ok, err := advance(&in)
		if err != nil {
			return err
		}
		if ok {
			inputs = append(inputs, in)
		}
	}
	for n := 0; len(inputs) > 0; n++ {
		if n%4096 == 0 && t.closing.Load() {
			return errTableClosed
		}
		least := 0
		for i := 1; i < len(inputs); i++ {
			if inputs[i].v.compare(&inputs[least].v.sortKey) < 0 {
				least = i
			}
		}
		if err := fn(&inputs[least].v); err != nil {
			return err
		}
		ok, err := advance(&inputs[least])
		if err != nil {
			return err
		}
		if !ok {
			inputs = slices.Delete(inputs, least, least+1)
		}
	}
	return nil
}

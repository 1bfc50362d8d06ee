package index

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// modelCatalogue is what a catalogue says of one group, as a list.
type modelCatalogue []Checkpoint

func (m modelCatalogue) put(cp Checkpoint) modelCatalogue {
	i, ok := slices.BinarySearchFunc(m, cp.Number, func(c Checkpoint, n uint64) int { return int(int64(c.Number) - int64(n)) })
	if ok {
		m[i] = cp
		return m
	}
	return slices.Insert(m, i, cp)
}

func (m modelCatalogue) counts() (c Counts) {
	for _, cp := range m {
		c.add(cp.traits(), 1)
	}
	return c
}

func (m modelCatalogue) list(q Query) (cps []Checkpoint) {
	for _, cp := range m {
		if q.After != 0 && (q.Newest && cp.Number >= q.After || !q.Newest && cp.Number <= q.After) {
			continue
		}
		if q.From != 0 && cp.Time < q.From || q.To != 0 && cp.Time >= q.To || !q.wants(&cp) {
			continue
		}
		cps = append(cps, cp)
	}
	if q.Newest {
		slices.Reverse(cps)
	}
	return cps
}

// listed reads all pages.
func listed(t *testing.T, c *Catalogue, group record.GroupID, q Query) (cps []Checkpoint) {
	t.Helper()
	for {
		page, err := c.List(group, q)
		must(t, err)
		if len(page.Checkpoints) > q.Limit {
			t.Fatalf("%+v gives %d", q, len(page.Checkpoints))
		}
		cps = append(cps, page.Checkpoints...)
		if page.Next == 0 {
			return cps
		}
		q.After = page.Next
	}
}

func randomCheckpoint(rng *rand.Rand, top int) Checkpoint {
	n := uint64(1 + rng.IntN(top))
	cp := Checkpoint{Number: n, Time: record.Time(n * 10), State: []State{Good, Good, Good, Verifying, Bad}[rng.IntN(5)]}
	if rng.IntN(4) == 0 {
		cp.Tag = fmt.Sprint("tag", rng.IntN(3))
	}
	if rng.IntN(5) == 0 {
		cp.Pinned, cp.Label = true, fmt.Sprint(rng.IntN(2))
	}
	return cp
}

// Whatever is done to a catalogue, it lists what a plain list of checkpoints does, by
// any query and in pages of any size, also when it is opened again.
func TestCatalogueModel(t *testing.T) {
	const group, top = 7, 60
	seeds := uint64(12)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		for name, m := range maps(t) {
			rng := rand.New(rand.NewPCG(seed, 1))
			c, model := NewCatalogue(m), modelCatalogue(nil)
			must(t, c.Put(group-1, Checkpoint{Number: 5, State: Bad}))
			must(t, c.Put(group+1, Checkpoint{Number: 5, Tag: "other", State: Good}))
			for range 25 {
				first := uint64(rng.IntN(top))
				last := first + uint64(rng.IntN(top/3))
				within := func(cp Checkpoint) bool { return cp.Number >= first && cp.Number <= last }
				switch rng.IntN(8) {
				default:
					var cps []Checkpoint
					for range 1 + rng.IntN(8) {
						cp := randomCheckpoint(rng, top)
						cps, model = append(cps, cp), model.put(cp)
					}
					must(t, c.Put(group, cps...))
				case 0:
					numbers := []uint64{uint64(rng.IntN(top)), uint64(rng.IntN(top)), first}
					must(t, c.Forget(group, numbers...))
					model = slices.DeleteFunc(model, func(cp Checkpoint) bool { return slices.Contains(numbers, cp.Number) })
				case 1:
					n, err := c.ForgetBetween(group, first, last, func(cp *Checkpoint) bool { return cp.Pinned })
					must(t, err)
					before := len(model)
					model = slices.DeleteFunc(model, func(cp Checkpoint) bool { return within(cp) && !cp.Pinned })
					if n != before-len(model) {
						t.Errorf("forgot %d, want %d", n, before-len(model))
					}
				case 2:
					_, err := c.Change(group, first, last, func(cp *Checkpoint) bool { cp.State = Verifying; return cp.Number%2 == 0 })
					must(t, err)
					for i := range model {
						if within(model[i]) && model[i].Number%2 == 0 {
							model[i].State = Verifying
						}
					}
				case 3:
					c = NewCatalogue(m)
				case 4:
					if rng.IntN(4) == 0 {
						must(t, c.SetCovers(group, Marker{Pos: 1}))
						must(t, c.Clear(group))
						model = nil
						if _, ok := c.Covers(group); ok {
							t.Error("a group that was cleared is covered")
						}
					}
				}
				counts, err := c.Counts(group)
				if err != nil || counts != model.counts() {
					t.Fatalf("%s, seed %d: counts %+v, %v; want %+v", name, seed, counts, err, model.counts())
				}
				q := Query{Limit: 1 + rng.IntN(10), Newest: rng.IntN(2) == 0, Tagged: rng.IntN(4) == 0, Pinned: rng.IntN(4) == 0}
				if rng.IntN(2) == 0 {
					q.After = first
				}
				if rng.IntN(2) == 0 {
					q.From, q.To = record.Time(rng.IntN(top*10)), record.Time(rng.IntN(top*12))
				}
				if rng.IntN(4) == 0 {
					q.Tag = "tag1"
				}
				if rng.IntN(3) == 0 {
					q.State = []State{Good, Verifying, Bad}[rng.IntN(3)]
				}
				got, want := listed(t, c, group, q), model.list(q)
				if len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
					t.Fatalf("%s, seed %d: %+v gives\n%+v, want\n%+v", name, seed, q, got, want)
				}
				newest, ok, err := c.Newest(group, last)
				must(t, err)
				if all := model.list(Query{After: last + 1, Newest: true, State: Good}); ok != (len(all) > 0) || ok && newest.Number != all[0].Number {
					t.Fatalf("%s, seed %d: the newest up to %d is %d, %v; want %v", name, seed, last, newest.Number, ok, all)
				}
				oldest, ok, err := c.Oldest(group, last+1)
				must(t, err)
				if all := model.list(Query{After: last, State: Good}); ok != (len(all) > 0) || ok && oldest.Number != all[0].Number {
					t.Fatalf("%s, seed %d: the oldest from %d is %d, %v; want %v", name, seed, last+1, oldest.Number, ok, all)
				}
			}
			for _, other := range []record.GroupID{group - 1, group + 1} {
				if n, err := c.Counts(other); err != nil || n.Total() != 1 {
					t.Errorf("group %s: %+v, %v", other, n, err)
				}
			}
		}
	}
}

// Portions end wherever they may.
func TestLargeChanges(t *testing.T) {
	for name, m := range maps(t) {
		c := NewCatalogue(m)
		var cps []Checkpoint
		for n := uint64(1); n <= 3*portionCount; n++ {
			cps = append(cps, Checkpoint{Number: n, Time: record.Time(n), State: Good, Tag: "t"})
			if n%3 == 0 { // replaced within the portion
				cps = append(cps, Checkpoint{Number: n, Time: record.Time(n), State: Good})
			}
		}
		must(t, c.Put(7, cps...))
		n, err := c.Change(7, 0, ^uint64(0), func(cp *Checkpoint) bool { cp.State = Bad; return true })
		if err != nil || n != 3*portionCount {
			t.Errorf("%s: changed %d, %v", name, n, err)
		}
		want := Counts{Bad: 3 * portionCount, Tagged: 2 * portionCount}
		if have, err := c.Counts(7); err != nil || have != want {
			t.Errorf("%s: %+v, %v; want %+v", name, have, err, want)
		}
		if got := listed(t, c, 7, Query{Limit: 1000, Tagged: true, Newest: true}); len(got) != want.Tagged {
			t.Errorf("%s: %d tagged", name, len(got))
		}
		must(t, c.Clear(7))
		if have, err := NewCatalogue(m).Counts(7); err != nil || have != (Counts{}) {
			t.Errorf("%s: cleared, and there are %+v, %v", name, have, err)
		}
		if err := m.Scan([]byte{0}, []byte{255}, func(k, _ []byte) bool { t.Errorf("%s: %x is left", name, k); return true }); err != nil {
			t.Error(err)
		}
	}
}

// A value that does not read is told by a list, counted by nobody, and put right by the
// next who says what is true.
func TestCorruptValue(t *testing.T) {
	m := new(Memory)
	c := NewCatalogue(m)
	cps := []Checkpoint{{Number: 1, State: Good}, {Number: 2, State: Good, Tag: "t"}, {Number: 3, State: Bad}}
	must(t, c.Put(7, cps...))
	spoil := func() {
		must(t, m.Update([]Pair{{Key: key(tableCheckpoints, 7, 2), Value: []byte{9}}, {Key: key(tableCounts, 7, 0), Value: []byte{9}}}, nil))
	}
	spoil()
	if _, err := c.List(7, Query{Limit: 10}); err == nil {
		t.Error("a list passes over what does not read")
	}
	must(t, c.Put(7, cps[1]))
	if n, err := c.Counts(7); err != nil || n != (Counts{Good: 2, Bad: 1, Tagged: 1}) {
		t.Errorf("put right: %+v, %v", n, err)
	}
	spoil()
	c = NewCatalogue(m)
	if _, err := c.Reconcile(7, cps, nil); err != nil {
		t.Error(err)
	}
	if n, err := c.Counts(7); err != nil || n != (Counts{Good: 2, Bad: 1, Tagged: 1}) {
		t.Errorf("reconciled: %+v, %v", n, err)
	}
	if got := listed(t, c, 7, Query{Limit: 2}); !reflect.DeepEqual(got, cps) {
		t.Errorf("reconciled: %+v", got)
	}
}

func TestCovers(t *testing.T) {
	for name, m := range maps(t) {
		c := NewCatalogue(m)
		if _, ok := c.Covers(7); ok {
			t.Errorf("%s: an empty catalogue covers something", name)
		}
		want := Marker{Pos: 1 << 40, Segment: 9, Life: 12345}
		must(t, c.SetCovers(7, want))
		if have, ok := NewCatalogue(m).Covers(7); !ok || have != want {
			t.Errorf("%s: covers %+v, %v", name, have, ok)
		}
		must(t, m.Update([]Pair{{Key: key(tableCovers, 7, 0), Value: []byte{2}}}, nil))
		if _, ok := c.Covers(7); ok {
			t.Errorf("%s: a marker that does not read covers something", name)
		}
	}
}

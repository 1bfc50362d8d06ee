package index

import (
	"bytes"
	"fmt"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Changes are written in portions, each whole with the counts that go with it: of so
// many checkpoints, or of so many bytes and one value more.
const (
	portionCount = 500
	portionBytes = 64 << 10
)

// portion is changes of a group that are not written yet. The group is locked.
type portion struct {
	c      *Catalogue
	group  record.GroupID
	l      *listing
	counts Counts
	set    []Pair
	del    [][]byte
	bytes  int
	have   map[uint64]struct{} // the checkpoints in it
	lost   bool                // one did not read: all are to be counted anew
}

func (c *Catalogue) begin(group record.GroupID, l *listing) *portion {
	return &portion{c: c, group: group, l: l, counts: l.counts, have: make(map[uint64]struct{})}
}

// room writes what there is when the portion is full or has the checkpoint already, and
// takes the checkpoint in.
func (p *portion) room(number uint64) error {
	_, again := p.have[number]
	if again || len(p.have) >= portionCount || p.bytes >= portionBytes {
		if err := p.write(); err != nil {
			return err
		}
	}
	p.have[number] = struct{}{}
	return nil
}

// leave stops counting a checkpoint as it stood.
func (p *portion) leave(number uint64) (old traits, err error) {
	if number > p.l.newest {
		return traits{}, nil
	}
	v, ok, err := p.c.m.Get(key(tableCheckpoints, p.group, number))
	if err != nil || !ok {
		return traits{}, err
	}
	cp, err := parseCheckpoint(v, number)
	if err != nil {
		p.lost = true
		return traits{state: Bad}, nil
	}
	p.counts.add(cp.traits(), -1)
	return cp.traits(), nil
}

// put enters a checkpoint, or replaces it.
func (p *portion) put(cp *Checkpoint) error {
	if err := p.room(cp.Number); err != nil {
		return err
	}
	old, err := p.leave(cp.Number)
	if err != nil {
		return err
	}
	if cp.Number < p.l.lowest.Load() {
		p.l.lowest.Store(cp.Number)
	}
	now, value := cp.traits(), appendCheckpoint(nil, *cp)
	p.counts.add(now, 1)
	p.set = append(p.set, Pair{Key: key(tableCheckpoints, p.group, cp.Number), Value: value})
	if now.special() && !invariant.Planted("journal/index/special-unsaid") {
		p.set = append(p.set, Pair{Key: key(tableSpecial, p.group, cp.Number)})
	} else if old.state != "" && old.special() {
		p.del = append(p.del, key(tableSpecial, p.group, cp.Number))
	}
	p.bytes += len(value)
	return nil
}

// forget takes a checkpoint out.
func (p *portion) forget(number uint64) error {
	if err := p.room(number); err != nil {
		return err
	}
	if _, err := p.leave(number); err != nil {
		return err
	}
	p.del = append(p.del, key(tableCheckpoints, p.group, number), key(tableSpecial, p.group, number))
	return nil
}

// write writes what is in the portion, and begins the next.
func (p *portion) write() error {
	if len(p.have) == 0 {
		return nil
	}
	counts := key(tableCounts, p.group, 0)
	if p.lost {
		p.del = append(p.del, counts)
	} else {
		p.set = append(p.set, Pair{Key: counts, Value: appendCounts(nil, p.counts)})
	}
	if err := p.c.m.Update(p.set, p.del); err != nil {
		return err
	}
	p.l.counts = p.counts
	for n := range p.have {
		p.l.newest = max(p.l.newest, n)
	}
	if p.lost {
		if err := p.c.load(p.group, p.l); err != nil {
			p.l.loaded = false
			return err
		}
		p.counts, p.lost = p.l.counts, false
	}
	p.set, p.del, p.bytes = nil, nil, 0
	clear(p.have)
	return nil
}

// change makes the changes that each adds to a portion.
func (c *Catalogue) change(group record.GroupID, each func(p *portion) error) error {
	l, err := c.group(group)
	defer l.Unlock()
	if err != nil {
		return wrap(err)
	}
	p := c.begin(group, l)
	if err = each(p); err == nil {
		err = p.write()
	}
	return wrap(err)
}

// Put enters checkpoints, or replaces them. After an error the first of them may be there.
func (c *Catalogue) Put(group record.GroupID, cps ...Checkpoint) error {
	return c.change(group, func(p *portion) error {
		for i := range cps {
			if err := p.put(&cps[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// Forget takes checkpoints out; those that are not there are no error.
func (c *Catalogue) Forget(group record.GroupID, numbers ...uint64) error {
	return c.change(group, func(p *portion) error {
		for _, n := range numbers {
			if err := p.forget(n); err != nil {
				return err
			}
		}
		return nil
	})
}

// ForgetBetween takes out all checkpoints with numbers in [first, last] but those that
// keep says stay, and returns how many it took; with a nil keep all go.
func (c *Catalogue) ForgetBetween(group record.GroupID, first, last uint64, keep func(*Checkpoint) bool) (forgot int, err error) {
	err = c.change(group, func(p *portion) error {
		lowest := p.l.lowest.Load()
		left := last + 1 // the first that may be there, if none below first is
		err := c.eachPage(group, max(first, lowest), last, func(cp *Checkpoint) error {
			if keep != nil && keep(cp) {
				left = min(left, cp.Number)
				return nil
			}
			forgot++
			return p.forget(cp.Number)
		})
		if err == nil {
			err = p.write()
		}
		if err == nil && first <= lowest && left > lowest {
			p.l.lowest.Store(left)
		}
		return err
	})
	return forgot, err
}

// Change calls edit for each checkpoint with a number in [first, last], in order, and
// writes those for which it returns true. It returns how many those are.
func (c *Catalogue) Change(group record.GroupID, first, last uint64, edit func(*Checkpoint) bool) (changed int, err error) {
	err = c.change(group, func(p *portion) error {
		return c.eachPage(group, first, last, func(cp *Checkpoint) error {
			number := cp.Number
			if !edit(cp) {
				return nil
			}
			cp.Number = number
			changed++
			return p.put(cp)
		})
	})
	return changed, err
}

// eachPage walks checkpoints in pages, between which the map may be changed. One that
// does not read is passed on as bad, so that it can be replaced or forgotten.
func (c *Catalogue) eachPage(group record.GroupID, first, last uint64, each func(*Checkpoint) error) error {
	for first <= last {
		var page []Checkpoint
		from, to := numbersOf(tableCheckpoints, group, first, last)
		err := c.m.Scan(from, to, func(k, v []byte) bool {
			n := numberOf(k)
			cp, err := parseCheckpoint(v, n)
			if err != nil {
				cp = Checkpoint{Number: n, State: Bad, Reason: "its entry in the catalogue does not read: it is entered anew when the target is started again"}
			}
			page = append(page, cp)
			return len(page) < portionCount
		})
		if err != nil {
			return err
		}
		for i := range page {
			if err := each(&page[i]); err != nil {
				return err
			}
		}
		if len(page) < portionCount {
			return nil
		}
		first = page[len(page)-1].Number + 1
		if first == 0 {
			return nil
		}
	}
	return nil
}

// SetState puts the checkpoints with numbers in [first, last] into the state, with why
// they are bad, and returns how many were in another.
func (c *Catalogue) SetState(group record.GroupID, first, last uint64, state State, reason string) (changed int, err error) {
	return c.Change(group, first, last, func(cp *Checkpoint) bool {
		was := *cp
		cp.State, cp.Reason = state, reason
		return cp.State != was.State || cp.Reason != was.Reason
	})
}

// Clear forgets all that the catalogue says of a group: first that it covers anything.
func (c *Catalogue) Clear(group record.GroupID) error {
	l, err := c.group(group)
	defer l.Unlock()
	if err != nil && l.loaded {
		return wrap(err)
	}
	err = c.m.Update(nil, [][]byte{key(tableCovers, group, 0), key(tableCounts, group, 0)})
	for _, table := range []byte{tableCheckpoints, tableSpecial, tableSegments} {
		for err == nil {
			var del [][]byte
			from, to := numbersOf(table, group, 0, ^uint64(0))
			err = c.m.Scan(from, to, func(k, _ []byte) bool {
				del = append(del, bytes.Clone(k))
				return len(del) < 2*portionCount
			})
			if err != nil || len(del) == 0 {
				break
			}
			err = c.m.Update(nil, del)
		}
	}
	l.counts, l.newest, l.loaded = Counts{}, 0, err == nil
	l.lowest.Store(0)
	return wrap(err)
}

// Reconcile makes the catalogue say of the group exactly what is true, and returns
// how many entries it had to change. cps and infos are ordered by number.
func (c *Catalogue) Reconcile(group record.GroupID, cps []Checkpoint, infos []segment.Info) (changed int, err error) {
	if invariant.Planted("journal/index/trust-catalogue") {
		return 0, nil
	}
	changed, err = c.reconcileSegments(group, infos)
	if err != nil {
		return changed, wrap(err)
	}
	put := func(p *portion, cp *Checkpoint) error {
		changed++
		return p.put(cp)
	}
	err = c.change(group, func(p *portion) error {
		err := c.eachPage(group, 0, ^uint64(0), func(have *Checkpoint) error {
			for len(cps) > 0 && cps[0].Number < have.Number {
				if err := put(p, &cps[0]); err != nil {
					return err
				}
				cps = cps[1:]
			}
			if len(cps) == 0 || cps[0].Number > have.Number {
				changed++
				return p.forget(have.Number)
			}
			want := &cps[0]
			cps = cps[1:]
			if bytes.Equal(appendCheckpoint(nil, *want), appendCheckpoint(nil, *have)) {
				return nil
			}
			return put(p, want)
		})
		for i := 0; err == nil && i < len(cps); i++ {
			err = put(p, &cps[i])
		}
		return err
	})
	return changed, err
}

// reconcileSegments does the same for the segments, of which there are few.
func (c *Catalogue) reconcileSegments(group record.GroupID, infos []segment.Info) (changed int, err error) {
	have := make(map[string][]byte)
	from, to := rangeOf(tableSegments, group, 0)
	if err := c.m.Scan(from, to, func(k, v []byte) bool { have[string(k)] = bytes.Clone(v); return true }); err != nil {
		return 0, err
	}
	var set []Pair
	for _, s := range infos {
		k, v := key(tableSegments, group, s.Number), appendSegment(nil, s)
		if old, ok := have[string(k)]; !ok || !bytes.Equal(old, v) {
			set = append(set, Pair{Key: k, Value: v})
		}
		delete(have, string(k))
	}
	var del [][]byte
	for k := range have {
		del = append(del, []byte(k))
	}
	changed = len(set) + len(del)
	for err == nil && len(set)+len(del) > 0 {
		s, d := min(len(set), portionCount), min(len(del), portionCount)
		err = c.m.Update(set[:s], del[:d])
		set, del = set[s:], del[d:]
	}
	if err != nil {
		err = fmt.Errorf("segments: %w", err)
	}
	return changed, err
}

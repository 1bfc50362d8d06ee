package index

import (
	"errors"
	"math"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Query asks for a page of a group's checkpoints.
type Query struct {
	After  uint64 // only those beyond it, in the direction of the list; 0: from its beginning
	Limit  int    // at most so many
	Newest bool   // newest first, else oldest first
	// From and To bound the time, in ns since 1970: From is within, To is not; 0: no bound.
	// They are held against Time, which rises with the numbers, and not against Wall.
	From, To record.Time
	Tag      string // only those with this tag; "": any or none
	Tagged   bool   // only those with a tag
	Pinned   bool   // only those that are pinned
	State    State  // only those in it; "": any
}

// few says whether all that is asked for are special, so that no others are looked at.
func (q *Query) few() bool {
	return q.Tag != "" || q.Tagged || q.Pinned || q.State != "" && q.State != Good
}

func (q *Query) wants(cp *Checkpoint) bool {
	return (q.Tag == "" || cp.Tag == q.Tag) && (!q.Tagged || cp.Tag != "") && (!q.Pinned || cp.Pinned) && (q.State == "" || cp.State == q.State)
}

// maxLooked bounds what one page looks at in vain: a page may have less than was asked
// for, or nothing, and there be more.
const maxLooked = 20_000

// Page is a part of a list.
type Page struct {
	Checkpoints []Checkpoint
	Next        uint64 // After of the query for the page that follows; 0: there is none
}

// List returns the page of a group's checkpoints that q asks for. Its cost does not
// depend on how many there are: it seeks to where it begins, also by time.
func (c *Catalogue) List(group record.GroupID, q Query) (Page, error) {
	var page Page
	if q.Limit <= 0 {
		return page, nil
	}
	first, last, err := c.bounds(group, q)
	if err != nil || first > last {
		return page, wrap(err)
	}
	looked, next := 0, uint64(0)
	take := func(cp *Checkpoint) bool {
		if len(page.Checkpoints) == q.Limit || looked == maxLooked {
			page.Next = next
			return false
		}
		looked++
		next = cp.Number
		if q.wants(cp) {
			page.Checkpoints = append(page.Checkpoints, *cp)
		}
		return true
	}
	if q.few() {
		err = c.listFew(group, q.Newest, first, last, take)
	} else {
		err = c.listAll(group, q.Newest, first, last, take)
	}
	return page, wrap(err)
}

// Checkpoints returns up to limit checkpoints with numbers above after, oldest first.
func (c *Catalogue) Checkpoints(group record.GroupID, after uint64, limit int) ([]Checkpoint, error) {
	page, err := c.List(group, Query{After: after, Limit: limit})
	return page.Checkpoints, err
}

// bounds are the numbers that the query can be about.
func (c *Catalogue) bounds(group record.GroupID, q Query) (first, last uint64, err error) {
	first, last = max(1, c.lowest(group)), uint64(math.MaxUint64)
	if q.After != 0 && q.Newest {
		last = q.After - 1
	} else if q.After != 0 {
		if q.After == math.MaxUint64 {
			return 1, 0, nil
		}
		first = max(first, q.After+1)
	}
	if q.From != 0 {
		n, err := c.firstSince(group, first, last, q.From)
		if err != nil {
			return 0, 0, err
		}
		first = n
	}
	if q.To != 0 && first <= last {
		n, err := c.firstSince(group, first, last, q.To)
		if err != nil {
			return 0, 0, err
		}
		if n <= last {
			last = n - 1
		}
	}
	return first, last, nil
}

// firstSince returns the number of the first checkpoint in [first, last] that is not
// before since; beyond last when there is none. It halves what is left, so that it seeks
// some forty times.
func (c *Catalogue) firstSince(group record.GroupID, first, last uint64, since record.Time) (uint64, error) {
	found := last + 1
	if last == math.MaxUint64 {
		newest, ok, err := c.end(group, true, first, last)
		if err != nil {
			return 0, err
		}
		if !ok {
			return math.MaxUint64, nil
		}
		found, last = newest.Number+1, newest.Number
	}
	for first <= last {
		middle := first + (last-first)/2
		cp, ok, err := c.end(group, false, middle, last)
		switch {
		case err != nil:
			return 0, err
		case ok && cp.Time < since:
			first = cp.Number + 1
		case middle == 0:
			return found, nil
		default:
			if ok {
				found = cp.Number
			}
			last = middle - 1
		}
	}
	return found, nil
}

// end returns the first checkpoint in [first, last], or the last.
func (c *Catalogue) end(group record.GroupID, newest bool, first, last uint64) (cp Checkpoint, ok bool, err error) {
	err = c.listAll(group, newest, first, last, func(have *Checkpoint) bool { cp, ok = *have, true; return false })
	return cp, ok, err
}

// Oldest returns the oldest good checkpoint from first on; ok is false when there is none.
func (c *Catalogue) Oldest(group record.GroupID, first uint64) (cp Checkpoint, ok bool, err error) {
	return c.firstGood(group, false, max(first, c.lowest(group)), math.MaxUint64)
}

// Newest returns the newest good checkpoint up to last; ok is false when there is none.
func (c *Catalogue) Newest(group record.GroupID, last uint64) (cp Checkpoint, ok bool, err error) {
	return c.firstGood(group, true, max(1, c.lowest(group)), last)
}

func (c *Catalogue) firstGood(group record.GroupID, newest bool, first, last uint64) (cp Checkpoint, ok bool, err error) {
	err = c.listAll(group, newest, first, last, func(have *Checkpoint) bool {
		if ok = have.State == Good; ok {
			cp = *have
		}
		return !ok
	})
	return cp, ok, wrap(err)
}

// listAll gives all checkpoints in [first, last] to take, until it returns false.
func (c *Catalogue) listAll(group record.GroupID, newest bool, first, last uint64, take func(*Checkpoint) bool) (err error) {
	from, to := numbersOf(tableCheckpoints, group, first, last)
	bad := error(nil)
	err = c.scan(newest, from, to, func(k, v []byte) bool {
		var cp Checkpoint
		if cp, bad = parseCheckpoint(v, numberOf(k)); bad != nil {
			return false
		}
		return take(&cp)
	})
	return errors.Join(err, bad)
}

// listFew does the same for the special ones, of which each is looked up.
func (c *Catalogue) listFew(group record.GroupID, newest bool, first, last uint64, take func(*Checkpoint) bool) error {
	for first <= last {
		var numbers []uint64
		from, to := numbersOf(tableSpecial, group, first, last)
		err := c.scan(newest, from, to, func(k, _ []byte) bool {
			numbers = append(numbers, numberOf(k))
			return len(numbers) < portionCount
		})
		if err != nil {
			return err
		}
		for _, n := range numbers {
			cp, ok, err := c.Checkpoint(group, n)
			if err != nil {
				return err
			}
			if ok && !take(&cp) {
				return nil
			}
		}
		if len(numbers) < portionCount {
			return nil
		}
		if end := numbers[len(numbers)-1]; newest {
			last = end - 1
		} else {
			first = end + 1
		}
	}
	return nil
}

func (c *Catalogue) scan(back bool, from, to []byte, emit func(k, v []byte) bool) error {
	if back && !invariant.Planted("journal/index/newest-last") {
		return c.m.Back(from, to, emit)
	}
	return c.m.Scan(from, to, emit)
}

package index

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Catalogue is the list of checkpoints and segments of all groups of a store, on a
// Map. All methods may be called concurrently; what concerns one group is changed by
// one goroutine.
type Catalogue struct{ m Map }

// NewCatalogue returns the catalogue that m holds.
func NewCatalogue(m Map) *Catalogue { return &Catalogue{m: m} }

// Close closes the map.
func (c *Catalogue) Close() error { return c.m.Close() }

// Keys are a letter for the table, then big-endian numbers, so that they sort.
const (
	tableCheckpoints = 'c'
	tableSegments    = 's'
)

func key(table byte, group record.GroupID, number uint64) []byte {
	k := make([]byte, 0, 17)
	k = append(k, table)
	k = binary.BigEndian.AppendUint64(k, uint64(group))
	return binary.BigEndian.AppendUint64(k, number)
}

// rangeOf returns the keys of a group's table with numbers above after.
func rangeOf(table byte, group record.GroupID, after uint64) (from, to []byte) {
	from = append(key(table, group, after), 0)
	return from, append(key(table, group, math.MaxUint64), 0)
}

// Put enters checkpoints, or replaces them.
func (c *Catalogue) Put(group record.GroupID, cps ...Checkpoint) error {
	set := make([]Pair, len(cps))
	for i, cp := range cps {
		set[i] = Pair{Key: key(tableCheckpoints, group, cp.Number), Value: appendCheckpoint(nil, cp)}
	}
	return wrap(c.m.Update(set, nil))
}

// Checkpoint returns one checkpoint; ok is false when it is not there.
func (c *Catalogue) Checkpoint(group record.GroupID, number uint64) (cp Checkpoint, ok bool, err error) {
	v, ok, err := c.m.Get(key(tableCheckpoints, group, number))
	if err != nil || !ok {
		return Checkpoint{}, false, wrap(err)
	}
	cp, err = parseCheckpoint(v, number)
	return cp, err == nil, wrap(err)
}

// Checkpoints returns up to limit checkpoints with numbers above after, oldest first.
func (c *Catalogue) Checkpoints(group record.GroupID, after uint64, limit int) ([]Checkpoint, error) {
	var cps []Checkpoint
	var bad error
	if limit <= 0 {
		return nil, nil
	}
	from, to := rangeOf(tableCheckpoints, group, after)
	err := c.m.Scan(from, to, func(k, v []byte) bool {
		cp, err := parseCheckpoint(v, numberOf(k))
		if err != nil {
			bad = err
			return false
		}
		cps = append(cps, cp)
		return len(cps) < limit
	})
	if err == nil {
		err = bad
	}
	return cps, wrap(err)
}

// PutSegments enters the segments, or replaces them.
func (c *Catalogue) PutSegments(group record.GroupID, infos ...segment.Info) error {
	set := make([]Pair, len(infos))
	for i, s := range infos {
		set[i] = Pair{Key: key(tableSegments, group, s.Number), Value: appendSegment(nil, s)}
	}
	return wrap(c.m.Update(set, nil))
}

// Segments returns a group's segments by their numbers, oldest first.
func (c *Catalogue) Segments(group record.GroupID) ([]segment.Info, error) {
	var infos []segment.Info
	var bad error
	from, to := rangeOf(tableSegments, group, 0)
	err := c.m.Scan(from, to, func(k, v []byte) bool {
		s, err := parseSegment(v, numberOf(k))
		bad = err
		infos = append(infos, s)
		return err == nil
	})
	if err == nil {
		err = bad
	}
	return infos, wrap(err)
}

// Reconcile makes the catalogue say of the group exactly what is true, and returns
// how many entries it had to change. cps and infos are ordered by number.
func (c *Catalogue) Reconcile(group record.GroupID, cps []Checkpoint, infos []segment.Info) (changed int, err error) {
	if invariant.Planted("journal/index/trust-catalogue") {
		return 0, nil
	}
	want := make([]Pair, 0, len(infos))
	for _, s := range infos {
		want = append(want, Pair{Key: key(tableSegments, group, s.Number), Value: appendSegment(nil, s)})
	}
	n, err := c.reconcile(tableSegments, group, len(want), func(i int) Pair { return want[i] })
	if err != nil {
		return n, wrap(err)
	}
	m, err := c.reconcile(tableCheckpoints, group, len(cps), func(i int) Pair {
		return Pair{Key: key(tableCheckpoints, group, cps[i].Number), Value: appendCheckpoint(nil, cps[i])}
	})
	return n + m, wrap(err)
}

// reconcileBatch bounds the changes written at once.
const reconcileBatch = 1000

// reconcile walks what is there and what should be, both in order, and writes the
// difference.
func (c *Catalogue) reconcile(table byte, group record.GroupID, count int, want func(int) Pair) (changed int, err error) {
	var set []Pair
	var del [][]byte
	i := 0
	from, to := rangeOf(table, group, 0)
	err = c.m.Scan(from, to, func(k, v []byte) bool {
		for ; i < count; i++ {
			w := want(i)
			order := bytes.Compare(w.Key, k)
			if order > 0 {
				break
			}
			if order == 0 {
				i++
				if !bytes.Equal(w.Value, v) {
					set = append(set, w)
				}
				return true
			}
			set = append(set, w)
		}
		del = append(del, bytes.Clone(k))
		return true
	})
	for ; i < count; i++ {
		set = append(set, want(i))
	}
	changed = len(set) + len(del)
	for err == nil && len(set)+len(del) > 0 {
		s, d := min(len(set), reconcileBatch), min(len(del), reconcileBatch)
		err = c.m.Update(set[:s], del[:d])
		set, del = set[s:], del[d:]
	}
	return changed, err
}

func numberOf(key []byte) uint64 {
	if len(key) != 17 {
		return 0
	}
	return binary.BigEndian.Uint64(key[9:])
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("catalogue: %w", err)
}

package index

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Catalogue is the list of checkpoints and segments of all groups of a store, on a
// Map. All methods may be called concurrently.
type Catalogue struct {
	m Map

	mu     sync.Mutex
	groups map[record.GroupID]*listing
}

// listing is what the catalogue keeps in memory of a group.
type listing struct {
	sync.Mutex // one change at a time
	loaded     bool
	counts     Counts
	newest     uint64 // the highest number; 0: none
	// lowest is a number below which there is none: those that are gone lie on the disk
	// for a while, and would have to be stepped over.
	lowest atomic.Uint64
}

// NewCatalogue returns the catalogue that m holds.
func NewCatalogue(m Map) *Catalogue {
	return &Catalogue{m: m, groups: make(map[record.GroupID]*listing)}
}

// Close closes the map.
func (c *Catalogue) Close() error { return c.m.Close() }

// Keys are a letter for the table, then big-endian numbers, so that they sort.
const (
	tableCheckpoints = 'c'
	tableSpecial     = 'f' // the few that are tagged, pinned or not good; no value
	tableCovers      = 'm'
	tableCounts      = 'n'
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

// numbersOf returns the keys of a group's table with numbers in [first, last].
func numbersOf(table byte, group record.GroupID, first, last uint64) (from, to []byte) {
	return key(table, group, first), append(key(table, group, last), 0)
}

func numberOf(key []byte) uint64 {
	if len(key) != 17 {
		return 0
	}
	return binary.BigEndian.Uint64(key[9:])
}

// group returns what is kept of a group, locked and loaded; it is unlocked by the caller
// also after an error.
func (c *Catalogue) group(id record.GroupID) (*listing, error) {
	c.mu.Lock()
	l := c.groups[id]
	if l == nil {
		l = new(listing)
		c.groups[id] = l
	}
	c.mu.Unlock()
	l.Lock()
	if l.loaded {
		return l, nil
	}
	return l, c.load(id, l)
}

// lowest is a number below which the group has no checkpoint.
func (c *Catalogue) lowest(id record.GroupID) uint64 {
	c.mu.Lock()
	l := c.groups[id]
	c.mu.Unlock()
	if l == nil {
		return 0
	}
	return l.lowest.Load()
}

// load reads a group's counts; where they are missing or do not read they are counted anew.
func (c *Catalogue) load(id record.GroupID, l *listing) error {
	l.newest = 0
	lowest := uint64(math.MaxUint64)
	from, to := rangeOf(tableCheckpoints, id, 0)
	err := c.m.Back(from, to, func(k, _ []byte) bool { l.newest = numberOf(k); return false })
	if err == nil {
		err = c.m.Scan(from, to, func(k, _ []byte) bool { lowest = numberOf(k); return false })
	}
	if err != nil {
		return err
	}
	l.lowest.Store(lowest)
	v, ok, err := c.m.Get(key(tableCounts, id, 0))
	if err == nil && ok {
		l.counts, err = parseCounts(v)
		ok = err == nil
		err = nil
	}
	if err == nil && !ok {
		err = c.recount(id, l)
	}
	l.loaded = err == nil
	return err
}

// recount counts all of a group's checkpoints. Those that do not read are not counted.
func (c *Catalogue) recount(id record.GroupID, l *listing) error {
	l.counts = Counts{}
	from, to := rangeOf(tableCheckpoints, id, 0)
	return c.m.Scan(from, to, func(k, v []byte) bool {
		if cp, err := parseCheckpoint(v, numberOf(k)); err == nil {
			l.counts.add(cp.traits(), 1)
		}
		return true
	})
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

// Counts tells how many checkpoints of the group there are. It costs no scan.
func (c *Catalogue) Counts(group record.GroupID) (Counts, error) {
	l, err := c.group(group)
	defer l.Unlock()
	return l.counts, wrap(err)
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

// Covers tells how much of the group's log the catalogue tells; ok is false when that is
// not known, and the group is to be entered anew.
func (c *Catalogue) Covers(group record.GroupID) (covers Marker, ok bool) {
	v, ok, err := c.m.Get(key(tableCovers, group, 0))
	if err == nil && ok {
		covers, err = parseMarker(v)
	}
	return covers, ok && err == nil
}

// SetCovers states it. What was put before is there whenever the marker is.
func (c *Catalogue) SetCovers(group record.GroupID, covers Marker) error {
	return wrap(c.m.Update([]Pair{{Key: key(tableCovers, group, 0), Value: appendMarker(nil, covers)}}, nil))
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("catalogue: %w", err)
}

package index

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// ErrNoSpace says that the disk is too full for the catalogue, and memory holds as many
// changes as it may.
var ErrNoSpace = errors.New("too little space on the disk for the catalogue; free some")

// guarded is a Map on disk that is written only while there is space. Where there is not,
// changes wait in memory, and all that reads sees them; they go down once there is
// space again. On a disk that cannot be had at all everything is in memory.
type guarded struct {
	open  func() (Map, error) // the map on disk, as it stands
	anew  func() (Map, error) // the same, emptied
	roomy func(bytes int64) bool
	tidy  func(Map)
	limit int64 // bytes of changes in memory
	log   *slog.Logger

	mu      sync.RWMutex
	disk    Map                 // nil: there is none
	failed  bool                // a write to disk failed: nothing more is written to it
	over    sorted              // what disk does not hold
	unsaid  map[string]struct{} // of over, about whole groups: taken off the disk
	tending bool
	wrote   int64 // bytes since the disk was last looked at for tidying
	closed  bool
	tenders sync.WaitGroup
}

// tidyEvery is how many bytes are written between two looks at what lies on disk.
const tidyEvery = 1 << 20

// start opens the map on disk if there is space for that; without, what is on disk
// is not looked at, and made anew when there is.
func (g *guarded) start() {
	g.unsaid = make(map[string]struct{})
	if !g.roomy(openBytes) {
		g.log.Warn("the catalogue is kept in memory: too little space on its disk")
		return
	}
	disk, err := g.open()
	if err != nil {
		g.log.Warn("the catalogue is kept in memory: its folder does not open", "error", err)
		return
	}
	g.disk = disk
}

// Get implements Map.
func (g *guarded) Get(key []byte) (value []byte, ok bool, err error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if c, found := g.over.get(key); found {
		return c.value, !c.gone, nil
	}
	if g.disk == nil {
		return nil, false, nil
	}
	return g.disk.Get(key)
}

// Scan implements Map.
func (g *guarded) Scan(from, to []byte, emit func(key, value []byte) bool) error {
	return g.walk(false, from, to, emit)
}

// Back implements Map.
func (g *guarded) Back(from, to []byte, emit func(key, value []byte) bool) error {
	return g.walk(true, from, to, emit)
}

// walk merges what is in memory into what is on disk.
func (g *guarded) walk(back bool, from, to []byte, emit func(key, value []byte) bool) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	next, stop := iter.Pull(g.over.within(back, from, to))
	defer stop()
	c, more := next()
	going := true
	// upTo emits the changes that come before k, or all, and says whether k itself changed.
	upTo := func(k []byte) (changed bool) {
		for more && going {
			order := -1
			if k != nil {
				order = bytes.Compare(c.key, k)
			}
			if back && k != nil {
				order = -order
			}
			if order > 0 {
				return changed
			}
			if !c.gone {
				going = emit(c.key, c.value)
			}
			changed = order == 0
			c, more = next()
			if changed {
				return true
			}
		}
		return changed
	}
	if g.disk != nil {
		walk := g.disk.Scan
		if back {
			walk = g.disk.Back
		}
		if err := walk(from, to, func(k, v []byte) bool {
			if !upTo(k) && going {
				going = emit(k, v)
			}
			return going
		}); err != nil {
			return err
		}
	}
	upTo(nil)
	return nil
}

// Update implements Map. ErrNoSpace: neither the disk nor the memory has room.
func (g *guarded) Update(set []Pair, del [][]byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over.empty() && g.mayWriteLocked() {
		err := g.disk.Update(set, del)
		if err == nil {
			for _, p := range set {
				g.wrote += int64(len(p.Key) + len(p.Value))
			}
			g.tendLocked()
			return nil
		}
		g.failLocked(err)
	}
	bytes := g.over.bytes
	for _, p := range set {
		bytes += int64(len(p.Key)+len(p.Value)) + changeBytes
	}
	if bytes > g.limit && len(set) > 0 {
		g.tendLocked()
		return fmt.Errorf("%d MiB of changes wait in memory: %w", g.over.bytes>>20, ErrNoSpace)
	}
	for _, p := range set {
		g.over.set(change{key: append([]byte(nil), p.Key...), value: append([]byte(nil), p.Value...)})
	}
	for _, k := range del {
		g.over.set(change{key: append([]byte(nil), k...), gone: true})
	}
	g.tendLocked()
	return nil
}

// mayWriteLocked says whether the disk may be written.
func (g *guarded) mayWriteLocked() bool {
	return g.disk != nil && !g.failed && (g.roomy(0) || invariant.Planted("journal/index/write-when-full"))
}

// failLocked ends all writing to the disk until the store is opened again: what came to
// be there is whole, and what did not stays in memory.
func (g *guarded) failLocked(err error) {
	g.failed = true
	g.log.Error("the catalogue is kept in memory until the next start: its disk failed", "error", err)
}

// tendLocked has another goroutine write down what waits, and tidy what lies on disk.
func (g *guarded) tendLocked() {
	if g.tending || g.closed || g.failed || g.over.empty() && g.wrote < tidyEvery {
		return
	}
	g.tending, g.wrote = true, 0
	g.tenders.Go(func() {
		g.drain()
		g.mu.Lock()
		disk := g.disk
		may := disk != nil && !g.failed && !g.closed && g.over.empty()
		g.mu.Unlock()
		if may && g.tidy != nil {
			g.tidy(disk)
		}
		g.mu.Lock()
		g.tending = false
		g.mu.Unlock()
	})
}

// drain moves what waits in memory to the disk, as far as there is space.
func (g *guarded) drain() {
	for g.drainSome() {
	}
}

func (g *guarded) drainSome() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over.empty() || g.failed {
		return false
	}
	if g.disk == nil {
		if !g.roomy(openBytes) || !g.roomy(0) {
			return false
		}
		disk, err := g.anew()
		if err != nil {
			g.failLocked(err)
			return false
		}
		g.disk = disk
	}
	if !g.mayWriteLocked() {
		return false
	}
	set, del := g.portionLocked()
	if err := g.disk.Update(set, del); err != nil {
		g.failLocked(err)
		return false
	}
	g.landedLocked(set, del)
	return true
}

// portionLocked is what goes to the disk next. What is said about whole groups, their
// counts and how much is covered, goes last, and is taken off the disk before anything
// else: should this process end in between, it is found out anew.
func (g *guarded) portionLocked() (set []Pair, del [][]byte) {
	about, after, end := []byte{tableCovers}, []byte{tableCounts + 1}, []byte{0xff}
	for c := range g.over.within(false, about, after) {
		if _, ok := g.unsaid[string(c.key)]; !ok {
			g.unsaid[string(c.key)] = struct{}{}
			if del = append(del, c.key); len(del) == portionCount {
				break
			}
		}
	}
	if len(del) > 0 {
		return nil, del
	}
	bytes := 0
	for _, part := range [][2][]byte{{nil, about}, {after, end}, {about, after}} {
		if part[0] != nil && part[0][0] == tableCovers && len(set)+len(del) > 0 {
			break
		}
		for c := range g.over.within(false, part[0], part[1]) {
			if c.gone {
				del = append(del, c.key)
			} else {
				set = append(set, Pair{c.key, c.value})
			}
			if bytes += len(c.value); len(set)+len(del) >= portionCount || bytes >= portionBytes {
				return set, del
			}
		}
	}
	return set, del
}

// landedLocked forgets what is on disk now.
func (g *guarded) landedLocked(set []Pair, del [][]byte) {
	for _, p := range set {
		g.over.remove(p.Key)
		delete(g.unsaid, string(p.Key))
	}
	for _, k := range del {
		if c, ok := g.over.get(k); ok && c.gone {
			g.over.remove(k)
			delete(g.unsaid, string(k))
		}
	}
}

// Close implements Map. What the disk has no space for is not written: it is told to
// the catalogue again when the store opens.
func (g *guarded) Close() error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.tenders.Wait()
	g.drain()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.disk == nil {
		return nil
	}
	if !g.mayWriteLocked() || !g.over.empty() {
		if l, ok := g.disk.(interface{ leave() }); ok {
			l.leave()
		}
		return nil
	}
	return g.disk.Close()
}

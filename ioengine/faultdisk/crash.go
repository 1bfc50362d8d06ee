package faultdisk

import (
	"cmp"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Keep says what of the unsynced a crash leaves.
type Keep uint8

// What a crash may leave.
const (
	KeepNone Keep = iota // nothing that was not synced
	KeepSome             // any part: sector by sector, name by name
	KeepTorn             // all but the last change, and a part of that one
)

// Kill returns the disk as the next process finds it when this one is killed now:
// nothing is lost, what is unsynced still is, and locks are free. Faults and hook
// stay behind.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := cloner{files: map[*file]*file{}, folders: map[*folder]*folder{}, renames: map[*rename]*rename{}}
	k := New(d.align)
	k.mu.root, k.mu.clock, k.mu.free = c.folder(d.mu.root), d.mu.clock, d.mu.free
	return k
}

// Crash returns the disk as a machine finds it after a loss of power now: all that
// was synced, and of the rest what keep says and rng draws.
func (d *Disk) Crash(rng *rand.Rand, keep Keep) *Disk {
	k := d.Kill()
	c := crasher{rng: rng, keep: keep, odds: rng.Float64(), last: k.mu.clock}
	c.folder(k.mu.root, map[*folder]bool{})
	c.run()
	return k
}

// cloner copies a tree whose parts may be reached twice.
type cloner struct {
	files   map[*file]*file
	folders map[*folder]*folder
	renames map[*rename]*rename
}

func (c *cloner) folder(f *folder) *folder {
	if f == nil || c.folders[f] != nil {
		return c.folders[f]
	}
	k := newFolder()
	c.folders[f] = k
	for name, n := range f.now {
		k.now[name] = c.node(n)
	}
	for name, n := range f.durable {
		k.durable[name] = c.node(n)
	}
	for _, r := range f.pending {
		k.pending = append(k.pending, c.rename(r))
	}
	return k
}

func (c *cloner) node(n node) node {
	switch n := n.(type) {
	case *folder:
		return c.folder(n)
	case *file:
		k := c.files[n]
		if k == nil {
			k = &file{now: n.now.clone(), durable: n.durable.clone(), pending: slices.Clone(n.pending)}
			for i := range k.pending { // the kernel ends what it was given
				if k.pending[i].flying {
					k.pending[i].flying = false
					k.pending[i].apply(&k.now)
				}
			}
			c.files[n] = k
		}
		return k
	}
	return nil
}

func (c *cloner) rename(r *rename) *rename {
	if c.renames[r] != nil {
		return c.renames[r]
	}
	k := &rename{at: r.at, done: r.done}
	c.renames[r] = k
	for _, s := range r.sets {
		k.sets = append(k.sets, nameSet{c.folder(s.in), s.name, c.node(s.node)})
	}
	return k
}

// crasher gathers everything unsynced of a fresh copy, then settles it.
type crasher struct {
	rng     *rand.Rand
	keep    Keep
	odds    float64 // of a change to be kept, with KeepSome
	last    int     // the number of the last change
	renames []*rename
	files   []*file
	folders []*folder
}

func (c *crasher) folder(f *folder, seen map[*folder]bool) {
	if seen[f] {
		return
	}
	seen[f] = true
	c.folders = append(c.folders, f)
	for _, r := range f.pending {
		if !slices.Contains(c.renames, r) {
			c.renames = append(c.renames, r)
		}
	}
	visit := func(n node) {
		switch n := n.(type) {
		case *folder:
			c.folder(n, seen)
		case *file:
			if !slices.Contains(c.files, n) {
				c.files = append(c.files, n)
			}
		}
	}
	for _, names := range []map[string]node{f.now, f.durable} {
		for _, name := range slices.Sorted(maps.Keys(names)) { // in order, so that a seed says it all
			visit(names[name])
		}
	}
	for _, r := range f.pending {
		for _, s := range r.sets {
			visit(s.node)
		}
	}
}

func (c *crasher) run() {
	slices.SortStableFunc(c.renames, func(a, b *rename) int { return cmp.Compare(a.at, b.at) })
	for _, r := range c.renames {
		if c.keeps(r.at) {
			r.makeDurable()
		}
	}
	for _, f := range c.folders {
		f.now, f.pending = maps.Clone(f.durable), nil
	}
	for _, f := range c.files {
		for _, ch := range f.pending {
			c.settle(&f.durable, ch)
		}
		f.now, f.pending = f.durable.clone(), nil
	}
}

// keeps says whether an unsynced change that cannot tear is there after the crash.
func (c *crasher) keeps(at int) bool {
	switch c.keep {
	case KeepSome:
		return c.rng.Float64() < c.odds
	case KeepTorn:
		return at != c.last || c.rng.IntN(2) == 0
	}
	return false
}

func (c *crasher) settle(to *content, ch change) {
	switch {
	case c.keep == KeepNone && !invariant.Planted("ioengine/faultdisk/write-through"):
	case ch.kind == changeSize:
		if c.keeps(ch.at) {
			ch.apply(to)
		}
	case c.keep == KeepTorn && ch.at != c.last:
		ch.apply(to)
	case c.keep == KeepTorn && c.rng.IntN(2) == 0: // a beginning of it
		cut := c.rng.Int64N(ch.n/sectorBytes + 1)
		c.sectors(to, ch, func(i int64) bool { return i < cut })
	case c.keep == KeepTorn:
		c.sectors(to, ch, func(int64) bool { return c.rng.IntN(2) == 0 })
	default:
		c.sectors(to, ch, func(int64) bool { return c.rng.Float64() < c.odds })
	}
}

// sectors applies the sectors of a write or zeroing that keep picks by their number.
func (c *crasher) sectors(to *content, ch change, keep func(i int64) bool) {
	end := ch.off + ch.n
	for i, at := int64(0), ch.off; at < end; i++ {
		next := min(end, (at/sectorBytes+1)*sectorBytes)
		if keep(i) {
			part := ch
			part.off, part.n = at, next-at
			if ch.kind == changeWrite {
				part.data = ch.data[at-ch.off : next-ch.off]
			}
			part.apply(to)
		}
		at = next
	}
}

// Rot flips one bit of each of n bytes of the file from off on, as a disk does by
// itself: durably, and without an operation.
func (d *Disk) Rot(name string, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _, nd, err := d.findLocked(name)
	f, isFile := nd.(*file)
	if err == nil && nd == nil {
		err = fs.ErrNotExist
	}
	if err == nil && (!isFile || off < 0 || off+n > f.now.size) {
		err = syscall.EINVAL
	}
	if err != nil {
		return &fs.PathError{Op: "rot", Path: name, Err: err}
	}
	for at := off; at < off+n; at++ {
		var b [1]byte
		for _, c := range []*content{&f.now, &f.durable} {
			if c.read(b[:], at) == 1 {
				b[0] ^= 1 << (at % 8)
				c.write(b[:], at)
			}
		}
	}
	return nil
}

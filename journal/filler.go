package journal

import (
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// fillStages is how many times what the logs write at once a group puts into a replica at once: some
	// sixteen writes of the largest size.
	fillStages = 4
	// fillCount bounds the buffers of a store for that: two for each of two groups, one being filled
	// while the other is being written. More groups take turns.
	fillCount = 4
)

// filler puts records into replicas, in order: blocks are opened into one buffer while what stands in the one
// before is being written. In a buffer no block stands twice, and what covers blocks in part waits for
// all that came before, so that the order of writes under way does not matter.
type filler struct {
	pool    *buf.Pool
	replica func(record.VolumeID) *replica.Volume
	touched map[*replica.Volume]struct{}

	block   []byte // opened, of which extents want parts
	at      fill   // being filled
	written []replica.Change
	writing chan error // nil: nothing is being written
}

// fill is what goes into one volume at once.
type fill struct {
	volume  *replica.Volume
	mem     *buf.Buf // nil: empty
	used    int
	changes []replica.Change
	blocks  map[int64]uint8 // that have something here: a bit for each of a line's
}

// lineBlocks is how many blocks of a replica a line has: a bit each of a fill's.
const lineBlocks = record.LineBytes / replica.BlockBytes

var _ [8]byte = [lineBlocks]byte{}

// add takes one record's extents, in order. It borrows nothing beyond its return.
func (f *filler) add(rec record.Record) error {
	opened := -1
	for i := range rec.Extents {
		e := rec.Extent(i)
		v := f.replica(e.Volume)
		f.touched[v] = struct{}{}
		if e.Kind == record.ExtentZero {
			if err := f.alone(func() error { return v.Zero(e.Off, e.Len) }); err != nil {
				return err
			}
			continue
		}
		whole := e.Off%replica.BlockBytes == 0 && e.Len%replica.BlockBytes == 0
		if whole {
			if err := f.room(v, e); err != nil {
				return err
			}
		}
		if whole && e.Block != opened && int(e.Len) == rec.Block(e.Block).Raw { // all of the block: opened where it is written from
			if _, err := rec.OpenBlock(f.at.mem.Bytes()[f.at.used:f.at.used+int(e.Len):f.at.used+int(e.Len)], e.Block); err != nil {
				return err
			}
			f.took(e)
			continue
		}
		if e.Block != opened {
			var err error
			if f.block, err = rec.OpenBlock(f.block, e.Block); err != nil {
				return err
			}
			opened = e.Block
		}
		part := f.block[e.BlockOff : e.BlockOff+int(e.Len)]
		if !whole {
			if err := f.alone(func() error { return v.Write(part, e.Off) }); err != nil {
				return err
			}
			continue
		}
		copy(f.at.mem.Bytes()[f.at.used:], part)
		f.took(e)
	}
	return nil
}

// alone does what waits for all before it, and for which all behind it waits.
func (f *filler) alone(do func() error) error {
	if err := f.settle(); err != nil {
		return err
	}
	return do()
}

// room makes sure that the extent's blocks have room in the buffer, and have nothing in it yet.
func (f *filler) room(v *replica.Volume, e record.Extent) error {
	a := &f.at
	if a.mem != nil && (a.volume != v || a.used+int(e.Len) > a.mem.Cap() || a.blocks[e.Off/record.LineBytes]&blocksIn(e) != 0 && !invariant.Planted("journal/fill-twice")) {
		if err := f.flush(); err != nil {
			return err
		}
	}
	if a.mem == nil {
		a.volume, a.mem, a.used = v, f.pool.Get(), 0
	}
	return nil
}

// blocksIn are the bits of the blocks of its line that an extent covers.
func blocksIn(e record.Extent) uint8 {
	first, count := e.Off%record.LineBytes/replica.BlockBytes, e.Len/replica.BlockBytes
	return uint8((1<<count - 1) << first)
}

// took says that the extent's bytes stand behind the others.
func (f *filler) took(e record.Extent) {
	a := &f.at
	a.changes = append(a.changes, replica.Change{Off: e.Off, Len: e.Len, Data: a.mem.Bytes()[a.used : a.used+int(e.Len)]})
	a.used += int(e.Len)
	if a.blocks == nil {
		a.blocks = make(map[int64]uint8)
	}
	a.blocks[e.Off/record.LineBytes] |= blocksIn(e)
}

// flush begins to write what stands in the buffer, once what was before it is written.
func (f *filler) flush() error {
	if err := f.wait(); err != nil {
		return err
	}
	a := &f.at
	if a.mem == nil {
		return nil
	}
	v, mem, changes := a.volume, a.mem, a.changes
	done := make(chan error, 1)
	go func() {
		err := v.Fill(changes)
		mem.Release()
		done <- err
	}()
	f.writing = done
	a.mem, a.changes, f.written = nil, f.written[:0], changes
	clear(a.blocks)
	return nil
}

// wait waits for what is being written.
func (f *filler) wait() error {
	if f.writing == nil {
		return nil
	}
	err := <-f.writing
	f.writing = nil
	return err
}

// settle writes all that was taken, and waits until that is done.
func (f *filler) settle() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.wait()
}

// end leaves nothing under way and no buffer out, whatever came before.
func (f *filler) end() {
	_ = f.wait() // an error ended it, which was told
	if f.at.mem != nil {
		f.at.mem.Release()
		f.at = fill{}
	}
}

package stripe

import (
	"context"
	"io"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Scrub reads every shard and every copy there is. Shards with damaged blocks, and copies
// that cannot be read, are made anew, in new files. Copies that differ cannot be told apart
// here: whoever knows their checksums reads the others by ReadCopy.
func (s *Set) Scrub(ctx context.Context, pace Pace) error {
	return s.work(ctx, "scrub", pace, s.scrubObject, func() error { return nil })
}

func (s *Set) scrubObject(o *object, pace Pace) error {
	h, err := o.open(ioengine.ReadOnly, false)
	if err != nil {
		return err
	}
	o.layout.RLock()
	info := o.info
	o.layout.RUnlock()
	var hurt []int
	if m, ok := h.(*handle); ok {
		hurt, err = o.scrubCopies(info, m, pace)
	} else {
		hurt, err = o.scrubShards(info, pace)
	}
	h.Close() // opened for reading
	for _, i := range hurt {
		if err == nil {
			err = s.remake(o, info, i, pace)
		}
	}
	return err
}

// remake makes a damaged copy or shard anew on its store, if that still has it.
func (s *Set) remake(o *object, info *objectInfo, i int, pace Pace) error {
	o.moving.Lock()
	defer o.moving.Unlock()
	id := info.places[i]
	s.mu.Lock()
	now := s.names.objects[o.id]
	there := now != nil && now.Geometry == info.Geometry && s.names.holds(id)
	if there && info.striped() {
		there = now.places[i] == id
	} else if there {
		there = slices.Contains(now.places, id)
	}
	if there || invariant.Planted("journal/stripe/remade-where-it-was") {
		s.chosen[id]++
		defer s.endChoice([]uint32{id})
	} else {
		id = 0
	}
	s.mu.Unlock()
	if id == 0 {
		return nil
	}
	var err error
	if info.striped() {
		err = o.makeShard(info.Geometry, i, id, pace)
	} else {
		err = o.addCopy(id, pace)
	}
	if err == nil {
		s.log.Warn("damage in a store is repaired", "store", s.store(id).dir, "file", s.nameOf(o))
	}
	return err
}

// scrubShards returns the shards with damaged blocks or tables.
func (o *object) scrubShards(info *objectInfo, pace Pace) (hurt []int, err error) {
	b := buf.Aligned(BlockBytes)
	for shard, id := range info.places {
		if id == 0 || o.set.isOut(id) {
			continue
		}
		whole := o.tableWhole(info, shard)
		for row := 0; whole; row++ {
			ok, more, err := o.scrubBlock(info, b, row, shard)
			if err != nil {
				return hurt, err
			}
			if !more {
				break
			}
			whole = ok
			if err := pace.spend(BlockBytes); err != nil {
				return hurt, err
			}
		}
		if !whole {
			hurt = append(hurt, shard)
		}
	}
	return hurt, nil
}

// tableWhole says whether a shard's own table is what was written.
func (o *object) tableWhole(info *objectInfo, shard int) bool {
	o.layout.RLock()
	defer o.layout.RUnlock()
	ss, err := o.getShards()
	if err != nil || o.info.Geometry != info.Geometry || ss.files[shard] == nil {
		return err != nil || o.info.Geometry != info.Geometry
	}
	t, err := readTable(ss.files[shard], 0)
	return err == nil && t.shard == shard && t.id == ss.table.id && slices.Equal(t.sums, ss.table.sums)
}

func (o *object) scrubBlock(info *objectInfo, b []byte, row, shard int) (ok, more bool, err error) {
	o.layout.RLock()
	defer o.layout.RUnlock()
	if o.info.Geometry != info.Geometry || o.gone.Load() {
		return false, false, errMoved
	}
	ss, err := o.getShards()
	if err != nil || row >= ss.table.stripes() {
		return false, false, err
	}
	return ss.block(b, row, shard), true, nil
}

// scrubCopies returns which copies cannot be read, if another can.
func (o *object) scrubCopies(info *objectInfo, h *handle, pace Pace) (hurt []int, err error) {
	if info.striped() { // meanwhile
		return nil, errMoved
	}
	b := buf.Aligned(fillChunk)
	whole := 0
	for i, id := range info.places {
		if o.set.isOut(id) {
			continue
		}
		ok := true
		for off := int64(0); ok; off += fillChunk {
			n, err := o.readCopy(h, id, b, off)
			if err == io.EOF {
				break
			}
			ok = err == nil
			if err := pace.spend(n); err != nil {
				return nil, err
			}
		}
		if ok {
			whole++
		} else {
			hurt = append(hurt, i)
			o.set.readFailed(id)
		}
	}
	if whole == 0 {
		return nil, ErrLost
	}
	return hurt, nil
}

func (o *object) readCopy(h *handle, id uint32, p []byte, off int64) (int, error) {
	o.layout.RLock()
	defer o.layout.RUnlock()
	if o.info.striped() || o.gone.Load() || !slices.Contains(o.info.places, id) { // moved elsewhere: nothing is hurt
		return 0, io.EOF
	}
	f, err := h.copy(id)
	if err != nil {
		return 0, err
	}
	return f.ReadAt(p, off)
}

// Copies returns how many ways there are to read a file: its copies, or 1 for one that is
// striped, whose blocks are verified as they are read.
func (s *Set) Copies(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.names.objects[s.names.files[clean(name)]]
	switch {
	case o == nil:
		return 0
	case o.striped():
		return 1
	}
	return o.left(s.names.holds) + 1
}

// ReadCopy reads a file's copy of that number, from 0. It is for whoever knows what the bytes
// should be and found that the ones that are served are not.
func (s *Set) ReadCopy(name string, number int, p []byte, off int64) (int, error) {
	f, err := s.Open(name, ioengine.ReadOnly)
	if err != nil {
		return 0, err
	}
	defer f.Close() // opened for reading
	h, ok := f.(*handle)
	if !ok {
		return f.ReadAt(p, off)
	}
	h.object.layout.RLock()
	ids := h.members()
	h.object.layout.RUnlock()
	if number < 0 || number >= len(ids) {
		return 0, pathError("read", name, ErrLost)
	}
	return h.object.readCopy(h, ids[number], p, off)
}

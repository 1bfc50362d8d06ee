package stripe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// fillChunk is how much of a file is copied at once: its writers wait so long.
const fillChunk = 1 << 20

// tempSuffix marks a copy or shard that is not whole yet.
const tempSuffix = ".new"

// addCopy makes a copy of a mirrored object on one more store, beside its writers: these
// write to it too, and each chunk is copied while none of them does. When it is durable it
// takes its name, and then the names say so, durably. On a store that has a copy already,
// the new one takes its place.
func (o *object) addCopy(id uint32, pace Pace) error {
	src, err := o.open(ioengine.ReadOnly, false)
	if err != nil {
		return err
	}
	defer src.Close() // opened for reading
	from, ok := src.(*handle)
	if !ok {
		return errMoved
	}
	if err := o.beginFill(id); err != nil {
		return err
	}
	err = o.copyChunks(from, id, pace)
	if err == nil {
		err = o.endFill(from, id)
	}
	o.layout.Lock()
	f, name := o.fill, o.info.fileName()+tempSuffix
	o.fill = nil
	o.layout.Unlock()
	if f != nil { // it came to nothing
		o.set.discard(leaver{id, name})
		return errors.Join(err, f.file.Close())
	}
	if err != nil {
		return err
	}
	o.set.naming.Lock()
	defer o.set.naming.Unlock()
	return o.set.sync()
}

func (o *object) beginFill(id uint32) error {
	o.layout.Lock()
	defer o.layout.Unlock()
	switch {
	case o.gone.Load() || o.info.striped() || o.sealing || o.fill != nil:
		return errMoved
	}
	fsys, name := o.set.objectPath(id, o.info.fileName()+tempSuffix)
	if err := removeIfThere(fsys, name); err != nil {
		return o.blame(id, err)
	}
	f, err := fsys.Open(name, ioengine.Create|ioengine.Exclusive)
	if err != nil {
		return o.blame(id, err)
	}
	o.fill = &fill{member: id, file: f}
	return nil
}

// blame marks out the store that failed. With layout held.
func (o *object) blame(id uint32, err error) error {
	return errors.Join(err, o.settle([]uint32{0, id}, failures{id: err}))
}

// copyChunks copies what the object holds; holes stay holes.
func (o *object) copyChunks(from *handle, id uint32, pace Pace) error {
	p := buf.Aligned(fillChunk)
	for off := int64(0); ; {
		o.layout.Lock()
		next, n, err := o.copyChunk(from, id, off, p)
		o.layout.Unlock()
		if err != nil || n == 0 {
			return err
		}
		off = next
		if err := pace.spend(2 * n); err != nil {
			return err
		}
	}
}

// copyChunk copies the next data at or after off; n is 0 when there is none. With layout held for writing.
func (o *object) copyChunk(from *handle, id uint32, off int64, p []byte) (next int64, n int, err error) {
	if o.gone.Load() {
		return 0, 0, errMoved
	}
	var at, length int64
	err = o.fromAny(from, id, func(f ioengine.File) (err error) {
		if at, length, err = f.NextData(off); err != nil || length == 0 {
			return err
		}
		n = int(min(length, fillChunk-at%fillChunk))
		_, err = f.ReadAt(p[:n], at)
		return err
	})
	if err != nil || length == 0 {
		return 0, 0, err
	}
	if _, err := o.fill.file.WriteAt(p[:n], at); err != nil {
		return 0, 0, o.blame(id, err)
	}
	return at + int64(n), n, nil
}

// fromAny reads from the first copy that can, but not from the one that is replaced.
func (o *object) fromAny(from *handle, not uint32, do func(ioengine.File) error) error {
	failed := failures{}
	for _, id := range o.members() {
		if id == not {
			continue
		}
		f, err := from.copy(id)
		if err == nil {
			err = do(f)
		}
		if err == nil || err == io.EOF {
			return nil
		}
		failed[id] = err
	}
	if len(failed) == 0 {
		return ErrLost
	}
	return failed.err()
}

// endFill makes the new copy durable and one of the object's.
func (o *object) endFill(from *handle, id uint32) error {
	if err := o.fill.file.Sync(); err != nil { // most of it beside the writers
		o.layout.RLock()
		defer o.layout.RUnlock()
		return o.blame(id, err)
	}
	o.layout.Lock()
	defer o.layout.Unlock()
	f := o.fill
	if f.err != nil || o.gone.Load() {
		return errors.Join(errMoved, f.err)
	}
	var size int64
	err := o.fromAny(from, id, func(f ioengine.File) (err error) {
		size, err = f.Size()
		return err
	})
	if err != nil {
		return err
	}
	if err := o.finishFill(f, id, size); err != nil {
		return o.blame(id, err)
	}
	if slices.Contains(o.info.places, id) {
		if o.replaced == nil {
			o.replaced = map[uint32]int{}
		}
		o.replaced[id]++
	} else {
		o.place(func(i *objectInfo) { i.places = append(i.places, id) })
	}
	o.fill = nil
	return nil
}

// finishFill gives the new copy its size and its name. It closes it.
func (o *object) finishFill(f *fill, id uint32, size int64) error {
	st := o.set.store(id)
	if err := f.file.Truncate(size); err != nil {
		return err
	}
	if !invariant.Planted("journal/stripe/fill-unsynced") {
		if err := f.file.Sync(); err != nil {
			return err
		}
	}
	name := path.Join(st.dir, objectsName, o.info.fileName())
	if err := st.fs.Rename(name+tempSuffix, name); err != nil {
		return err
	}
	if err := st.fs.SyncDir(path.Join(st.dir, objectsName)); err != nil {
		return err
	}
	return f.file.Close()
}

// dropCopies takes copies away that are not wanted, when enough others are there.
func (o *object) dropCopies(stale []uint32) error {
	o.layout.Lock()
	if o.gone.Load() || o.info.striped() {
		o.layout.Unlock()
		return errMoved
	}
	var ls []leaver
	o.place(func(i *objectInfo) {
		i.places = slices.DeleteFunc(i.places, func(id uint32) bool {
			drop := slices.Contains(stale, id)
			if drop {
				ls = append(ls, leaver{id, i.fileName()})
			}
			return drop
		})
	})
	o.layout.Unlock()
	s := o.set
	s.mu.Lock()
	s.trash = append(s.trash, ls...)
	s.mu.Unlock()
	s.naming.Lock()
	defer s.naming.Unlock()
	return s.sync()
}

// smallBytes is up to where copies are made alike while whoever opens the file waits.
const smallBytes = 64 << 20

// alike makes the copies of an object alike before it is written again, when a crash or a
// failed write may have left them different in what was not synced. In a large file it is
// left to Mend.
func (o *object) alike() error {
	o.layout.RLock()
	needed := (o.suspect || o.poison.Load() != nil) && !o.info.striped() && len(o.members()) > 1
	o.layout.RUnlock()
	if !needed || invariant.Planted("journal/stripe/copies-differ") {
		return nil
	}
	h, err := o.openAll()
	if err != nil {
		return err
	}
	size, err := h.Size()
	if err == nil && size <= smallBytes {
		err = o.level(h, nil)
	}
	return errors.Join(err, h.Close())
}

// openAll opens every copy, for alike alone.
func (o *object) openAll() (*handle, error) {
	h := &handle{object: o, files: map[uint32]ioengine.File{}, seen: map[uint32]int{}, align: 1}
	o.layout.Lock()
	defer o.layout.Unlock()
	if o.gone.Load() || o.info.striped() {
		return nil, errMoved
	}
	ids := o.members()
	failed := failures{}
	for _, id := range ids {
		f, err := o.openOn(id, 0)
		if err != nil {
			failed[id] = err
			continue
		}
		h.files[id], h.seen[id] = f, o.replaced[id]
	}
	if err := o.settle(ids, failed); err != nil {
		return nil, errors.Join(err, h.closeFiles())
	}
	o.writers++
	return h, nil
}

// level copies the first copy over the others wherever they differ. What was synced does not
// differ, but for rot: a copy that cannot be read changes no other, and is written over, for
// it may have been the one that differs.
func (o *object) level(h *handle, pace Pace) error {
	a, b := buf.Aligned(fillChunk), buf.Aligned(fillChunk)
	for off := int64(0); ; off += fillChunk {
		o.layout.Lock()
		n, err := o.levelChunk(h, off, a, b)
		if err == nil && n < fillChunk {
			err = o.levelEnd(h, off+int64(n))
			o.layout.Unlock()
			return err
		}
		o.layout.Unlock()
		if err != nil {
			return err
		}
		if err := pace.spend(2 * n); err != nil {
			return err
		}
	}
}

// levelChunk makes one chunk alike and returns how long it is. With layout held for writing.
func (o *object) levelChunk(h *handle, off int64, a, b []byte) (int, error) {
	ids := o.members()
	have, first := -1, uint32(0)
	for _, id := range ids {
		f, err := h.copy(id)
		if err != nil {
			return 0, err
		}
		n, err := f.ReadAt(a, off)
		if err == nil || err == io.EOF {
			have, first = n, id
			break
		}
		o.set.readFailed(id)
	}
	if have < 0 {
		return 0, fmt.Errorf("%s at %d: no copy can be read: %w", o.set.nameOf(o), off, ErrLost)
	}
	failed := failures{}
	for _, id := range ids {
		f, err := h.copy(id)
		if id == first || err != nil {
			continue
		}
		n, err := f.ReadAt(b, off)
		unread := err != nil && err != io.EOF
		if unread && invariant.Planted("journal/stripe/unread-is-alike") {
			continue
		}
		if have == 0 || !unread && n >= have && bytes.Equal(a[:have], b[:have]) {
			continue
		}
		if _, err := f.WriteAt(a[:have], off); err != nil {
			failed[id] = err
		}
	}
	return have, o.settle(ids, failed)
}

// levelEnd gives all copies one size and makes them durable. With layout held for writing.
func (o *object) levelEnd(h *handle, size int64) error {
	ids := o.members()
	failed := onEach(ids, func(id uint32) error {
		f, err := h.copy(id)
		if err != nil {
			return err
		}
		n, err := f.Size()
		if err == nil && n != size {
			err = f.Truncate(size)
		}
		if err != nil {
			return err
		}
		return f.Sync()
	})
	if err := o.settle(ids, failed); err != nil {
		return err
	}
	o.suspect = false
	o.poison.Store(nil)
	o.dirty.Store(o.info.dirty)
	return nil
}

// makeShard makes one shard of a striped object anew on a store: copied block by block where
// the old one is whole, else computed; durable before it takes its name, and then the names
// change.
func (o *object) makeShard(g Geometry, shard int, id uint32, pace Pace) error {
	h, err := o.open(ioengine.ReadOnly, false)
	if err != nil {
		return err
	}
	defer h.Close() // opened for reading
	o.layout.RLock()
	info := o.info
	o.layout.RUnlock()
	if info.Geometry != g {
		return errMoved
	}
	fsys, name := o.set.objectPath(id, info.fileName()+tempSuffix)
	if err := o.writeShard(info, shard, fsys, name, pace); err != nil {
		o.set.discard(leaver{id, info.fileName() + tempSuffix})
		return err
	}
	st := o.set.store(id)
	if err := fsys.Rename(name, path.Join(st.dir, objectsName, info.fileName())); err != nil {
		return err
	}
	if err := fsys.SyncDir(path.Join(st.dir, objectsName)); err != nil {
		return err
	}
	return o.placeShard(info, shard, id)
}

func (o *object) writeShard(info *objectInfo, shard int, fsys ioengine.FS, name string, pace Pace) (err error) {
	if err := removeIfThere(fsys, name); err != nil {
		return err
	}
	f, err := fsys.Open(name, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := buf.Aligned(BlockBytes)
	var t table
	for row := 0; row == 0 || row < t.stripes(); row++ {
		p, err := o.shardBlock(info, b, row, shard, &t)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(p, int64(t.bytes())+int64(row)*BlockBytes); err != nil {
			return err
		}
		if err := pace.spend(2 * BlockBytes); err != nil {
			return err
		}
	}
	t.shard = shard
	p := buf.Aligned(t.bytes())
	t.put(p)
	if _, err := f.WriteAt(p, 0); err != nil {
		return err
	}
	return f.Sync()
}

// shardBlock returns one whole block while the object lies as info says.
func (o *object) shardBlock(info *objectInfo, b []byte, row, shard int, t *table) ([]byte, error) {
	o.layout.RLock()
	defer o.layout.RUnlock()
	if o.info.Geometry != info.Geometry || o.gone.Load() {
		return nil, errMoved
	}
	ss, err := o.getShards()
	if err != nil {
		return nil, err
	}
	*t = *ss.table
	return ss.whole(b, row, shard)
}

func (o *object) placeShard(info *objectInfo, shard int, id uint32) error {
	o.layout.Lock()
	if o.gone.Load() || o.info.Geometry != info.Geometry {
		o.layout.Unlock()
		return fs.ErrNotExist
	}
	old := o.info.places[shard]
	if old != id {
		o.place(func(i *objectInfo) { i.places[shard] = id })
	}
	o.shards.close()
	o.layout.Unlock()
	s := o.set
	if old != id && old != 0 {
		s.mu.Lock()
		s.trash = append(s.trash, leaver{old, info.fileName()})
		s.mu.Unlock()
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	return s.sync()
}

package stripe

import (
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

// ErrBusy says that a file is open for writing, or was since its sealing began.
var ErrBusy = errors.New("file is open for writing")

// rowsAtOnce is how many rows of a stripe are written together.
const rowsAtOnce = 8

// Seal lays a file that will not change any more in stripes of the set's geometry. Its
// copies go when the shards are durable, were read back, and the names say so, durably. With
// a geometry of copies alone there is nothing to do. The file must have been verified. What
// cannot be sealed now, because too few stores are in (nil) or it is still open for writing
// (ErrBusy), Mend seals.
//
//  1. No writer may come any more.
//  2. The shards are written to a store each, synced, their names synced, read back.
//  3. The names change; once they are durable the copies are removed. A crash before that
//     leaves shards that no name refers to, and the copies.
func (s *Set) Seal(name string, pace Pace) error {
	if err := s.seal(clean(name), pace); err != nil {
		return fmt.Errorf("seal %s: %w", name, err)
	}
	return nil
}

func (s *Set) seal(name string, pace Pace) error {
	if err := s.canWrite(); err != nil {
		return err
	}
	s.mu.Lock()
	g := s.names.geometry
	id, there := s.names.files[name]
	o := s.objects[id]
	outs := len(s.names.outs())
	s.mu.Unlock()
	if !there {
		return fs.ErrNotExist
	}
	if g.K == 1 {
		return nil
	}
	if done, err := o.beginSeal(g); done || err != nil {
		return err
	}
	defer o.endSeal()
	src, err := o.open(ioengine.ReadOnly, false)
	if err != nil {
		return err
	}
	defer src.Close() // opened for reading
	size, err := src.Size()
	if err != nil || size == 0 {
		return err
	}
	s.mu.Lock()
	info := &objectInfo{Geometry: g, id: id, length: size, places: s.choose(id, g.width(), nil)}
	s.mu.Unlock()
	defer s.endChoice(slices.Clone(info.places))
	if len(info.places) < g.width()-outs || len(info.places) < g.K {
		return nil // too few stores: it keeps its copies
	}
	info.places = append(info.places, make([]uint32, g.width()-len(info.places))...) // parity shards that a later Mend makes
	if err := s.writeShards(info, src, pace); err != nil {
		s.throwAway(info)
		return err
	}
	if err := o.becomeStriped(info); err != nil {
		s.throwAway(info)
		return err
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	return s.sync()
}

// beginSeal keeps writers out. It says whether there is nothing to do.
func (o *object) beginSeal(g Geometry) (done bool, err error) {
	o.layout.Lock()
	defer o.layout.Unlock()
	switch {
	case o.gone.Load():
		return false, fs.ErrNotExist
	case o.info.striped() && o.info.Geometry == g || o.sealing && !o.rewrites:
		return true, nil
	case o.writers > 0 || o.fill != nil || o.sealing && !invariant.Planted("journal/stripe/two-seals"):
		o.unsealed = true
		return false, ErrBusy
	}
	o.sealing, o.rewrites, o.unsealed = true, false, true // until it is striped
	return false, nil
}

func (o *object) endSeal() {
	o.layout.Lock()
	defer o.layout.Unlock()
	o.sealing = false
	if o.unsealed && o.rewrites { // who asked for it again was refused
		o.set.kick()
	}
}

// becomeStriped changes the names; the copies go with the next sync of these.
func (o *object) becomeStriped(info *objectInfo) error {
	o.layout.Lock()
	defer o.layout.Unlock()
	if o.gone.Load() {
		return fs.ErrNotExist
	}
	if o.rewrites {
		return ErrBusy
	}
	for i, id := range info.places { // a store may have gone out since, though its open files took all
		if id != 0 && o.set.isOut(id) {
			info.places[i] = 0
		}
	}
	if slices.Contains(info.places, 0) {
		o.set.kick()
	}
	old := leavers(o.info)
	if invariant.Planted("journal/stripe/copies-first") {
		for _, l := range old {
			o.set.discard(l)
		}
	}
	o.place(func(i *objectInfo) {
		i.Geometry, i.length, i.places, i.dirty = info.Geometry, info.length, info.places, false
	})
	o.shards.close()
	o.suspect, o.unsealed = false, false
	o.set.mu.Lock()
	defer o.set.mu.Unlock()
	o.set.trash = append(o.set.trash, old...)
	return nil
}

// throwAway removes shards that did not come to be.
func (s *Set) throwAway(info *objectInfo) {
	for _, l := range leavers(info) {
		s.discard(l)
	}
}

// shardWriter writes the shard files of an object, row by row.
type shardWriter struct {
	set   *Set
	info  *objectInfo
	table *table
	code  *code
	files map[uint32]ioengine.File
	rows  [][]byte // of each shard, rowsAtOnce blocks
}

// writeShards makes the shard files of info from src, durable and read back. A store that
// fails is marked out, and its shard is missing.
func (s *Set) writeShards(info *objectInfo, src io.ReaderAt, pace Pace) (err error) {
	c, err := newCode(info.Geometry)
	if err != nil {
		return err
	}
	w := &shardWriter{set: s, info: info, code: c, files: map[uint32]ioengine.File{}}
	w.table = &table{Geometry: info.Geometry, id: info.identity(s.names.set), length: info.length}
	w.table.sums = make([]uint32, w.table.stripes()*w.table.width())
	for range info.places {
		w.rows = append(w.rows, buf.Aligned(rowsAtOnce*BlockBytes))
	}
	defer func() {
		for _, f := range w.files {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := w.each(func(id uint32, _ int) error { return w.create(id) }); err != nil {
		return err
	}
	for row := 0; row < w.table.stripes(); row += rowsAtOnce {
		if err := w.write(src, row, min(rowsAtOnce, w.table.stripes()-row), pace); err != nil {
			return err
		}
	}
	if err := w.each(w.finish); err != nil {
		return err
	}
	return w.each(func(id uint32, shard int) error { return w.readBack(id, shard, pace) })
}

// each does something for every shard that has a store. A store that fails is marked out.
func (w *shardWriter) each(do func(id uint32, shard int) error) error {
	var ids []uint32
	shardOf := map[uint32]int{}
	for i, id := range w.info.places {
		if id != 0 {
			ids = append(ids, id)
			shardOf[id] = i
		}
	}
	failed := onEach(ids, func(id uint32) error { return do(id, shardOf[id]) })
	if len(failed) == 0 {
		return nil
	}
	left := len(ids) - len(failed)
	if err := failed.ours(); err != nil {
		return err
	}
	if left == 0 {
		return failed.err()
	}
	ours := map[uint32]bool{}
	for id := range failed {
		ours[id] = true
	}
	if err := w.set.markOut(failed); err != nil {
		return err
	}
	for i, id := range w.info.places {
		if ours[id] {
			w.info.places[i] = 0
		}
	}
	if left < w.info.K {
		return fmt.Errorf("%d shards of %s are left: %w", left, w.info.Geometry, ErrLost)
	}
	return nil
}

func (s *Set) objectPath(id uint32, name string) (ioengine.FS, string) {
	st := s.store(id)
	return st.fs, path.Join(st.dir, objectsName, name)
}

func (w *shardWriter) create(id uint32) error {
	fsys, name := w.set.objectPath(id, w.info.fileName())
	if err := removeIfThere(fsys, name); err != nil {
		return err
	}
	f, err := fsys.Open(name, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
	if err != nil {
		return err
	}
	w.set.mu.Lock()
	w.files[id] = f
	w.set.mu.Unlock()
	return nil
}

// write encodes some rows and writes each shard's part.
func (w *shardWriter) write(src io.ReaderAt, row, rows int, pace Pace) error {
	blocks := make([][]byte, w.table.width())
	for r := range rows {
		for i := range blocks {
			blocks[i] = w.rows[i][r*BlockBytes:][:BlockBytes]
		}
		for i := range w.table.K {
			at := (int64(row+r)*int64(w.table.K) + int64(i)) * BlockBytes
			if at >= w.table.length {
				clear(blocks[i])
				continue
			}
			if err := readPadded(src, blocks[i], at, w.table.length); err != nil {
				return err
			}
		}
		if err := w.code.encode(blocks); err != nil {
			return err
		}
		for i, b := range blocks {
			w.table.of(row + r)[i] = w.table.id.sum(row+r, i, b)
		}
	}
	err := w.each(func(id uint32, shard int) error {
		_, err := w.files[id].WriteAt(w.rows[shard][:rows*BlockBytes], int64(w.table.bytes())+int64(row)*BlockBytes)
		return err
	})
	if err != nil {
		return err
	}
	return pace.spend(rows * BlockBytes * w.table.width())
}

// finish gives the shard file its table and makes it durable.
func (w *shardWriter) finish(id uint32, shard int) error {
	t := *w.table
	t.shard = shard
	p := buf.Aligned(t.bytes())
	t.put(p)
	f := w.files[id]
	if _, err := f.WriteAt(p, 0); err != nil {
		return err
	}
	if !invariant.Planted("journal/stripe/shard-unsynced") {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	st := w.set.store(id)
	return st.fs.SyncDir(path.Join(st.dir, objectsName))
}

// readBack verifies the shard as it is on the store.
func (w *shardWriter) readBack(id uint32, shard int, pace Pace) error {
	fsys, name := w.set.objectPath(id, w.info.fileName())
	f, err := fsys.Open(name, ioengine.ReadOnly|ioengine.Direct)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading
	t, err := readTable(f, 0)
	if err != nil {
		return err
	}
	b := buf.Aligned(BlockBytes)
	for row := range t.stripes() {
		if err := readPadded(f, b, int64(t.bytes())+int64(row)*BlockBytes, int64(t.bytes())+int64(row+1)*BlockBytes); err != nil {
			return err
		}
		if t.id.sum(row, shard, b) != w.table.of(row)[shard] {
			return corrupt("shard %d: row %d is not what was written", shard, row)
		}
		if err := pace.spend(len(b)); err != nil {
			return err
		}
	}
	return nil
}

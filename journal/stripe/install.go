package stripe

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// failures says which members failed at something, and how.
type failures map[uint32]error

func (f failures) err() error {
	var err error
	for _, id := range slices.Sorted(maps.Keys(f)) {
		err = errors.Join(err, f[id])
	}
	return err
}

// onEach runs do for each member at once and returns which failed.
func onEach(ids []uint32, do func(id uint32) error) failures {
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids[1:] {
		wg.Go(func() { errs[i+1] = do(id) })
	}
	errs[0] = do(ids[0])
	wg.Wait()
	var failed failures
	for i, err := range errs {
		if err != nil {
			if failed == nil {
				failed = failures{}
			}
			failed[ids[i]] = err
		}
	}
	return failed
}

// ins returns the members that are not out.
func (s *Set) ins() (ids []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.names.members)) {
		if s.names.holds(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// canWrite says why the set takes nothing more.
func (s *Set) canWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.canWriteLocked()
}

func (s *Set) canWriteLocked() error {
	if s.closed {
		return errClosed
	}
	return s.lost
}

var errClosed = errors.New("stores are closed")

// survive says what would be lost were these members out too.
func (s *Set) survive(out []uint32, why failures) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	holds := func(id uint32) bool { return s.names.holds(id) && !slices.Contains(out, id) }
	all := s.names.outs()
	for _, id := range out {
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	var dirs []string
	for _, id := range all {
		if m := s.names.members[id]; m != nil {
			dirs = append(dirs, m.dir)
		}
	}
	gone, first := 0, ""
	for _, o := range s.names.objects {
		if o.left(holds) < 0 {
			if gone++; first == "" || o.name < first {
				first = o.name
			}
		}
	}
	switch {
	case gone > 0:
		return fmt.Errorf("%s out: %d files cannot be read, %s the first: %w", strings.Join(dirs, ", "), gone, first, errors.Join(ErrLost, why.err()))
	case len(all) > s.names.geometry.M || len(all) == len(s.names.members):
		return fmt.Errorf("%s out, one more than %s can lose: %w", strings.Join(dirs, ", "), s.names.geometry, errors.Join(ErrLost, why.err()))
	}
	return nil
}

// markOut takes members that failed out of the set, durably, before it returns. An error
// says that this cannot be: what they failed at has failed.
func (s *Set) markOut(failed failures) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	return s.markOutLocked(failed)
}

// markOutLocked is markOut with naming held.
func (s *Set) markOutLocked(failed failures) error {
	for id := range failed {
		if s.isOut(id) {
			delete(failed, id)
		}
	}
	if len(failed) == 0 {
		return s.canWrite()
	}
	if err := s.canWrite(); err != nil {
		return err
	}
	if err := s.drop(failed); err != nil {
		return err
	}
	if invariant.Planted("journal/stripe/out-unsaid") {
		return nil
	}
	return s.install()
}

func (s *Set) isOut(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.names.holds(id)
}

// drop notes that members are out, if the set survives it.
func (s *Set) drop(failed failures) error {
	if err := failed.ours(); err != nil {
		return err
	}
	ids := slices.Sorted(maps.Keys(failed))
	if err := s.survive(ids, failed); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		m := s.names.members[id]
		m.state = memberOut
		s.stores[id].why = failed[id]
		s.stores[id].out.Store(true)
		s.log.Error("store is out", "store", m.dir, "err", failed[id])
	}
	return nil
}

// install begins a generation: a new file of names in every store that is in. With naming
// held. While stores fail at that they are marked out and it begins again. When all fail,
// none is.
func (s *Set) install() error {
	for {
		ids := s.ins()
		s.mu.Lock()
		s.names.generation++
		s.names.installed = false
		generation := s.names.generation
		p := make(map[uint32][]byte, len(ids))
		for _, id := range ids {
			p[id] = encodeNames(s.names, id)
		}
		pending := s.pending
		s.pending = nil
		s.mu.Unlock()
		failed := s.twoSteps(ids, func(st *store) error { return st.begin(p[st.id]) })
		if len(failed) == 0 {
			s.broken = false
			s.mu.Lock()
			s.pending = append([]entry{{kind: entryInstalled}}, s.pending...)
			s.names.installed = true
			s.mu.Unlock()
			s.tellWitness(generation)
			s.kick()
			return nil
		}
		err := failed.err()
		if len(failed) < len(ids) {
			err = s.drop(failed)
		}
		if err != nil {
			s.broken = true
			s.mu.Lock()
			s.pending = append(pending, s.pending...)
			s.mu.Unlock()
			return err
		}
	}
}

// twoSteps makes the files of objects durable on every store, and only then writes the names
// that refer to them on any: the names of one store speak of the files of all.
func (s *Set) twoSteps(ids []uint32, write func(*store) error) failures {
	failed := onEach(ids, func(id uint32) error { return s.stores[id].settleObjects() })
	if len(failed) > 0 {
		return failed
	}
	return onEach(ids, func(id uint32) error { return write(s.stores[id]) })
}

// begin gives the store a new file of names.
func (st *store) begin(p []byte) error {
	if st.names != nil {
		st.names.Close() // nothing in it is needed any more
		st.names = nil
	}
	if err := st.fs.Mkdir(path.Join(st.dir, objectsName)); err != nil {
		return err
	}
	temp, final := path.Join(st.dir, namesNew), path.Join(st.dir, namesName)
	if err := removeIfThere(st.fs, temp); err != nil {
		return err
	}
	f, err := st.fs.Open(temp, ioengine.Create|ioengine.Exclusive)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = st.fs.Rename(temp, final)
	}
	if err == nil {
		err = st.fs.SyncDir(st.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	st.names, st.end = f, int64(len(p))
	return nil
}

// sync makes all names durable, with naming held.
func (s *Set) sync() error {
	if err := s.canWrite(); err != nil {
		return err
	}
	s.mu.Lock()
	batch, trash := s.pending, s.trash
	generation, most := s.names.generation, rewriteAt+int64(len(s.objects))*512
	wanted := s.broken || len(batch) > 1 || len(batch) == 1 && batch[0].kind != entryInstalled || len(trash) > 0
	if wanted && !s.broken {
		s.pending = nil
	}
	if wanted {
		s.trash = nil
	}
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	err := s.syncBatch(batch, generation, most)
	if err != nil {
		s.mu.Lock()
		s.trash = append(trash, s.trash...)
		s.mu.Unlock()
		return err
	}
	for _, l := range trash {
		s.discard(l)
	}
	return nil
}

// rewriteAt is how long a file of names may grow beyond its snapshot.
const rewriteAt = 4 << 20

// syncBatch adds a batch to the files of names, or begins new ones when they are longer than most.
func (s *Set) syncBatch(batch []entry, generation uint64, most int64) error {
	ids := s.ins()
	if s.broken || s.stores[ids[0]].end > most {
		return s.install()
	}
	failed := s.twoSteps(ids, func(st *store) error { return st.extend(batch, generation) })
	if len(failed) == 0 {
		return nil
	}
	s.broken = true // a file that failed is not written again
	if len(failed) == len(ids) {
		return failed.err()
	}
	if err := s.drop(failed); err != nil {
		return err
	}
	return s.install()
}

// extend adds a batch to the file of names, durably.
func (st *store) extend(batch []entry, generation uint64) error {
	if st.names == nil {
		return fmt.Errorf("%s: names are not open", st.dir)
	}
	raw := appendBatch(nil, generation, st.end, batch)
	p := buf.Aligned(len(raw))
	copy(p, raw)
	if _, err := st.names.WriteAt(p, st.end); err != nil {
		return err
	}
	if !invariant.Planted("journal/stripe/names-unsynced") {
		if err := st.names.Sync(); err != nil {
			return err
		}
	}
	st.end += int64(len(p))
	return nil
}

// settleObjects makes the files that were made durable in their folder, before a name refers
// to them.
func (st *store) settleObjects() error {
	if !st.fresh.Swap(false) || invariant.Planted("journal/stripe/objects-unsynced") {
		return nil
	}
	return st.fs.SyncDir(path.Join(st.dir, objectsName))
}

// discard removes a file that nothing refers to. What does not go now goes at the next opening.
func (s *Set) discard(l leaver) {
	st := s.store(l.member)
	if st == nil || st.out.Load() {
		return
	}
	if err := removeIfThere(st.fs, path.Join(st.dir, objectsName, l.name)); err != nil {
		s.log.Warn("a file that is not wanted stays", "store", st.dir, "file", l.name, "err", err)
	}
}

// sweep removes what no name refers to: leftovers of names that were not durable.
func (s *Set) sweep() {
	for _, id := range s.ins() {
		st := s.stores[id]
		dir := path.Join(st.dir, objectsName)
		list, err := st.fs.List(dir)
		if err != nil {
			continue // whoever wants a file of it will find out
		}
		wanted := map[string]bool{}
		for _, o := range s.names.objects {
			if slices.Contains(o.places, id) {
				wanted[o.fileName()] = true
			}
		}
		for _, n := range list {
			if !wanted[n] {
				s.discard(leaver{id, n})
			}
		}
	}
}

// The witness: magic, version, set, generation, checksum.
const (
	witnessMagic = 0x31575348 // "HSW1"
	witnessBytes = 32
)

func (s *Set) readWitness(set uint64) (generation uint64, err error) {
	if s.witness == "" {
		return 0, errors.New("there is no witness")
	}
	p, err := readAll(s.open(path.Dir(s.witness)), s.witness)
	if err != nil {
		return 0, err
	}
	if len(p) != witnessBytes || le.Uint32(p) != witnessMagic || le.Uint32(p[28:]) != sumOf(p[:28]) {
		return 0, corrupt("%s is no witness", s.witness)
	}
	if set != 0 && le.Uint64(p[8:]) != set {
		return 0, corrupt("%s is of another set", s.witness)
	}
	return le.Uint64(p[16:]), nil
}

// tellWitness keeps the generation outside the stores, in a new file. It is what tells two
// stores apart of which one went on alone; without it the set still works.
func (s *Set) tellWitness(generation uint64) {
	if s.witness == "" {
		return
	}
	p := make([]byte, witnessBytes)
	le.PutUint32(p, witnessMagic)
	le.PutUint16(p[4:], namesVersion)
	le.PutUint64(p[8:], s.names.set)
	le.PutUint64(p[16:], generation)
	le.PutUint32(p[28:], sumOf(p[:28]))
	dir := path.Dir(s.witness)
	if err := replaceFile(s.open(dir), dir, s.witness, p); err != nil {
		s.log.Error("witness of the stores is not kept", "file", s.witness, "err", err)
	}
}

// replaceFile puts a small file into place: whole, or not at all.
func replaceFile(fsys ioengine.FS, dir, name string, p []byte) error {
	temp := name + ".new"
	if err := removeIfThere(fsys, temp); err != nil {
		return err
	}
	f, err := fsys.Open(temp, ioengine.Create|ioengine.Exclusive)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(temp, name); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

package stripe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
)

// Progress tells how far a Mend or Scrub has come.
type Progress struct {
	Doing      string // "": nothing
	Done, Todo int    // files
	Bytes      int64  // read and written
	Err        error  // of the last one that ended
}

// want is what an object lacks: copies or shards to make, and copies to take away.
type want struct {
	make  []int    // of shards; of copies only how many
	stale []uint32 // copies on stores that are out or retire, once nothing is to be made
}

// wants says what an object lacks. It is pure.
func (n *names) wants(o *objectInfo) (w want) {
	free, good := 0, 0
	for id, m := range n.members {
		if m.state == memberIn && !slices.Contains(o.places, id) {
			free++
		}
	}
	for i, id := range o.places {
		switch m := n.members[id]; {
		case m != nil && m.state == memberIn:
			good++
		case o.striped():
			w.make = append(w.make, i)
		default:
			w.stale = append(w.stale, id)
		}
	}
	if o.striped() {
		w.make = w.make[:min(len(w.make), free)]
		return w
	}
	lack := n.geometry.M + 1 - good
	for i := range max(0, min(lack, free)) {
		w.make = append(w.make, i)
	}
	if len(w.make) < lack { // out ones are worth nothing, retiring ones still are
		w.stale = slices.DeleteFunc(w.stale, n.holds)
	}
	return w
}

// Mend brings every file to the copies or shards that it should have, moves what lies on
// stores that retire, makes alike what a crash left different, and lets go of stores that
// hold nothing any more. It goes on past files that fail, and returns why they did.
func (s *Set) Mend(ctx context.Context, pace Pace) error {
	return s.work(ctx, "mend", pace, s.mendObject, s.letGo)
}

// work does something for every object, and tells how far it is.
func (s *Set) work(ctx context.Context, doing string, pace Pace, each func(*object, Pace) error, end func() error) (err error) {
	s.mu.Lock()
	todo := slices.SortedFunc(maps.Values(s.objects), func(a, b *object) int { return cmp.Compare(b.id, a.id) }) // newest first
	s.progress = Progress{Doing: doing, Todo: len(todo)}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.progress.Doing, s.progress.Err = "", err
	}()
	paced := func(n int) error {
		s.mu.Lock()
		s.progress.Bytes += int64(n)
		s.mu.Unlock()
		return errors.Join(ctx.Err(), pace.spend(n))
	}
	for _, o := range todo {
		if cerr := errors.Join(ctx.Err(), s.canWrite()); cerr != nil {
			return errors.Join(err, cerr)
		}
		if oerr := each(o, paced); oerr != nil && !o.gone.Load() {
			err = errors.Join(err, fmt.Errorf("%s: %w", s.nameOf(o), oerr))
		}
		s.mu.Lock()
		s.progress.Done++
		s.mu.Unlock()
	}
	return errors.Join(err, end())
}

func (s *Set) nameOf(o *object) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.info.name
}

// mendObject does all that one object lacks.
func (s *Set) mendObject(o *object, pace Pace) error {
	o.moving.Lock()
	defer o.moving.Unlock()
	o.layout.RLock()
	level := o.suspect && o.writers > 0 || o.poison.Load() != nil
	o.layout.RUnlock()
	if level {
		h, err := o.openAll()
		if err == nil {
			err = errors.Join(o.level(h, pace), h.Close())
		}
		if err != nil && !errors.Is(err, errMoved) {
			return err
		}
	}
	s.mu.Lock()
	info := s.names.objects[o.id]
	if info == nil {
		s.mu.Unlock()
		return nil
	}
	w := s.names.wants(info)
	g := s.names.geometry
	ids := s.choose(info.id, len(w.make), info.places)
	s.mu.Unlock()
	defer s.endChoice(ids)
	for i, id := range ids {
		var err error
		if info.striped() {
			err = o.makeShard(info.Geometry, w.make[i], id, pace)
		} else {
			err = o.addCopy(id, pace)
		}
		if err != nil {
			return err
		}
	}
	if len(w.stale) > 0 && len(ids) == len(w.make) {
		if err := o.dropCopies(w.stale); err != nil {
			return err
		}
	}
	o.layout.RLock()
	unsealed := o.unsealed && o.writers == 0
	o.layout.RUnlock()
	if unsealed || info.striped() && g.K > 1 && info.Geometry != g {
		return s.Seal(s.nameOf(o), pace)
	}
	return nil
}

// letGo ends the membership of stores that are out or retire and hold nothing.
func (s *Set) letGo() error {
	s.naming.Lock()
	defer s.naming.Unlock()
	s.mu.Lock()
	used := map[uint32]bool{}
	for id := range s.chosen {
		used[id] = true
	}
	ins := 0
	for _, o := range s.names.objects {
		for _, id := range o.places {
			used[id] = true
		}
	}
	var gone []*store
	for id, m := range s.names.members {
		if m.state == memberIn {
			ins++
		}
		if m.state != memberIn && !used[id] {
			gone = append(gone, s.stores[id])
		}
	}
	if ins < s.names.geometry.width() {
		gone = nil // too few are left: what is out goes on counting as lost
	}
	for _, st := range gone {
		s.note(entry{kind: entryMemberGone, member: st.id})
		delete(s.stores, st.id)
	}
	s.mu.Unlock()
	if len(gone) == 0 {
		return nil
	}
	err := s.install() // a generation without them
	for _, st := range gone {
		s.log.Info("store is no longer of the set", "store", st.dir)
		if st.names != nil {
			st.names.Close() // the others have all that is in it
		}
		if !st.out.Load() && err == nil {
			err = errors.Join(removeIfThere(st.fs, path.Join(st.dir, namesName)), st.fs.SyncDir(st.dir))
		}
		if st.lock != nil {
			err = errors.Join(err, st.lock.Close())
		}
	}
	return err
}

// Add takes an empty folder into the set, or one that was of it and is out. What it held is
// removed. New files use it at once; Mend moves to it what lies too thin.
func (s *Set) Add(dir string) error {
	if err := s.add(path.Clean(dir)); err != nil {
		return fmt.Errorf("add store %s: %w", dir, err)
	}
	s.kick()
	return nil
}

func (s *Set) add(dir string) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	if err := s.canWrite(); err != nil {
		return err
	}
	s.mu.Lock()
	for id, m := range s.names.members {
		if m.dir != dir {
			continue
		}
		if m.state != memberOut {
			s.mu.Unlock()
			return fmt.Errorf("it is one already: %w", fs.ErrExist)
		}
		if st := s.stores[id]; st.lock != nil { // ours, from before it failed
			st.lock.Close()
			st.lock = nil
		}
	}
	s.mu.Unlock()
	c := s.look(dir)
	switch {
	case c.store == nil || c.store.lock == nil:
		return c.err
	case !c.empty && (c.names == nil || c.names.set != s.names.set):
		return errors.Join(fmt.Errorf("it holds other files: %w", ErrStore), c.err, c.store.lock.Close())
	}
	if err := wipe(c.store); err != nil {
		return errors.Join(err, c.store.lock.Close())
	}
	s.mu.Lock()
	id := s.names.nextMember
	s.take(c, id)
	s.note(entry{kind: entryMember, member: id, state: memberIn, name: dir})
	s.adding = id // files are made at once, and there is not even a folder for them
	s.strays = slices.DeleteFunc(s.strays, func(d string) bool { return d == dir })
	s.names.generation++
	s.names.installed = false
	p := encodeNames(s.names, id)
	s.mu.Unlock()
	// The new store first: a crash must not leave names that count on one without any.
	err := c.store.begin(p)
	s.mu.Lock()
	s.adding = 0
	if err != nil {
		s.note(entry{kind: entryMemberGone, member: id})
		delete(s.stores, id)
	}
	s.mu.Unlock()
	if err != nil {
		return errors.Join(err, s.install(), wipe(c.store), c.store.lock.Close())
	}
	s.log.Info("store is of the set", "store", dir)
	return s.install()
}

// wipe removes what an earlier membership left in a folder.
func wipe(st *store) error {
	for _, n := range []string{namesName, namesNew} {
		if err := removeIfThere(st.fs, path.Join(st.dir, n)); err != nil {
			return err
		}
	}
	if err := st.fs.SyncDir(st.dir); err != nil {
		return err
	}
	dir := path.Join(st.dir, objectsName)
	list, err := st.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, n := range list {
		err = errors.Join(err, removeIfThere(st.fs, path.Join(dir, n)))
	}
	return err
}

// Retire has everything moved off a store by Mend, and then lets go of it. A store that is
// out is let go of in the same way, once what it held is made anew elsewhere.
func (s *Set) Retire(dir string) error {
	if err := s.retire(path.Clean(dir)); err != nil {
		return fmt.Errorf("retire store %s: %w", dir, err)
	}
	s.kick()
	return nil
}

func (s *Set) retire(dir string) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	if err := s.canWrite(); err != nil {
		return err
	}
	s.mu.Lock()
	var id uint32
	ins := 0
	for i, m := range s.names.members {
		if m.state == memberIn {
			ins++
		}
		if m.dir == dir && (id == 0 || m.state == memberIn) {
			id = i
		}
	}
	m := s.names.members[id]
	var err error
	switch {
	case m == nil:
		err = ErrStore
	case m.state != memberIn:
	case ins-1 < s.names.geometry.width():
		err = fmt.Errorf("%s needs %d stores, and without this one there are %d: add another first", s.names.geometry, s.names.geometry.width(), ins-1)
	default:
		s.note(entry{kind: entryMember, member: id, state: memberRetiring, name: dir})
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.sync()
}

// Probe looks whether every store still has its names, and marks out those that do not: a
// folder that was removed goes on taking writes to files that are open.
func (s *Set) Probe() error {
	s.naming.Lock()
	defer s.naming.Unlock()
	if err := s.canWrite(); err != nil {
		return err
	}
	ids := s.ins()
	s.mu.Lock()
	generation := s.names.generation
	s.mu.Unlock()
	failed := onEach(ids, func(id uint32) error {
		st := s.store(id)
		f, err := st.fs.Open(path.Join(st.dir, namesName), ioengine.ReadOnly)
		if err != nil {
			return err
		}
		defer f.Close() // opened for reading
		p := buf.Aligned(namesHeaderBytes)
		if _, err := f.ReadAt(p, 0); err != nil {
			return err
		}
		if g := le.Uint64(p[atGeneration:]); g != generation || le.Uint32(p) != namesMagic {
			return corrupt("names of generation %d stand where %d was written", g, generation)
		}
		return nil
	})
	if len(failed) == 0 {
		return nil
	}
	if err := failed.ours(); err != nil {
		return err
	}
	return s.markOutLocked(failed)
}

// unmended says whether another Mend may be of use.
func (s *Set) unmended() bool {
	st := s.State()
	return st.Err != nil || st.Mending.Err != nil || slices.ContainsFunc(st.Stores, func(m StoreState) bool { return m.State != memberIn.String() })
}

// probeEvery is how soon a store that lost its files is noticed at the latest.
const probeEvery = time.Minute

// Run mends the set when there is something to mend, and probes its stores, until ctx ends.
func (s *Set) Run(ctx context.Context, pace Pace) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.Probe(); err != nil {
				s.log.Error("stores", "err", err)
			}
			if !s.unmended() {
				continue
			}
		case <-s.changed:
		}
		if err := s.Mend(ctx, pace); err != nil && ctx.Err() == nil {
			s.log.Error("stores are not mended", "err", err)
		}
	}
}

package stripe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

var _ ioengine.FS = (*Set)(nil)

// Plain says that its names are no files of this machine.
func (s *Set) Plain() bool { return false }

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Open opens a file of the set. A striped one can only be read: ErrSealed.
func (s *Set) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := s.openFile(clean(name), flags)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return f, nil
}

func (s *Set) openFile(name string, flags ioengine.Flags) (ioengine.File, error) {
	for {
		o, made, err := s.lookup(name, flags)
		if err != nil {
			return nil, err
		}
		if o == nil {
			continue // another was making it, and has ended
		}
		f, err := o.open(flags, made)
		if errors.Is(err, errMoved) { // it was sealed or removed meanwhile
			continue
		}
		return f, err
	}
}

// lookup returns the object of that name, or one that is to be made, where the flags say so,
// with its layout held for writing.
func (s *Set) lookup(name string, flags ioengine.Flags) (o *object, made bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false, errClosed
	}
	if id, ok := s.names.files[name]; ok {
		if flags&ioengine.Create != 0 && flags&ioengine.Exclusive != 0 {
			return nil, false, fs.ErrExist
		}
		return s.objects[id], false, nil
	}
	if s.names.folders[name] != nil {
		return nil, false, syscall.EISDIR
	}
	if flags&ioengine.Create == 0 {
		return nil, false, fs.ErrNotExist
	}
	if other := s.making[name]; other != nil {
		s.mu.Unlock()
		other.layout.Lock()
		defer other.layout.Unlock() // it is waited for
		s.mu.Lock()
		return nil, false, nil
	}
	if err := s.canWriteLocked(); err != nil {
		return nil, false, err
	}
	if err := s.names.mayMake(name); err != nil {
		return nil, false, err
	}
	info := &objectInfo{Geometry: Geometry{1, s.names.geometry.M}, id: s.names.nextObject, name: name, dirty: true}
	s.names.nextObject++
	info.places = s.choose(info.id, s.names.geometry.M+1, nil)
	if len(info.places) == 0 {
		return nil, false, fmt.Errorf("no store takes new files: %w", ErrLost)
	}
	o = &object{set: s, id: info.id, info: info}
	o.layout.Lock()
	s.making[name] = o
	return o, true, nil
}

// made gives a file that is there on its stores its name, or forgets it when it could not be made.
func (s *Set) made(o *object, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := o.info.name
	delete(s.making, name)
	defer s.endChoiceLocked(o.info.places)
	if err == nil {
		err = s.names.mayMake(name)
	}
	if err != nil {
		o.gone.Store(true)
		s.trash = append(s.trash, leavers(o.info)...)
		return err
	}
	for _, id := range o.info.places {
		s.stores[id].fresh.Store(true)
	}
	s.leave(name)
	s.note(entry{kind: entryFile, name: name, object: *o.info})
	o.info = s.names.objects[o.info.id]
	s.objects[o.info.id] = o
	return nil
}

// note applies an entry and has it made durable by the next sync. With mu held.
func (s *Set) note(e entry) {
	if err := e.check(); err != nil {
		panic(fmt.Sprintf("BUG: entry %+v: %v", e, err))
	}
	if err := s.names.apply(e); err != nil {
		panic(fmt.Sprintf("BUG: entry %+v: %v", e, err))
	}
	s.pending = append(s.pending, e)
}

// choose picks members for n new copies or shards of an object, beside those it has: the
// objects take turns. It returns fewer when there are no more. They are members until they
// are given to endChoice, also those that retire or fail meanwhile: no names tell yet of what
// is being made there. With mu held.
func (s *Set) choose(object uint64, n int, have []uint32) (ids []uint32) {
	all := make([]uint32, 0, len(s.names.members))
	for id, m := range s.names.members {
		if m.state == memberIn && !slices.Contains(have, id) && (id != s.adding || invariant.Planted("journal/stripe/chosen-too-soon")) {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	for i := range min(n, len(all)) {
		id := all[(int(object%uint64(len(all)))+i)%len(all)]
		ids = append(ids, id)
		if !invariant.Planted("journal/stripe/chosen-leaves") {
			s.chosen[id]++
		}
	}
	return ids
}

// endChoice ends what choose began. Of members that failed or were to leave meanwhile the
// next Mend moves what was placed on them.
func (s *Set) endChoice(ids []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endChoiceLocked(ids)
}

func (s *Set) endChoiceLocked(ids []uint32) {
	for _, id := range ids {
		if s.chosen[id]--; s.chosen[id] <= 0 {
			delete(s.chosen, id)
		}
		if m := s.names.members[id]; m != nil && m.state != memberIn {
			s.kick()
		}
	}
}

// Rename renames a file; folders have their names for good.
func (s *Set) Rename(oldName, newName string) error {
	from, to := clean(oldName), clean(newName)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.canWriteLocked()
	if err == nil {
		err = s.names.mayMake(to)
	}
	if _, ok := s.names.files[from]; err == nil && !ok {
		err = fs.ErrNotExist
	}
	if err != nil || from == to {
		return pathError("rename", oldName, err)
	}
	s.leave(to)
	s.note(entry{kind: entryRename, name: from, to: to})
	return nil
}

// leave has the files of a name that goes removed, once that is durable. With mu held.
func (s *Set) leave(name string) {
	id, ok := s.names.files[name]
	if !ok {
		return
	}
	o := s.objects[id]
	o.gone.Store(true)
	delete(s.objects, id)
	s.trash = append(s.trash, leavers(s.names.objects[id])...)
	if invariant.Planted("journal/stripe/early-discard") {
		for _, l := range s.trash {
			s.stores[l.member].fs.Remove(path.Join(s.stores[l.member].dir, objectsName, l.name))
		}
	}
}

// leavers are the files of an object.
func leavers(o *objectInfo) (ls []leaver) {
	for _, m := range o.places {
		if m != 0 {
			ls = append(ls, leaver{m, o.fileName()})
		}
	}
	return ls
}

// Remove removes a file or an empty folder. Space is given back by the next SyncDir.
func (s *Set) Remove(name string) error {
	n := clean(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.canWriteLocked()
	_, isFile := s.names.files[n]
	folder := s.names.folders[n]
	switch {
	case err != nil:
	case len(folder) > 0 || n == "/":
		err = syscall.ENOTEMPTY
	case !isFile && folder == nil:
		err = fs.ErrNotExist
	}
	if err != nil {
		return pathError("remove", name, err)
	}
	s.leave(n)
	s.note(entry{kind: entryRemove, name: n})
	return nil
}

// Mkdir makes one folder.
func (s *Set) Mkdir(name string) error {
	n := clean(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names.folders[n] != nil {
		return nil
	}
	err := s.canWriteLocked()
	if _, isFile := s.names.files[n]; err == nil && isFile {
		err = fs.ErrExist
	}
	if err == nil {
		err = s.names.mayMake(n)
	}
	if err == nil && len(n) > maxNamePath {
		err = syscall.ENAMETOOLONG
	}
	if err != nil {
		return pathError("mkdir", name, err)
	}
	s.note(entry{kind: entryFolder, name: n})
	return nil
}

// List returns the names in a folder, sorted.
func (s *Set) List(dir string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.names.folders[clean(dir)]
	if in == nil {
		return nil, pathError("list", dir, fs.ErrNotExist)
	}
	list := make([]string, 0, len(in))
	for n := range in {
		list = append(list, n)
	}
	slices.Sort(list)
	return list, nil
}

// SyncDir makes all names durable, of every folder, in the order in which they came.
func (s *Set) SyncDir(dir string) error {
	s.mu.Lock()
	there := s.names.folders[clean(dir)] != nil
	s.mu.Unlock()
	if !there {
		return pathError("sync", dir, fs.ErrNotExist)
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	return pathError("sync", dir, s.sync())
}

// Lock takes a name within the set, whose stores are this process's alone.
func (s *Set) Lock(name string) (io.Closer, error) {
	n := clean(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, pathError("lock", name, errClosed)
	}
	if s.locks[n] {
		return nil, pathError("lock", name, ioengine.ErrLocked)
	}
	s.locks[n] = true
	return &nameLock{s, n}, nil
}

type nameLock struct {
	set  *Set
	name string
}

func (l *nameLock) Close() error {
	l.set.mu.Lock()
	defer l.set.mu.Unlock()
	delete(l.set.locks, l.name)
	return nil
}

// SyncFiles makes files durable by one sync a store.
func (s *Set) SyncFiles(files []ioengine.File) error {
	var hs []*handle
	for _, f := range files {
		switch h := f.(type) {
		case *handle:
			if !slices.Contains(hs, h) {
				hs = append(hs, h)
			}
		case *shardHandle: // never written
		default:
			return fmt.Errorf("sync of a file of another file system: %w", syscall.EINVAL)
		}
	}
	return s.syncHandles(hs)
}

// Free is that of the store with the least, of those that take new files: a file that is written may come to any of them.
func (s *Set) Free(string) (int64, error) {
	s.mu.Lock()
	var takers []*store // a member may retire and be let go of meanwhile
	for id, m := range s.names.members {
		if m.state == memberIn {
			takers = append(takers, s.stores[id])
		}
	}
	s.mu.Unlock()
	least, known := int64(0), false
	var why error
	for _, st := range takers {
		n, err := st.fs.Free(st.dir)
		if err != nil {
			why = errors.Join(why, err)
			continue
		}
		if !known || n < least {
			least, known = n, true
		}
	}
	if !known {
		return 0, errors.Join(ErrLost, why)
	}
	return least, nil
}

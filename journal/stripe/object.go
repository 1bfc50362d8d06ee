package stripe

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// object is one file's content in use.
type object struct {
	set *Set
	id  uint64 // for good

	// layout is held for reading by every use of the object's copies or shards, for
	// writing by whoever moves them. Before Set.mu, after Set.naming only where said.
	layout   sync.RWMutex
	info     *objectInfo // replaced, with Set.mu held too; never changed, but for its name, which is Set.mu's
	writers  int         // handles that may write
	fill     *fill       // a copy in the making; it gets every write
	suspect  bool        // an earlier life's unsynced writes may differ from copy to copy
	sealing  bool        // it is read into a stripe
	rewrites bool        // a writer has come since that began: it comes to nothing
	unsealed bool        // it is to be sealed, and could not be
	// replaced counts, by store, how often the copy there became a new file.
	replaced map[uint32]int
	shards   shardSet

	// moving is held by who makes copies or shards of it or takes them away: one Mend or one
	// Scrub, for they use the same names until what they made is whole. Before layout.
	moving sync.Mutex

	// poison is set when a write came to some copies and not to others, and the others'
	// stores could not be marked out: the object cannot be synced until its copies are alike.
	poison atomic.Pointer[error]

	gone  atomic.Bool // removed: what is open of it still works
	dirty atomic.Bool // the names say durably that it is being written
	wrote atomic.Bool // since the last sync
	marks sync.Mutex  // one writer of dirty
}

// fill is a copy in the making.
type fill struct {
	member uint32
	file   ioengine.File
	mu     sync.Mutex
	err    error
}

func (f *fill) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = errors.Join(f.err, err)
}

// ErrSealed says that a file is striped and can only be read.
var ErrSealed = errors.New("file is sealed")

var errMoved = errors.New("file moved")

// fileName is what the object's copies, or its shards, are called in a store.
func (o *objectInfo) fileName() string {
	if o.striped() {
		return fmt.Sprintf("%016x.%d+%d", o.id, o.K, o.M)
	}
	return fmt.Sprintf("%016x", o.id)
}

func (s *Set) store(id uint32) *store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stores[id]
}

// readFailed counts a failed read of a store; one of a removed file may be of a store that is
// no longer of the set.
func (s *Set) readFailed(id uint32) {
	if st := s.store(id); st != nil {
		st.errors.Add(1)
	}
}

// openOn opens the object's file in a store.
func (s *Set) openOn(id uint32, name string, flags ioengine.Flags) (ioengine.File, error) {
	st := s.store(id)
	if st == nil {
		return nil, fs.ErrNotExist
	}
	return st.fs.Open(path.Join(st.dir, objectsName, name), flags)
}

// openOn opens the object's file of a member. One that is not there because the object was
// removed meanwhile is no store's fault: errMoved.
func (o *object) openOn(id uint32, flags ioengine.Flags) (ioengine.File, error) {
	f, err := o.set.openOn(id, o.info.fileName(), flags)
	if errors.Is(err, fs.ErrNotExist) && o.gone.Load() && !invariant.Planted("journal/stripe/removed-is-failed") {
		return nil, errMoved
	}
	return f, err
}

// members returns where the object has copies that count. With layout held.
func (o *object) members() (ids []uint32) {
	for _, id := range o.info.places {
		if st := o.set.store(id); id != 0 && st != nil && !st.out.Load() {
			ids = append(ids, id)
		}
	}
	return ids
}

// open makes a handle. For an object that was just made layout is held, for writing.
func (o *object) open(flags ioengine.Flags, made bool) (ioengine.File, error) {
	if flags&ioengine.ReadOnly == 0 && !made {
		if err := o.alike(); err != nil {
			return nil, err
		}
	}
	if !made {
		o.layout.Lock()
	}
	defer o.layout.Unlock()
	if o.gone.Load() {
		return nil, errMoved
	}
	if flags&ioengine.ReadOnly == 0 && o.info.striped() {
		return nil, ErrSealed
	}
	if flags&ioengine.ReadOnly == 0 {
		o.rewrites, o.unsealed = true, false // it is to change after all
	}
	if o.info.striped() {
		return o.openShards()
	}
	if made {
		flags |= ioengine.Create | ioengine.Exclusive
	} else {
		flags &^= ioengine.Create | ioengine.Exclusive
	}
	h := &handle{object: o, flags: flags, files: map[uint32]ioengine.File{}, seen: map[uint32]int{}}
	ids := o.members()
	if len(ids) == 0 {
		err := fmt.Errorf("all copies are out: %w", ErrLost)
		if made {
			err = o.set.made(o, err)
		}
		return nil, err
	}
	var mu sync.Mutex
	failed := onEach(ids, func(id uint32) error {
		f, err := o.openOn(id, flags)
		if err == nil {
			mu.Lock()
			h.files[id], h.seen[id] = f, o.replaced[id]
			mu.Unlock()
		}
		return err
	})
	h.flags &^= ioengine.Create | ioengine.Exclusive
	if made {
		o.dirty.Store(true)
	}
	err := o.settle(ids, failed)
	if made {
		err = o.set.made(o, err)
	}
	if err != nil {
		return nil, errors.Join(err, h.closeFiles())
	}
	h.align = 1
	for _, f := range h.files {
		h.align = max(h.align, f.Align())
	}
	if flags&ioengine.ReadOnly == 0 {
		o.writers++
	}
	return h, nil
}

// settle concludes an operation on the copies of some members. Stores that failed while
// others did not are marked out, and the operation is well. When all failed it is the
// operation that failed. With layout held.
func (o *object) settle(ids []uint32, failed failures) error {
	if len(failed) == 0 {
		return nil
	}
	if err := failed.ours(); err != nil {
		return err
	}
	if len(failed) == len(ids) {
		return failed.err()
	}
	return o.set.markOut(failed)
}

// ours is the first failure that is this process's fault and no store's.
func (f failures) ours() error {
	for _, err := range f {
		if errors.Is(err, errMoved) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) ||
			errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrClosed) || errors.Is(err, errPace) && !invariant.Planted("journal/stripe/pace-is-failure") {
			return err
		}
	}
	return nil
}

package stripe

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// handle is an open file that is kept whole on several stores. Writes go to every copy;
// reads are of the first that is in, and of the next when that fails.
type handle struct {
	object *object
	flags  ioengine.Flags
	align  int

	use struct { // for reading by every call, for writing by Close
		sync.RWMutex
		closed bool
	}
	mu     sync.Mutex
	files  map[uint32]ioengine.File
	seen   map[uint32]int // which of the object's replaced the file is
	failed error          // of a sync: final
}

var _ ioengine.File = (*handle)(nil)

func (h *handle) Align() int { return h.align }

// begin takes the locks of an operation; the caller ends it by end.
func (h *handle) begin(write bool) error {
	h.use.RLock()
	if h.use.closed {
		h.use.RUnlock()
		return fs.ErrClosed
	}
	if !write {
		h.object.layout.RLock()
		return nil
	}
	err := h.object.set.canWrite()
	if h.flags&ioengine.ReadOnly != 0 {
		err = syscall.EBADF
	}
	if err == nil {
		err = h.object.markDirty()
	}
	if err != nil {
		h.use.RUnlock()
		return err
	}
	h.object.layout.RLock()
	return nil
}

func (h *handle) end() {
	h.object.layout.RUnlock()
	h.use.RUnlock()
}

// copy returns the handle's file of a member, opening it when the copy is a new one.
func (h *handle) copy(id uint32) (ioengine.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.object.replaced[id]
	old := h.files[id]
	if old != nil && h.seen[id] == now {
		return old, nil
	}
	f, err := h.object.openOn(id, h.flags)
	if err != nil {
		return nil, err
	}
	h.files[id], h.seen[id] = f, now
	if old != nil {
		err = old.Close()
	}
	return f, err
}

// members are those whose copies the handle is to use: of a removed file those it has open.
func (h *handle) members() []uint32 {
	ids := h.object.members()
	if !h.object.gone.Load() {
		return ids
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(ids, func(id uint32) bool { return h.files[id] == nil })
}

// change does an operation on every copy, and on one in the making.
func (h *handle) change(do func(ioengine.File) error) error {
	if err := h.begin(true); err != nil {
		return err
	}
	defer h.end()
	o := h.object
	o.wrote.Store(true)
	ids := h.members()
	if len(ids) == 0 {
		return ErrLost
	}
	failed := onEach(ids, func(id uint32) error {
		f, err := h.copy(id)
		if err != nil {
			return err
		}
		return do(f)
	})
	if o.fill != nil && !invariant.Planted("journal/stripe/fill-misses-writes") {
		if err := do(o.fill.file); err != nil {
			o.fill.fail(err)
		}
	}
	return h.settle(ids, failed)
}

// settle concludes a change; one that came to some copies and not to others, whose stores
// cannot be marked out, makes the object unfit for a sync.
func (h *handle) settle(ids []uint32, failed failures) error {
	err := h.object.settle(ids, failed)
	if err != nil {
		h.object.poison.Store(&err)
	}
	return err
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	err := h.change(func(f ioengine.File) error {
		_, err := f.WriteAt(p, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (h *handle) WriteParts(parts [][]byte, off int64) error {
	return h.change(func(f ioengine.File) error { return f.WriteParts(parts, off) })
}

// WriteStart begins the write on every copy.
func (h *handle) WriteStart(parts [][]byte, off int64, done func(error)) {
	if err := h.begin(true); err != nil {
		go done(err)
		return
	}
	o := h.object
	o.wrote.Store(true)
	ids := h.members()
	if len(ids) == 0 {
		h.end()
		go done(ErrLost)
		return
	}
	w := &started{h: h, ids: ids, done: done}
	w.left.Store(int32(len(ids)) + 1)
	for _, id := range ids {
		f, err := h.copy(id)
		if err != nil {
			w.finish(id, err)
			continue
		}
		f.WriteStart(parts, off, func(err error) { w.finish(id, err) })
	}
	if o.fill != nil {
		at := off
		for _, p := range parts {
			if _, err := o.fill.file.WriteAt(p, at); err != nil {
				o.fill.fail(err)
				break
			}
			if !invariant.Planted("journal/stripe/fill-parts-on-parts") {
				at += int64(len(p))
			}
		}
	}
	w.finish(0, nil)
}

// started is a write that is on its way to several copies.
type started struct {
	h    *handle
	ids  []uint32
	done func(error)
	left atomic.Int32

	mu     sync.Mutex
	failed failures
}

func (w *started) finish(id uint32, err error) {
	if err != nil {
		w.mu.Lock()
		if w.failed == nil {
			w.failed = failures{}
		}
		w.failed[id] = err
		w.mu.Unlock()
	}
	if w.left.Add(-1) > 0 {
		return
	}
	go func() { // marking a store out takes its time, and done may be called on no caller's stack
		err := w.h.settle(w.ids, w.failed)
		w.h.end()
		w.done(err)
	}()
}

// Allocate, Zero and Truncate do the same to every copy.
func (h *handle) Allocate(off, n int64) error {
	return h.change(func(f ioengine.File) error { return f.Allocate(off, n) })
}

func (h *handle) Zero(off, n int64) error {
	return h.change(func(f ioengine.File) error { return f.Zero(off, n) })
}

func (h *handle) Truncate(size int64) error {
	return h.change(func(f ioengine.File) error { return f.Truncate(size) })
}

// read does a reading operation on the first copy that can.
func (h *handle) read(do func(ioengine.File) error) error {
	if err := h.begin(false); err != nil {
		return err
	}
	defer h.end()
	if h.object.info.striped() {
		return do(&shardHandle{object: h.object, length: h.object.info.length, borrowed: true})
	}
	failed := failures{}
	ids := h.members()
	for _, id := range ids {
		f, err := h.copy(id)
		if err == nil {
			err = do(f)
		}
		if err == nil || err == io.EOF {
			return err
		}
		failed[id] = err
		h.object.set.readFailed(id)
	}
	if len(ids) == 0 {
		return ErrLost
	}
	return failed.err()
}

func (h *handle) ReadAt(p []byte, off int64) (n int, err error) {
	err = h.read(func(f ioengine.File) error {
		n, err = f.ReadAt(p, off)
		return err
	})
	return n, err
}

func (h *handle) Size() (size int64, err error) {
	err = h.read(func(f ioengine.File) error {
		size, err = f.Size()
		return err
	})
	return size, err
}

func (h *handle) NextData(off int64) (at, n int64, err error) {
	err = h.read(func(f ioengine.File) error {
		at, n, err = f.NextData(off)
		return err
	})
	return at, n, err
}

// WillRead tells the copy that would be read.
func (h *handle) WillRead(off, n int64) {
	_ = h.read(func(f ioengine.File) error { // it is a hint
		f.WillRead(off, n)
		return nil
	})
}

// WriteBack tells every copy.
func (h *handle) WriteBack(off, n int64) {
	if h.begin(false) != nil {
		return // it is a hint
	}
	defer h.end()
	if h.object.info.striped() {
		return
	}
	for _, id := range h.members() {
		if f, err := h.copy(id); err == nil {
			f.WriteBack(off, n)
		}
	}
}

// Sync makes every copy durable.
func (h *handle) Sync() error { return h.object.set.syncHandles([]*handle{h}) }

// syncHandles makes the copies of several files durable, by one sync a store. A store that
// fails is marked out before it returns.
func (s *Set) syncHandles(hs []*handle) error {
	hs = slices.SortedStableFunc(slices.Values(hs), func(a, b *handle) int { return cmp.Compare(a.object.id, b.object.id) })
	var last *object
	for i, h := range hs {
		h.use.RLock()
		defer h.use.RUnlock()
		if h.use.closed {
			return fs.ErrClosed
		}
		if i == 0 || h.object != last { // each object once, in order: no two can wait for each other
			last = h.object
			last.layout.RLock()
			defer last.layout.RUnlock()
		}
	}
	if len(hs) == 0 {
		return nil
	}
	err := s.syncLocked(hs)
	for _, h := range hs {
		if err != nil {
			h.object.wrote.Store(true)
			h.mu.Lock()
			h.failed = errors.Join(h.failed, err)
			h.mu.Unlock()
		}
	}
	return err
}

// syncLocked is syncHandles with the layouts held.
func (s *Set) syncLocked(hs []*handle) error {
	if err := s.canWrite(); err != nil {
		return err
	}
	files, failed := map[uint32][]ioengine.File{}, failures{}
	for _, h := range hs {
		if err := h.broken(); err != nil {
			return err
		}
		if h.object.info.striped() {
			continue
		}
		h.object.wrote.Store(false)
		for _, id := range h.members() {
			f, err := h.copy(id)
			if err != nil {
				failed[id] = err
				continue
			}
			files[id] = append(files[id], f)
		}
	}
	ids := slices.Sorted(maps.Keys(files))
	if len(ids) == 0 {
		return failed.err()
	}
	for id, err := range onEach(ids, func(id uint32) error {
		if len(files[id]) == 1 {
			return files[id][0].Sync()
		}
		st := s.store(id)
		if st == nil { // files that were removed, of a store that was let go of then
			return nil
		}
		return st.fs.SyncFiles(files[id])
	}) {
		failed[id] = err
	}
	if len(failed) == 0 || invariant.Planted("journal/stripe/one-sync-is-enough") && len(failed) < len(ids) {
		return nil
	}
	for _, h := range hs { // a file none of whose copies is durable is no store's fault alone
		if !slices.ContainsFunc(h.members(), func(id uint32) bool { return failed[id] == nil }) {
			return failed.err()
		}
	}
	if err := failed.ours(); err != nil {
		return err
	}
	return s.markOut(failed)
}

// broken says why the handle's file cannot be synced any more.
func (h *handle) broken() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.object.poison.Load(); p != nil {
		return *p
	}
	return h.failed
}

func (h *handle) closeFiles() (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, f := range h.files {
		if cerr := f.Close(); cerr != nil && !h.object.set.isOut(id) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}

// Close waits for the calls that are under way.
func (h *handle) Close() error {
	h.use.Lock()
	if h.use.closed {
		h.use.Unlock()
		return fs.ErrClosed
	}
	h.use.closed = true
	h.use.Unlock()
	err := h.closeFiles()
	if h.flags&ioengine.ReadOnly == 0 {
		h.object.closed()
	}
	return err
}

// closed notes that a writer is gone. A file whose last writer synced all that it wrote has
// copies that are alike.
func (o *object) closed() {
	o.layout.Lock()
	defer o.layout.Unlock()
	o.writers--
	if o.unsealed {
		o.set.kick()
	}
	if o.writers > 0 || o.poison.Load() != nil || o.wrote.Load() || o.suspect || o.gone.Load() || !o.dirty.Load() {
		return
	}
	o.dirty.Store(false)
	o.place(func(info *objectInfo) { info.dirty = false })
}

// place changes where the object lies, or what it is; durable by the next sync of names.
// With layout held for writing.
func (o *object) place(change func(*objectInfo)) {
	s := o.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.gone.Load() {
		return
	}
	info := o.info.clone()
	change(info)
	s.note(entry{kind: entryPlaced, object: *info})
	o.info = s.names.objects[info.id]
}

// markDirty says durably that the object is being written, before the first write after it
// was known to be alike everywhere.
func (o *object) markDirty() error {
	if o.dirty.Load() || o.gone.Load() {
		return nil
	}
	o.marks.Lock()
	defer o.marks.Unlock()
	if o.dirty.Load() {
		return nil
	}
	o.layout.Lock()
	if !o.info.dirty {
		o.place(func(info *objectInfo) { info.dirty = true })
	}
	o.layout.Unlock()
	s := o.set
	s.naming.Lock()
	err := s.sync()
	s.naming.Unlock()
	if err == nil {
		o.dirty.Store(true)
	}
	return err
}

package main

import (
	"errors"
	"io"
	iofs "io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// overlay is a file system over another that is only ever read: what is written to it
// stays in memory, and is gone with it. So a store can be opened, which mends and
// makes things, and nothing of it is touched.
type overlay struct {
	base  ioengine.FS
	locks bool // are taken beneath, where they can be

	mu     sync.Mutex
	nodes  map[string]*node // by cleaned name; nil: removed
	locked []string         // names that somebody else has locked
}

// node is a file, or a folder that was made.
type node struct {
	dir  bool
	base ioengine.File // what lies beneath; nil: nothing

	mu    sync.RWMutex
	size  int64
	under int64            // of base, bytes below this that no page here hides are its own
	pages map[int64][]byte // by number
}

const pageBytes = 4096

func newOverlay(base ioengine.FS) *overlay {
	return &overlay{base: base, nodes: map[string]*node{}}
}

func notThere(op, name string) error {
	return &iofs.PathError{Op: op, Path: name, Err: iofs.ErrNotExist}
}

// find returns the file; the lock is held.
func (o *overlay) findLocked(name string) (*node, error) {
	n, ok := o.nodes[name]
	if ok && n == nil {
		return nil, notThere("open", name)
	}
	if ok {
		return n, nil
	}
	f, err := o.base.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	n = &node{base: f, size: size, under: size, pages: map[int64][]byte{}}
	o.nodes[name] = n
	return n, nil
}

func (o *overlay) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	name = path.Clean(name)
	n, err := o.findLocked(name)
	switch {
	case err == nil && flags&ioengine.Exclusive != 0:
		return nil, &iofs.PathError{Op: "open", Path: name, Err: iofs.ErrExist}
	case errors.Is(err, iofs.ErrNotExist) && flags&ioengine.Create != 0:
		n, err = &node{pages: map[int64][]byte{}}, nil
		o.nodes[name] = n
	}
	if err != nil {
		return nil, err
	}
	return overlayFile{n}, nil
}

func (o *overlay) Rename(oldName, newName string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	oldName, newName = path.Clean(oldName), path.Clean(newName)
	n, err := o.findLocked(oldName)
	if err != nil {
		return err
	}
	o.nodes[newName], o.nodes[oldName] = n, nil
	return nil
}

func (o *overlay) Remove(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	name = path.Clean(name)
	if n, ok := o.nodes[name]; ok && n == nil {
		return notThere("remove", name)
	}
	o.nodes[name] = nil
	return nil
}

func (o *overlay) Mkdir(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	name = path.Clean(name)
	if n := o.nodes[name]; n != nil {
		return nil
	}
	if _, err := o.base.List(name); err != nil {
		o.nodes[name] = &node{dir: true}
	}
	return nil
}

func (o *overlay) List(dir string) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	dir = path.Clean(dir)
	made := o.nodes[dir] != nil
	names, err := o.base.List(dir)
	if err != nil && !(made && errors.Is(err, iofs.ErrNotExist)) {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		over, ok := o.nodes[path.Join(dir, n)]
		return ok && over == nil
	})
	for name, n := range o.nodes {
		if n != nil && path.Dir(name) == dir && !slices.Contains(names, path.Base(name)) {
			names = append(names, path.Base(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (o *overlay) SyncDir(string) error               { return nil }
func (o *overlay) SyncFiles([]ioengine.File) error    { return nil }
func (o *overlay) Free(string) (bytes int64, e error) { return 1 << 40, nil }

// Lock takes the lock beneath if it can: not on a read-only disk. ErrLocked: somebody has it.
func (o *overlay) Lock(name string) (io.Closer, error) {
	none := io.NopCloser(strings.NewReader(""))
	if !o.locks {
		return none, nil
	}
	c, err := o.base.Lock(name)
	if errors.Is(err, ioengine.ErrLocked) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.locked = append(o.locked, path.Dir(name))
		return nil, err
	}
	if err != nil {
		return none, nil
	}
	return c, nil
}

// inUse are the folders that somebody else has locked.
func (o *overlay) inUse() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.locked
}

// hide makes a folder look empty, so that what it holds is made anew, in memory.
func (o *overlay) hide(dir string) error {
	names, err := o.List(dir)
	for _, n := range names {
		err = errors.Join(err, o.Remove(path.Join(dir, n)))
	}
	return err
}

// overlayFile is an open file. The one beneath stays open: a dump is short.
type overlayFile struct{ n *node }

func (f overlayFile) ReadAt(p []byte, off int64) (int, error) {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	n := int(max(0, min(int64(len(p)), f.n.size-off)))
	for at := 0; at < n; {
		k, err := f.n.readPage(p[at:n], off+int64(at))
		if err != nil {
			return at, err
		}
		at += k
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readPage reads up to the end of the page, or of a run of pages that are all beneath.
func (n *node) readPage(p []byte, off int64) (int, error) {
	number, in := off/pageBytes, int(off%pageBytes)
	if page := n.pages[number]; page != nil {
		return copy(p, page[in:]), nil
	}
	k := min(len(p), pageBytes-in)
	for next := number + 1; k < len(p) && n.pages[next] == nil; next++ {
		k = min(len(p), k+pageBytes)
	}
	have := int(max(0, min(int64(k), n.under-off)))
	clear(p[have:k])
	if have == 0 {
		return k, nil
	}
	if _, err := n.base.ReadAt(p[:have], off); err != nil && err != io.EOF {
		return 0, err
	}
	return k, nil
}

func (f overlayFile) WriteAt(p []byte, off int64) (int, error) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	for at := 0; at < len(p); {
		number, in := (off+int64(at))/pageBytes, int((off+int64(at))%pageBytes)
		page := f.n.pages[number]
		if page == nil {
			page = make([]byte, pageBytes)
			if in != 0 || len(p)-at < pageBytes {
				if _, err := f.n.readPage(page, number*pageBytes); err != nil {
					return at, err
				}
			}
			f.n.pages[number] = page
		}
		at += copy(page[in:], p[at:])
	}
	f.n.size = max(f.n.size, off+int64(len(p)))
	return len(p), nil
}

func (f overlayFile) WriteStart(parts [][]byte, off int64, done func(error)) {
	_, err := f.WriteAt(slices.Concat(parts...), off)
	go done(err)
}

func (f overlayFile) WriteParts(parts [][]byte, off int64) error {
	_, err := f.WriteAt(slices.Concat(parts...), off)
	return err
}

func (f overlayFile) Align() int  { return 1 }
func (f overlayFile) Sync() error { return nil }

func (f overlayFile) Allocate(off, n int64) error {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	f.n.size = max(f.n.size, off+n)
	return nil
}

func (f overlayFile) Zero(off, n int64) error {
	zeros := make([]byte, 64<<10)
	size, _ := f.Size()
	for end := min(off+n, size); off < end; {
		k := min(end-off, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:k], off); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// WillRead does nothing: nothing depends on it.
func (f overlayFile) WillRead(int64, int64) {}

// WriteBack does nothing: nothing is ever written.
func (f overlayFile) WriteBack(int64, int64) {}

// NextData asks what lies beneath while nothing was written here; else it calls
// everything data, which it may.
func (f overlayFile) NextData(off int64) (at, n int64, err error) {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	if len(f.n.pages) == 0 && f.n.base != nil && f.n.under == f.n.size {
		return f.n.base.NextData(off)
	}
	if off >= f.n.size {
		return 0, 0, nil
	}
	return off, f.n.size - off, nil
}

func (f overlayFile) Truncate(size int64) error {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if size < f.n.size {
		f.n.under = min(f.n.under, size)
		for number, page := range f.n.pages {
			if at := number * pageBytes; at >= size {
				delete(f.n.pages, number)
			} else if at+pageBytes > size {
				clear(page[size-at:])
			}
		}
	}
	f.n.size = size
	return nil
}

func (f overlayFile) Size() (int64, error) {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	return f.n.size, nil
}

func (f overlayFile) Close() error { return nil }

// close closes what lies beneath.
func (o *overlay) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	for _, n := range o.nodes {
		if n != nil && n.base != nil {
			err = errors.Join(err, n.base.Close())
		}
	}
	return err
}

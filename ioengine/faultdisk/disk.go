// Package faultdisk is the disk of the tests: a file system in memory that can be
// crashed at any operation, keeps exactly what ioengine.FS promises to keep, and
// fails where it is told to.
//
//	disk := faultdisk.New(512)
//	disk.OnOp(func(faultdisk.Op, string) {            // at every mutating operation:
//		after := disk.Crash(rng, faultdisk.KeepSome)  // the disk as the next boot finds it
//		...open it and look for what was acknowledged...
//	})
//
// What a crash may do:
//   - A write, truncation, allocation or zeroing since the file's last good Sync may be
//     there or not, each 512-byte sector of it by itself, in any order.
//   - A name made, renamed or removed since its folder's last good SyncDir may be as
//     before or as after, each change by itself; a rename is whole or absent.
//   - A write that was started and has not ended may be there in the same way. No Sync
//     covers it; reads show it when it has ended. A killed process's is there.
//   - After a failed Sync, what was unsynced then may be gone at the next crash even if
//     a later Sync succeeds, while reads still show it: as page caches do.
//
// A copy made by Crash or Kill shares nothing with the disk it was made from, so
// what still runs on that one cannot interfere. All methods may be called
// concurrently; a hook is called without any lock held, by who did the operation.
package faultdisk

import (
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"sync"
	"syscall"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// sectorBytes is what a disk writes whole or not at all.
const sectorBytes = 512

// Disk is a file system in memory; it implements ioengine.FS. Names are cleaned
// and start at the root, which is always there.
type Disk struct {
	align int

	mu struct {
		sync.Mutex
		root    *folder
		clock   int // numbers the changes, over all files and folders
		ops     int
		hook    func(Op, string)
		hooking chan struct{} // the hook is running; closed when it has ended
		faults  []*armed
		locked  map[string]bool
		free    int64
	}
}

var _ ioengine.FS = (*Disk)(nil)

// New returns an empty disk whose Direct files want align, a power of two: 1, or as
// disks have it 512 or 4096.
func New(align int) *Disk {
	d := &Disk{align: align}
	d.mu.root = newFolder()
	d.mu.locked = map[string]bool{}
	d.mu.free = math.MaxInt64
	return d
}

// node is a *file or a *folder.
type node any

// folder is a directory: what it shows, what a crash leaves for certain, and the changes between.
type folder struct {
	now, durable map[string]node
	pending      []*rename
}

func newFolder() *folder { return &folder{now: map[string]node{}, durable: map[string]node{}} }

// rename is a change of names that is done whole or not at all.
type rename struct {
	at   int // the disk's clock
	sets []nameSet
	done bool // durable
}

// nameSet gives a name to a node, or to none.
type nameSet struct {
	in   *folder
	name string
	node node
}

func (s nameSet) apply(names map[string]node) {
	if s.node == nil {
		delete(names, s.name)
	} else {
		names[s.name] = s.node
	}
}

// changeNamesLocked does the change, which the next SyncDir of a folder in it makes durable.
func (d *Disk) changeNamesLocked(sets ...nameSet) {
	d.mu.clock++
	r := &rename{at: d.mu.clock, sets: sets}
	for _, s := range sets {
		s.apply(s.in.now)
		if !slices.Contains(s.in.pending, r) {
			s.in.pending = append(s.in.pending, r)
		}
	}
}

func (r *rename) makeDurable() {
	if r.done {
		return
	}
	r.done = true
	for _, s := range r.sets {
		s.apply(s.in.durable)
		if invariant.Planted("ioengine/faultdisk/half-a-rename") {
			return
		}
	}
}

// findLocked returns the folder that holds the name, the name's last part, and what it names.
func (d *Disk) findLocked(name string) (in *folder, last string, n node, err error) {
	dir, last := path.Split(path.Clean("/" + name))
	in, err = d.folderLocked(dir)
	if err != nil {
		return nil, last, nil, err
	}
	return in, last, in.now[last], nil
}

func (d *Disk) folderLocked(dir string) (*folder, error) {
	dir = path.Clean("/" + dir)
	if dir == "/" {
		return d.mu.root, nil
	}
	in, err := d.folderLocked(path.Dir(dir))
	if err != nil {
		return nil, err
	}
	switch n := in.now[path.Base(dir)].(type) {
	case *folder:
		return n, nil
	case nil:
		return nil, fs.ErrNotExist
	}
	return nil, syscall.ENOTDIR
}

// Open opens a file, by the flags.
func (d *Disk) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	op := OpOpen
	if flags&ioengine.Create != 0 && !d.exists(name) {
		op = OpCreate
	}
	return call(d, op, "open", name, func() (ioengine.File, error) {
		in, last, n, err := d.findLocked(name)
		if err != nil {
			return nil, err
		}
		f, isFile := n.(*file)
		switch {
		case n != nil && !isFile:
			return nil, syscall.EISDIR
		case n != nil && flags&ioengine.Exclusive != 0:
			return nil, fs.ErrExist
		case n == nil && flags&ioengine.Create == 0:
			return nil, fs.ErrNotExist
		case n == nil:
			f = &file{now: newContent(), durable: newContent()}
			d.changeNamesLocked(nameSet{in, last, f})
		}
		h := &handle{disk: d, name: name, file: f, readOnly: flags&ioengine.ReadOnly != 0, align: 1}
		if flags&ioengine.Direct != 0 {
			h.align = d.align
		}
		return h, nil
	})
}

func (d *Disk) exists(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _, n, err := d.findLocked(name)
	return err == nil && n != nil
}

// Rename renames a file; folders keep their names.
func (d *Disk) Rename(oldName, newName string) error {
	return d.do(OpRename, "rename", newName, func() error {
		from, oldLast, n, err := d.findLocked(oldName)
		if err != nil {
			return err
		}
		to, newLast, target, err := d.findLocked(newName)
		if err != nil {
			return err
		}
		if n == nil {
			return fs.ErrNotExist
		}
		if _, isFile := n.(*file); !isFile {
			return syscall.EISDIR
		}
		if _, isFolder := target.(*folder); isFolder {
			return syscall.EISDIR
		}
		d.changeNamesLocked(nameSet{from, oldLast, nil}, nameSet{to, newLast, n})
		return nil
	})
}

// Remove removes a file or an empty folder.
func (d *Disk) Remove(name string) error {
	return d.do(OpRemove, "remove", name, func() error {
		in, last, n, err := d.findLocked(name)
		if err != nil {
			return err
		}
		if n == nil {
			return fs.ErrNotExist
		}
		if dir, ok := n.(*folder); ok && len(dir.now) > 0 {
			return syscall.ENOTEMPTY
		}
		d.changeNamesLocked(nameSet{in, last, nil})
		return nil
	})
}

// Mkdir makes one folder; it is no error if it is there.
func (d *Disk) Mkdir(name string) error {
	return d.do(OpMkdir, "mkdir", name, func() error {
		in, last, n, err := d.findLocked(name)
		if err != nil {
			return err
		}
		switch n.(type) {
		case *folder:
			return nil
		case *file:
			return fs.ErrExist
		}
		if last != "" { // the root is there
			d.changeNamesLocked(nameSet{in, last, newFolder()})
		}
		return nil
	})
}

// List returns the names in a folder, sorted.
func (d *Disk) List(dir string) ([]string, error) {
	return call(d, OpRead, "list", dir, func() ([]string, error) {
		in, err := d.folderLocked(dir)
		if err != nil {
			return nil, err
		}
		names := make([]string, 0, len(in.now))
		for name := range in.now {
			names = append(names, name)
		}
		slices.Sort(names)
		return names, nil
	})
}

// SyncDir makes the names in a folder durable.
func (d *Disk) SyncDir(dir string) error {
	return d.do(OpSyncDir, "sync", dir, func() error {
		in, err := d.folderLocked(dir)
		if err != nil {
			return err
		}
		for _, r := range in.pending {
			r.makeDurable()
		}
		in.pending = nil
		return nil
	})
}

// Free returns what SetFree set; at first there is no end to it. The disk itself is
// full only where a fault says so.
func (d *Disk) Free(dir string) (int64, error) {
	return call(d, OpRead, "statfs", dir, func() (int64, error) {
		if _, err := d.folderLocked(dir); err != nil {
			return 0, err
		}
		return d.mu.free, nil
	})
}

// SetFree sets what Free returns, in bytes.
func (d *Disk) SetFree(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.free = bytes
}

// Lock takes the lock file for one holder at a time on this disk.
func (d *Disk) Lock(name string) (io.Closer, error) {
	f, err := d.Open(name, ioengine.Create)
	if err != nil {
		return nil, err
	}
	key := path.Clean("/" + name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.locked[key] {
		f.(*handle).closed = true
		return nil, &fs.PathError{Op: "lock", Path: name, Err: ioengine.ErrLocked}
	}
	d.mu.locked[key] = true
	return &lock{d, key}, nil
}

type lock struct {
	disk *Disk
	key  string
}

func (l *lock) Close() error {
	l.disk.mu.Lock()
	defer l.disk.mu.Unlock()
	if !l.disk.mu.locked[l.key] {
		return &fs.PathError{Op: "unlock", Path: l.key, Err: fs.ErrClosed}
	}
	delete(l.disk.mu.locked, l.key)
	return nil
}

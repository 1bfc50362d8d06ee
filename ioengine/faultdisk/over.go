package faultdisk

import (
	"io"
	"io/fs"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Over is another file system whose calls fail where a Fault says so; of it Err, Ops, Only,
// At and Ever count. It is for what must lie on a real disk, because a library opens files
// there by itself. Its calls are sites as a Disk's are.
type Over struct {
	fs     ioengine.FS
	faults *Disk // counts, and holds the faults
}

var _ ioengine.FS = (*Over)(nil)

// NewOver returns a file system that does what fs does.
func NewOver(fs ioengine.FS) *Over { return &Over{fs, New(1)} }

// Inject arms a fault, as that of a Disk.
func (o *Over) Inject(f Fault) { o.faults.Inject(f) }

// Heal disarms all faults.
func (o *Over) Heal() { o.faults.Heal() }

// fail returns the error that an operation is to have; nil: none.
func (o *Over) fail(op Op, verb, name string) error {
	if f := o.faults.begin(op, name); f.Err != nil {
		return &fs.PathError{Op: verb, Path: name, Err: f.Err}
	}
	return nil
}

// try does an operation unless it is to fail.
func (o *Over) try(op Op, verb, name string, do func() error) error {
	if err := o.fail(op, verb, name); err != nil {
		return err
	}
	return do()
}

// Open opens a file; with Create it counts as OpCreate.
func (o *Over) Open(name string, flags ioengine.Flags) (f ioengine.File, err error) {
	op := OpOpen
	if flags&ioengine.Create != 0 {
		op = OpCreate
	}
	err = o.try(op, "open", name, func() (err error) {
		f, err = o.fs.Open(name, flags)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &overFile{f, o, name}, nil
}

// Rename implements ioengine.FS.
func (o *Over) Rename(oldName, newName string) error {
	return o.try(OpRename, "rename", newName, func() error { return o.fs.Rename(oldName, newName) })
}

// Remove implements ioengine.FS.
func (o *Over) Remove(name string) error {
	return o.try(OpRemove, "remove", name, func() error { return o.fs.Remove(name) })
}

// Mkdir implements ioengine.FS.
func (o *Over) Mkdir(name string) error {
	return o.try(OpMkdir, "mkdir", name, func() error { return o.fs.Mkdir(name) })
}

// List implements ioengine.FS.
func (o *Over) List(dir string) (names []string, err error) {
	err = o.try(OpRead, "list", dir, func() (err error) {
		names, err = o.fs.List(dir)
		return err
	})
	return names, err
}

// SyncDir implements ioengine.FS.
func (o *Over) SyncDir(dir string) error {
	return o.try(OpSyncDir, "sync", dir, func() error { return o.fs.SyncDir(dir) })
}

// SyncFiles is one operation for each file.
func (o *Over) SyncFiles(files []ioengine.File) error {
	inner := make([]ioengine.File, len(files))
	for i, f := range files {
		w := f.(*overFile)
		if err := o.fail(OpSync, "sync", w.name); err != nil {
			return err
		}
		inner[i] = w.File
	}
	return o.fs.SyncFiles(inner)
}

// Free implements ioengine.FS.
func (o *Over) Free(dir string) (n int64, err error) {
	err = o.try(OpRead, "statfs", dir, func() (err error) {
		n, err = o.fs.Free(dir)
		return err
	})
	return n, err
}

// Lock implements ioengine.FS.
func (o *Over) Lock(name string) (c io.Closer, err error) {
	err = o.try(OpCreate, "lock", name, func() (err error) {
		c, err = o.fs.Lock(name)
		return err
	})
	return c, err
}

// overFile is a file of an Over.
type overFile struct {
	ioengine.File
	over *Over
	name string
}

func (f *overFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.over.try(OpRead, "read", f.name, func() (err error) {
		n, err = f.File.ReadAt(p, off)
		return err
	})
	return n, err
}

func (f *overFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.over.try(OpWrite, "write", f.name, func() (err error) {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *overFile) WriteStart(parts [][]byte, off int64, done func(error)) {
	if err := f.over.fail(OpWrite, "write", f.name); err != nil {
		go done(err)
		return
	}
	f.File.WriteStart(parts, off, done)
}

func (f *overFile) WriteParts(parts [][]byte, off int64) error {
	return f.over.try(OpWrite, "write", f.name, func() error { return f.File.WriteParts(parts, off) })
}

func (f *overFile) Sync() error { return f.over.try(OpSync, "sync", f.name, f.File.Sync) }

func (f *overFile) Allocate(off, n int64) error {
	return f.over.try(OpAllocate, "allocate", f.name, func() error { return f.File.Allocate(off, n) })
}

func (f *overFile) Zero(off, n int64) error {
	return f.over.try(OpZero, "zero", f.name, func() error { return f.File.Zero(off, n) })
}

func (f *overFile) NextData(off int64) (at, n int64, err error) {
	err = f.over.try(OpRead, "seek", f.name, func() (err error) {
		at, n, err = f.File.NextData(off)
		return err
	})
	return at, n, err
}

func (f *overFile) Truncate(size int64) error {
	return f.over.try(OpTruncate, "truncate", f.name, func() error { return f.File.Truncate(size) })
}

func (f *overFile) Size() (size int64, err error) {
	err = f.over.try(OpRead, "size", f.name, func() (err error) {
		size, err = f.File.Size()
		return err
	})
	return size, err
}

package ioengine

import (
	"errors"
	"io"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// osFile is a file of this machine. It reads and writes by its own descriptor: the
// standard library goes on reading at an unaligned place after a short direct read.
type osFile struct {
	fs    *osFS
	name  string
	align int

	// open is held for reading by every call and for writing by Close alone, so
	// that no call can reach a descriptor that was given out again.
	open struct {
		sync.RWMutex
		closed bool
	}
	fd int

	// ring is there once a write was started, until Close.
	ring struct {
		once sync.Once
		ring *ring
	}

	// reads is there once a read met another one, until Close.
	reads struct {
		once sync.Once
		ring *ring
	}

	// failed is the first error of Sync; every later Sync returns it.
	failed struct {
		sync.Mutex
		err error
	}
}

// maxDirectAlign bounds what statx may ask for: buffers are aligned to no more.
const maxDirectAlign = 4096

// goDirect turns the page cache off when the file system says how. Failing that
// the file stays as it is.
func (f *osFile) goDirect() {
	var st unix.Statx_t
	err := unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err != nil || st.Mask&unix.STATX_DIOALIGN == 0 || st.Dio_offset_align == 0 {
		return
	}
	align := int(max(st.Dio_mem_align, st.Dio_offset_align))
	if align > maxDirectAlign || align&(align-1) != 0 {
		return
	}
	flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return
	}
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, flags|unix.O_DIRECT); err == nil {
		f.align = align
	}
}

// use runs call with the descriptor, again while a signal interrupts it.
func (f *osFile) use(op string, call func(fd int) error) error {
	f.open.RLock()
	defer f.open.RUnlock()
	if f.open.closed {
		return pathError(op, f.name, unix.EBADF)
	}
	for {
		if err := call(f.fd); err != unix.EINTR {
			return pathError(op, f.name, err)
		}
	}
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	f.open.RLock()
	defer f.open.RUnlock()
	if f.open.closed {
		return 0, pathError("read", f.name, unix.EBADF)
	}
	done := 0
	if len(p) <= besideMost {
		under := &f.fs.reading
		if under.Add(1) > 1 {
			done = f.readBeside(p, off)
		}
		defer under.Add(-1)
	}
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError("read", f.name, err)
		}
		done += n
		if n == 0 && invariant.Planted("ioengine/eof-unsaid") {
			return done, nil
		}
		if n == 0 || (n%f.align != 0 && done < len(p)) {
			return done, io.EOF // a direct read stops unaligned only at the end
		}
	}
	return done, nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	f.open.RLock()
	defer f.open.RUnlock()
	if f.open.closed {
		return 0, pathError("write", f.name, unix.EBADF)
	}
	return f.write(p, off)
}

// write is WriteAt of a file that is held open.
func (f *osFile) write(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, pathError("write", f.name, err)
		}
		done += n
		if n == 0 || (n%f.align != 0 && done < len(p)) {
			return done, pathError("write", f.name, io.ErrShortWrite)
		}
	}
	return done, nil
}

func (f *osFile) WriteParts(parts [][]byte, off int64) error {
	f.open.RLock()
	defer f.open.RUnlock()
	if f.open.closed {
		return pathError("write", f.name, unix.EBADF)
	}
	if len(parts) == 1 {
		_, err := f.write(parts[0], off)
		return err
	}
	n, err := unix.Pwritev(f.fd, parts, off)
	for err == unix.EINTR {
		n, err = unix.Pwritev(f.fd, parts, off)
	}
	if err != nil {
		return pathError("write", f.name, err)
	}
	return f.writeRest(parts, off, n)
}

// writeRest writes what is left of the parts, whose first wrote bytes were written at off.
func (f *osFile) writeRest(parts [][]byte, off int64, wrote int) error {
	for _, p := range parts {
		from := min(wrote, len(p))
		if _, err := f.write(p[from:], off+int64(from)); err != nil {
			return err
		}
		if off, wrote = off+int64(len(p)), wrote-from; invariant.Planted("ioengine/part-forgotten") {
			break
		}
	}
	return nil
}

func (f *osFile) Align() int { return f.align }

// Sync is fdatasync: bytes, and the size and places needed to find them. Once it
// failed it stays failed: the kernel reports lost pages one time only.
func (f *osFile) Sync() error {
	f.failed.Lock()
	defer f.failed.Unlock()
	if f.failed.err == nil || invariant.Planted("ioengine/sync-again") {
		f.failed.err = f.use("sync", unix.Fdatasync)
	}
	return f.failed.err
}

// trusted says why no Sync of the file can be believed.
func (f *osFile) trusted() error {
	f.failed.Lock()
	defer f.failed.Unlock()
	return f.failed.err
}

// distrust makes every later Sync fail.
func (f *osFile) distrust(err error) {
	f.failed.Lock()
	defer f.failed.Unlock()
	if f.failed.err == nil {
		f.failed.err = err
	}
}

// Allocate falls back to growing the file where space cannot be set aside.
func (f *osFile) Allocate(off, n int64) error {
	return f.use("allocate", func(fd int) error {
		err := unix.Fallocate(fd, 0, off, n)
		if err != unix.EOPNOTSUPP {
			return err
		}
		size, err := unix.Seek(fd, 0, unix.SEEK_END)
		if err != nil || size >= off+n {
			return err
		}
		return unix.Ftruncate(fd, off+n)
	})
}

// zeroChunk is how much Zero writes at once where holes cannot be made.
const zeroChunk = 1 << 20

func (f *osFile) Zero(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if !invariant.Planted("ioengine/zero-grows") {
		n = min(n, size-off)
	}
	if n <= 0 {
		return nil
	}
	err = f.use("zero", func(fd int) error {
		if invariant.Planted("ioengine/zero-grows") {
			return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, off, n)
		}
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err == unix.EOPNOTSUPP {
			err = unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
		return err
	})
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := alignedZeros(int(min(n, zeroChunk)))
	for n > 0 {
		c := min(n, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:c], off); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// alignedZeros returns n zero bytes at an address that any direct file takes.
func alignedZeros(n int) []byte {
	b := make([]byte, n+maxDirectAlign)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (maxDirectAlign - 1))
	return b[skip : skip+n : skip+n]
}

// WillRead does nothing for a direct file: that is read past what would be brought.
func (f *osFile) WillRead(off, n int64) {
	if f.align > 1 {
		return
	}
	f.fs.engine.workers.run(func() { // to find where the bytes lie the kernel may have to read, and wait
		_ = f.use("read ahead", func(fd int) error { // it is a hint; the file may be closed
			return unix.Fadvise(fd, off, n, unix.FADV_WILLNEED)
		})
	})
}

// DropCache implements Cached.
func (f *osFile) DropCache() error {
	return f.use("drop the cache of", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
}

// WriteBack does nothing for a direct file. It waits for none of the writes: the kernel would tell an error to who does, and not to
// Sync again.
func (f *osFile) WriteBack(off, n int64) {
	if f.align > 1 {
		return
	}
	err := f.use("write back", func(fd int) error {
		return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		f.distrust(err) // a file system may tell it here alone; anything else says that it does not take the hint
	}
}

func (f *osFile) NextData(off int64) (at, n int64, err error) {
	err = f.use("seek", func(fd int) error {
		at, err = unix.Seek(fd, off, unix.SEEK_DATA)
		switch err {
		case nil:
		case unix.ENXIO: // only a hole from here, or nothing
			at, n = 0, 0
			return nil
		case unix.EINVAL, unix.EOPNOTSUPP: // cannot tell
			size, err := unix.Seek(fd, 0, unix.SEEK_END)
			if at, n = off, size-off; err != nil || n <= 0 {
				at, n = 0, 0
			}
			return err
		default:
			return err
		}
		end, err := unix.Seek(fd, at, unix.SEEK_HOLE)
		n = end - at
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return at, n, nil
}

// DataFrom is where NextData's extent begins; at is less than off when only holes follow. To find the end a file system
// in memory looks through all of the data.
func (f *osFile) DataFrom(off int64) (at int64, err error) {
	err = f.use("seek", func(fd int) error {
		at, err = unix.Seek(fd, off, unix.SEEK_DATA)
		switch err {
		case unix.ENXIO:
			at = -1
			return nil
		case unix.EINVAL, unix.EOPNOTSUPP: // cannot tell
			at = off
			return nil
		}
		return err
	})
	return at, err
}

func (f *osFile) Truncate(size int64) error {
	return f.use("truncate", func(fd int) error { return unix.Ftruncate(fd, size) })
}

// Size works for disks too, which have no size in their inode.
func (f *osFile) Size() (size int64, err error) {
	err = f.use("size", func(fd int) error {
		size, err = unix.Seek(fd, 0, unix.SEEK_END)
		return err
	})
	return size, err
}

func (f *osFile) Close() error {
	f.open.Lock()
	defer f.open.Unlock()
	if f.open.closed {
		return pathError("close", f.name, unix.EBADF)
	}
	f.open.closed = true
	if f.ring.ring != nil {
		f.fs.engine.release()
	}
	if f.reads.ring != nil {
		f.fs.readers.release()
	}
	return pathError("close", f.name, unix.Close(f.fd))
}

package ioengine

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// The bytes that QEMU locks of a disk that it writes to, and of one that nobody else is to write to.
const (
	qemuWrites     = 101
	qemuWritesOnly = 201
)

// Use takes a disk of this machine as QEMU does one that it writes to, until the closer is closed: no QEMU opens it to write meanwhile, nor does who
// goes by InUse. ErrLocked: somebody else has it. A file system without such locks keeps nobody off.
func Use(path string) (io.Closer, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	if st.Mode()&os.ModeDevice != 0 {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	for _, at := range []int64{qemuWrites, qemuWritesOnly} {
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}); errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrLocked), f.Close())
		}
	}
	if err := locked(f); err != nil { // by another opening than this
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f, nil
}

// locked is ErrLocked for a file that another opening of it has a lock on.
func locked(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err == nil && l.Type != unix.F_UNLCK && !invariant.Planted("ioengine/uses-used") {
		return ErrLocked
	}
	return nil
}

// InUse says that somebody else has a disk of this machine: ErrLocked. It sees programs of QEMU, and whoever else has POSIX or OFD
// locks on a file that he uses, and file systems and other owners of a device. Whoever has it without any of that is not seen.
func InUse(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	flags := os.O_RDONLY
	if st.Mode()&os.ModeDevice != 0 {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := locked(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

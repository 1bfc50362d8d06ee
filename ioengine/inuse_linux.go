package ioengine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

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
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err == nil && l.Type != unix.F_UNLCK {
		return fmt.Errorf("%s: %w", path, ErrLocked)
	}
	return nil
}

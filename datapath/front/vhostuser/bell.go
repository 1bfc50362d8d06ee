package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bell is the eventfd by which a queue's guest hears of answers. It may be changed while
// it is in use.
type bell struct {
	mu     sync.Mutex
	fd     int  // -1: the guest looks by itself
	blocks bool // a full one would hold us up
}

func newBell() *bell { return &bell{fd: -1} }

// set takes fd, -1 for none.
func (b *bell) set(fd int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd >= 0 {
		unix.Close(b.fd)
	}
	b.fd = fd
	if fd < 0 {
		return nil
	}
	// The flag belongs to the open file, which the front end has too: it is not changed.
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	b.blocks = flags&unix.O_NONBLOCK == 0
	return err
}

// ring tells the guest. An eventfd that is full has told enough.
func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fd < 0 {
		return
	}
	if b.blocks {
		p := []unix.PollFd{{Fd: int32(b.fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(p, 0); n != 1 || err != nil {
			return
		}
	}
	_, _ = unix.Write(b.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// openKick opens fd, the eventfd by which a queue's guest says that there are requests, to wait for
// it among goroutines.
func openKick(fd int) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// Only we read it, and whoever writes an eventfd never has to wait.
	if err := unix.SetNonblock(own, true); err != nil {
		return nil, errors.Join(err, unix.Close(own))
	}
	f := os.NewFile(uintptr(own), "kick")
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: a kick that cannot be waited for: %w", ErrProtocol, err), f.Close())
	}
	return f, nil
}

package capture

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// ErrInUse says that another process holds what only one may have.
var ErrInUse = errors.New("in use by another process")

// lockFile takes an flock on the file, made when absent, and waits for it: its holders are brief.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err {
		case nil:
			return f, nil
		case unix.EINTR:
		default:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

// tryLockFile is lockFile, but ErrInUse at once when another has it.
func tryLockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
		case nil:
			return f, nil
		case unix.EINTR:
		case unix.EWOULDBLOCK:
			f.Close()
			return nil, fmt.Errorf("%s: %w", name, ErrInUse)
		default:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
	}
}

const (
	// succeedWait is how long a filter waits for its predecessor's last writes.
	succeedWait = 30 * time.Second
	// tapWait outlasts whoever only looks whether there is a tap.
	tapWait = 250 * time.Millisecond
)

// filterKey is a filter's name in the order page: its pool socket, hashed.
func filterKey(socket string) uint64 {
	if abs, err := filepath.Abs(socket); err == nil {
		socket = abs
	}
	h := fnv.New64a()
	h.Write([]byte(socket))
	return h.Sum64() | 1 // never zero
}

// filterLockName is the file a live filter holds locked.
func filterLockName(dir string, group record.GroupID, key uint64) string {
	return filepath.Join(dir, fmt.Sprintf("filter-%s-%016x.lock", group, key))
}

// tapLockName is the file the group's tap holds locked.
func tapLockName(dir string, group record.GroupID) string {
	return filepath.Join(dir, fmt.Sprintf("tap-%s.lock", group))
}

// lives says whether some process holds the lock file. Unsure counts as yes.
func lives(name string) bool {
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		return false
	}
	f, err := tryLockFile(name)
	if err != nil {
		return true
	}
	f.Close()
	return false
}

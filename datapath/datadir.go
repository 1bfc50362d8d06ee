package datapath

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// dataFormat is what the data directory of this version says of itself.
const dataFormat = 1

// ErrFormat says that a data directory is of a version that this one does not know.
var ErrFormat = errors.New("data directory of an unknown format")

// OpenDataDir locks a VRA's data directory for this process, makes it when it is
// absent, and checks that this version may use it. Close unlocks it.
func OpenDataDir(dir string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := ioengine.OS().Lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("data directory %s is in use by another process, or cannot be locked: %w", dir, err)
	}
	if err := checkDataFormat(filepath.Join(dir, "format")); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func checkDataFormat(name string) error {
	p, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return writeDurably(name, fmt.Appendf(nil, "holdfast vra %d\n", dataFormat))
	}
	if err != nil {
		return err
	}
	var n int
	if _, err := fmt.Sscanf(string(p), "holdfast vra %d\n", &n); err != nil || n != dataFormat {
		return fmt.Errorf("%s says %q, this version knows %d: %w", name, p, dataFormat, ErrFormat)
	}
	return nil
}

// writeDurably makes the file appear whole, synced, name and all.
func writeDurably(name string, p []byte) error {
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(p); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncFolderOf(name)
}

// syncFolderOf makes durable that the name is there, or is not.
func syncFolderOf(name string) error {
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

package scenario

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Logs are turned over at logBytes, looked at every so often; oldLogs older ones stay.
const (
	logBytes = 8 << 20
	oldLogs  = 3
)

// openLog opens a log for a process to append to.
func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// turnOver moves a log that has grown past limit to path.1, path.1 to path.2 and so
// on, and empties it. The process that writes it holds it open for appending and goes
// on at its new end; a line written between copy and emptying is lost. (A pipe
// through the supervisor would lose none, but its writer would die with it.)
func turnOver(path string, limit int64, keep int) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() < limit {
		return err
	}
	old := func(n int) string { return fmt.Sprintf("%s.%d", path, n) }
	for n := keep - 1; n >= 1; n-- {
		if err := os.Rename(old(n), old(n+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := copyFile(path, old(1)); err != nil {
		return errors.Join(err, os.Remove(old(1)))
	}
	return os.Truncate(path, 0)
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// lastLine returns the last line of a log that is not empty, at most 500 bytes of it.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 4096
	if size, err := f.Seek(0, io.SeekEnd); err != nil || size == 0 {
		return ""
	} else if _, err := f.Seek(max(0, size-tail), io.SeekStart); err != nil {
		return ""
	}
	text, err := io.ReadAll(io.LimitReader(f, tail))
	if err != nil {
		return ""
	}
	return lastOf(string(text))
}

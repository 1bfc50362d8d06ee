package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of a log file: bytes of one, older ones that are kept (FILE.1 is the newest of them), lines that wait to be written, how
// long a disk that failed is left alone, and how long the end of the process waits for the last lines.
const (
	logFileBytes = 16 << 20
	logFileKeep  = 4
	logFileQueue = 1024
	logFileRetry = 10 * time.Second
	logFileEnd   = time.Second
)

// logFile writes what is logged to a file, and begins a new one when that is full. Nobody who logs ever waits for its disk: lines for
// which there is no room are left out, and counted in the file.
type logFile struct {
	path  string
	bytes int64 // logFileBytes
	say   func(string)
	lines chan []byte
	lost  atomic.Int64
	ended chan struct{}

	closing sync.RWMutex // held for writing by close
	closed  bool

	// Of the goroutine that writes.
	file   *os.File
	size   int64
	failed time.Time // zero: the last write did not
}

// openLogFile begins to write; say tells what goes wrong with that, once.
func openLogFile(path string, bytes int64, say func(string)) *logFile {
	l := &logFile{path: path, bytes: bytes, say: say, lines: make(chan []byte, logFileQueue), ended: make(chan struct{})}
	go l.run()
	return l
}

// Write takes a line. It never fails, and never waits.
func (l *logFile) Write(p []byte) (int, error) {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return len(p), nil
	}
	select {
	case l.lines <- append([]byte(nil), p...):
	default:
		l.lost.Add(1)
	}
	return len(p), nil
}

// close waits until all is written, but not for long.
func (l *logFile) close() {
	l.closing.Lock()
	if !l.closed {
		l.closed = true
		close(l.lines)
	}
	l.closing.Unlock()
	late := time.NewTimer(logFileEnd)
	defer late.Stop()
	select {
	case <-l.ended:
	case <-late.C:
	}
}

func (l *logFile) run() {
	defer close(l.ended)
	for line := range l.lines {
		if !l.failed.IsZero() && time.Since(l.failed) < logFileRetry {
			l.lost.Add(1)
			continue
		}
		lost := l.lost.Swap(0)
		if lost > 0 {
			line = fmt.Appendf(nil, "time=%s level=WARN msg=\"lines are left out here: this file could not be written in time\" lines=%d\n%s", time.Now().Format(time.RFC3339Nano), lost, line)
		}
		if err := l.put(line); err != nil {
			if l.failed.IsZero() {
				l.say(fmt.Sprintf("the log file is not written: %v", err))
			}
			l.failed = time.Now()
			l.lost.Add(lost + 1)
			continue
		}
		l.failed = time.Time{}
	}
	if l.file != nil {
		l.file.Close() // each line was written
	}
}

// put writes to the file, which is made if it is not there. After an error it is opened anew.
func (l *logFile) put(line []byte) (err error) {
	defer func() {
		if err != nil && l.file != nil {
			err = errors.Join(err, l.file.Close())
			l.file = nil
		}
	}()
	if l.file != nil && l.size > 0 && l.size+int64(len(line)) > l.bytes {
		if err := l.turn(); err != nil {
			return err
		}
	}
	if l.file == nil {
		if l.file, err = os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err != nil {
			return err
		}
		fi, err := l.file.Stat()
		if err != nil {
			return err
		}
		l.size = fi.Size()
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	return err
}

// turn has the next line begin a new file.
func (l *logFile) turn() error {
	err := l.file.Close()
	l.file = nil
	name := func(n int) string {
		if n == 0 {
			return l.path
		}
		return fmt.Sprintf("%s.%d", l.path, n)
	}
	for n := logFileKeep; n > 0; n-- {
		if rerr := os.Rename(name(n-1), name(n)); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

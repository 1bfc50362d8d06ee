package sidecar

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Bounds of what is read of a log: a line in bytes, files of one log, and bytes that are looked through for
// one call.
const (
	maxLine     = 16 << 10
	maxLogFiles = 64
	maxScan     = 1 << 30
)

// rotated are the files of a log, the oldest first: path.N down to path.1, and path itself.
func rotated(path string) (files []string) {
	for n := 1; n <= maxLogFiles; n++ {
		older := fmt.Sprintf("%s.%d", path, n)
		if _, err := os.Stat(older); err != nil {
			break
		}
		files = append([]string{older}, files...)
	}
	if _, err := os.Stat(path); err == nil {
		files = append(files, path)
	}
	return files
}

var errNoFile = errors.New("it is not a regular file")

// openFile opens what the configuration names for reading, if it is a file: opening a pipe would wait for whoever writes into it, and
// a device may have no end.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !invariant.Planted("control/sidecar/any-file") {
		err = &fs.PathError{Op: "open", Path: path, Err: errNoFile}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// logQuery says which lines are asked for.
type logQuery struct {
	from, to time.Time // zero: not bounded
	lines    int       // the newest; 0: all
	bytes    int64     // the newest
	scan     int64     // files are read from the newest on, until they have so many bytes; 0: maxScan
}

// lineTime is when a line was logged, where it says so: slog's text form begins with it.
func lineTime(line string) (time.Time, bool) {
	text, ok := strings.CutPrefix(line, "time=")
	if !ok {
		return time.Time{}, false
	}
	text, _, _ = strings.Cut(text, " ")
	t, err := time.Parse(time.RFC3339Nano, text)
	return t, err == nil
}

// tail keeps the newest lines of a query.
type tail struct {
	logQuery
	last  time.Time // of the last line that had one
	kept  []string
	size  int64
	above bool     // something was left out before what is kept
	clean redactor // as it is before what is kept: it has seen what was left out
}

// add considers the next line.
func (t *tail) add(line string) {
	if at, ok := lineTime(line); ok {
		t.last = at
	}
	if !t.from.IsZero() && t.last.Before(t.from) || !t.to.IsZero() && !t.last.Before(t.to) {
		if len(t.kept) == 0 {
			t.clean.pass(line)
		}
		return
	}
	t.kept = append(t.kept, line)
	t.size += int64(len(line)) + 1
	for t.size > t.bytes || t.lines > 0 && len(t.kept) > t.lines {
		t.size -= int64(len(t.kept[0])) + 1
		t.clean.pass(t.kept[0])
		t.kept[0] = ""
		t.kept, t.above = t.kept[1:], true
	}
}

// logEnd is where reading stopped: in this file, which is open, after so many bytes of whole lines.
type logEnd struct {
	file   *os.File // nil when there is none yet
	at     int64
	size   int64 // as it was when it was last read to its end
	within bool  // at is within a line that is too long: the rest of it is not told
}

func (e *logEnd) close() {
	if e.file != nil {
		e.file.Close()
	}
}

// readLog gathers the lines of a query over all files of a log, until ctx ends. end is where the newest goes on.
func readLog(ctx context.Context, path string, q logQuery) (t *tail, end logEnd, err error) {
	return readFiles(ctx, rotated(path), path, q)
}

// readFiles is readLog of these files, of which newest is the last, if it is there.
func readFiles(ctx context.Context, files []string, newest string, q logQuery) (t *tail, end logEnd, err error) {
	t = &tail{logQuery: q}
	room := cmp.Or(q.scan, maxScan)
	// Which of them are looked at: from the newest on, as far as there is room and they can hold what is asked.
	begin := len(files)
	for begin > 0 && room > 0 {
		info, err := os.Stat(files[begin-1])
		switch {
		case errors.Is(err, fs.ErrNotExist): // rotated away meanwhile, or between two files
		case err != nil:
			return t, end, err
		case info.ModTime().Before(q.from) && begin < len(files):
			room = 0
			continue
		default:
			room -= info.Size()
		}
		begin--
	}
	t.above = begin > 0
	for _, name := range files[begin:] {
		f, err := openFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return t, end, err
		}
		n, err := eachLine(until{ctx, f}, t.add)
		if err != nil {
			return t, end, errors.Join(err, f.Close())
		}
		if name != newest {
			f.Close()
			continue
		}
		end = logEnd{file: f, at: n}
	}
	return t, end, nil
}

// until reads until ctx ends.
type until struct {
	ctx context.Context
	io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil && !invariant.Planted("control/sidecar/reads-on") {
		return 0, err
	}
	return u.Reader.Read(p)
}

// eachLine gives whole lines, without their ends, and returns the bytes that they took. A long one is cut; what
// is not ended yet is not given.
func eachLine(r io.Reader, give func(string)) (taken int64, err error) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		n, text := int64(len(line)), ""
		if errors.Is(err, bufio.ErrBufferFull) {
			text = strings.ToValidUTF8(string(line), "?") + "..."
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = in.ReadSlice('\n')
				n += int64(len(line))
			}
		} else if err == nil {
			text = strings.ToValidUTF8(string(line[:len(line)-1]), "?")
		}
		if errors.Is(err, io.EOF) {
			return taken, nil
		} else if err != nil {
			return taken, err
		}
		taken += n
		give(text)
	}
}

// followEvery is how often a log is looked at for more.
const followEvery = 300 * time.Millisecond

// follow gives the lines that come after end, over rotation, until ctx ends or give fails: a file that was moved
// is read to its end first; one that was emptied is read from its beginning. It takes end.
func follow(ctx context.Context, path string, end logEnd, give func([]string) error) error {
	defer func() { end.close() }()
	look := time.NewTicker(followEvery)
	defer look.Stop()
	for {
		if err := end.more(path, give); err != nil {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// more gives what has come since.
func (e *logEnd) more(path string, give func([]string) error) error {
	for {
		if e.file != nil {
			info, err := e.file.Stat()
			if err != nil {
				return err
			}
			if info.Size() < e.at && !invariant.Planted("control/sidecar/emptied-log") {
				e.at, e.within = 0, false
			}
			if info.Size() != e.size { // what is not ended yet need not be looked at again
				e.size = info.Size()
				if err := e.rest(give); err != nil {
					return err
				}
			}
		}
		f, err := openFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // between two files, or not yet
		} else if err != nil {
			return err
		}
		if e.file != nil && sameFile(e.file, f) {
			return f.Close()
		}
		if e.file != nil {
			if err := e.rest(give); err != nil { // what was written to it until the new one was there
				return errors.Join(err, f.Close())
			}
			e.file.Close()
		}
		*e = logEnd{file: f}
	}
}

// rest gives the whole lines from where we are to the file's end, some at a time.
func (e *logEnd) rest(give func([]string) error) error {
	if _, err := e.file.Seek(e.at, io.SeekStart); err != nil {
		return err
	}
	var lines []string
	size := 0
	var failed error
	n, err := eachLine(e.file, func(line string) {
		if failed != nil {
			return
		}
		if e.within {
			e.within = false
			return
		}
		lines = append(lines, line)
		if size += len(line); size >= pieceBytes {
			failed = give(lines)
			lines, size = nil, 0
		}
	})
	if e.at += n; e.size-e.at > maxLine { // or all of it would be read again whenever some is added
		e.at, e.within = e.size, true
	}
	if err = errors.Join(err, failed); err != nil || len(lines) == 0 {
		return err
	}
	return give(lines)
}

func sameFile(a, b *os.File) bool {
	x, errA := a.Stat()
	y, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(x, y)
}
